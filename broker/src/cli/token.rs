//! `subsea-broker token`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use subsea_api::admin::{TokenCreate, TokenInfo, TokenState};
use subsea_api::join_file::JoinFile;
use subsea_api::{ClusterId, Role};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::file::SecretFile;
use super::output::{self, Done, Output};
use super::table::Table;
use super::{Context, args, format};

/// Create, list and revoke join tokens
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Create a one-time token and write the join file that carries it
///
/// The file is a secret until it is used: give it to the cluster's operator over a safe channel.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The cluster that the token admits, or enrols a further node into
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// What the token entitles to: `member` admits the cluster with its first gateway; `gateway`, `agent` and
    /// `dns` enrol a further node of a member
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = args::token_role)]
    role: Role,

    /// How long the token lives, at most 7d
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = args::token_ttl)]
    ttl: Duration,

    /// Where to write the join file (mode 0600) [default: standard output]
    #[arg(short, long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// List the tokens; their secrets are not kept
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    output: Output,
}

/// Revoke a token that was not used yet
#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    /// The token's id, as `token list` shows it
    // Checked later: a usage error of clap would repeat the text, and somebody may paste the whole token.
    #[arg(value_name = "ID")]
    id: String,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::Create(args) => {
            let path = args.output.as_deref().filter(|p| *p != Path::new("-"));
            let file = path.map(SecretFile::create).transpose()?;
            let request = TokenCreate {
                cluster: args.cluster,
                role: args.role,
                ttl_seconds: args.ttl.as_secs(),
            };
            let join: JoinFile = client
                .send(Method::POST, "/v1/admin/tokens", &request)
                .await?;
            write(&join, file)
        }
        Verb::List(args) => {
            let mut tokens: Vec<TokenInfo> = client.get("/v1/admin/tokens").await?;
            tokens.sort_by_key(|t| t.created);
            args.output.print(&tokens, |t| table(t))
        }
        Verb::Revoke(args) => {
            let id = args::token_id(&args.id).map_err(Failure::usage)?;
            let path = format!("/v1/admin/tokens/{id}");
            client.order(Method::DELETE, &path).await?;
            let done = Done {
                action: "token.revoke",
                subject: &id,
            };
            args.output.done(&done, &format!("token {id} is revoked"))
        }
    }
}

fn write(join: &JoinFile, file: Option<SecretFile>) -> Result<(), Failure> {
    let yaml = join
        .to_yaml()
        .map_err(|e| Failure::failed(format!("cannot write the join file: {e}")))?;
    let yaml = Zeroizing::new(yaml);
    match file {
        Some(mut file) => {
            file.write_all(yaml.as_bytes())
                .map_err(|e| Failure::failed(format!("cannot write the join file: {e}")))?;
            file.commit().map(drop)
        }
        None => output::print(yaml.as_bytes()),
    }
}

fn table(tokens: &[TokenInfo]) -> Table<6> {
    let mut table = Table::new(["ID", "CLUSTER", "ROLE", "STATE", "CREATED", "EXPIRES"]);
    for token in tokens {
        let state = match token.state {
            TokenState::Unused => "unused",
            TokenState::Used => "used",
            TokenState::Expired => "expired",
            TokenState::Revoked => "revoked",
        };
        table.row([
            token.id.clone(),
            token.cluster.to_string(),
            token.role.to_string(),
            state.into(),
            format::time(token.created),
            format::time(token.expires),
        ]);
    }
    table
}
