//! `subsea token`. Shell.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use subsea_api::admin::TokenCreate;
use subsea_api::join_file::JoinFile;
use subsea_api::{ClusterId, Role};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::secret_file::SecretFile;
use super::{args, out};
use crate::broker_client::BrokerClient;
use crate::kube::connect::connect;
use crate::kube::deploy;

/// Create join tokens through the broker of a management cluster
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Create(Create),
}

/// Create a one-time token and write the join file that carries it
///
/// Reads from the management cluster how an operator reaches the broker. The file is a secret until it is used: give it to
/// the cluster's operator over a safe channel.
#[derive(Debug, clap::Args)]
struct Create {
    /// The context of the management cluster in the kubeconfig; by default the current one
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// Where the broker lives
    #[arg(long, value_name = "NAME", default_value = "subsea-broker", value_parser = args::namespace)]
    namespace: String,

    /// The cluster that the token admits, or enrols a further node into
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// What the token entitles to: `member` admits the cluster with its first gateway; `gateway`, `agent` and `dns` enrol a
    /// further node of a member
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = args::token_role)]
    role: Role,

    /// How long the token lives, at most 7d
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = args::token_ttl)]
    ttl: Duration,

    /// Where to write the join file (mode 0600); by default to standard output
    #[arg(short, long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Does the verb.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let Verb::Create(args) = args.verb;
    // Before the token: one that cannot be written would be lost.
    let path = args.output.as_deref().filter(|p| *p != Path::new("-"));
    let file = path.map(SecretFile::create).transpose()?;
    let client = connect(args.context.as_deref()).await?;
    let admin = deploy::admin_file(&client, &args.namespace).await?;
    let failed = |e: crate::broker_client::ClientError| Failure::of(&e).hint_if(e.hint());
    let broker = BrokerClient::operator(&admin, &[]).map_err(failed)?;
    let request = TokenCreate {
        cluster: args.cluster,
        role: args.role,
        ttl_seconds: args.ttl.as_secs(),
    };
    let join = broker.create_token(&request).await.map_err(failed)?;
    write(&join, file)?;
    Ok(ExitCode::SUCCESS)
}

fn write(join: &JoinFile, file: Option<SecretFile>) -> Result<(), Failure> {
    let yaml = join.to_yaml().map_err(|e| Failure::of(&e))?;
    let yaml = Zeroizing::new(yaml);
    match file {
        Some(file) => file.write(&yaml),
        None => out::print(&yaml),
    }
}
