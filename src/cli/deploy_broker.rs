//! `subsea deploy-broker`. Shell.

use std::process::ExitCode;
use std::time::Duration;

use super::args;
use super::dry_run::DryRun;
use super::failure::{Failure, say};
use super::image::{self, PullSecrets};
use super::out;
use crate::kube::connect::connect;
use crate::kube::deploy::{self, DeployOptions, Deployed};
use crate::kube::live_image;
use crate::kube::manifests::{BrokerOptions, Expose};

/// Installs the broker in a management cluster
///
/// Puts it there by server-side apply, finds the address by which members reach it, and waits until it answers there. A
/// second time brings it up to date. Its volume stays until the namespace is deleted: it holds the fleet.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The context of the kubeconfig; by default the current one
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// Where the broker lives
    #[arg(long, value_name = "NAME", default_value = "subsea-broker", value_parser = args::namespace)]
    namespace: String,

    /// How members reach it: `loadbalancer`, `nodeport`, or the URL that leads to its Service by means of your own. By
    /// default as it is now, and by `loadbalancer` when it is not there yet
    #[arg(long, value_name = "HOW")]
    expose: Option<Expose>,

    /// Tell members the URLs of now only. Otherwise those of before stay beside them, up to 8 with the one inside of the
    /// cluster: a member that knows nothing else would find the broker no more
    #[arg(long)]
    drop_urls: bool,

    /// The image, with both programs in it. Otherwise that of this version, and where the broker has one of another registry or
    /// name, that one
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    #[command(flatten)]
    pull_secrets: PullSecrets,

    /// The class of its volume; by default the cluster's default. A volume that is there stays as it is
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,

    /// The size of its volume; 1Gi unless said otherwise
    #[arg(long, value_name = "SIZE")]
    storage_size: Option<String>,

    /// How long to wait until it answers
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::duration)]
    timeout: Duration,

    /// Take over fields that others have applied
    #[arg(long)]
    force_conflicts: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

/// Installs it and prints where it is.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let dry = args.dry_run.wanted();
    // What is only to be shown needs no cluster, and keeps nothing of one.
    let client = if dry {
        None
    } else {
        Some(connect(args.context.as_deref()).await?)
    };
    let live = match &client {
        Some(client) => live_image::of_broker(client, &args.namespace).await?,
        None => None,
    };
    let said = (args.image, args.pull_secrets);
    let image = image::chosen(client.as_ref(), &args.namespace, live.as_ref(), said, dry).await?;
    let broker = BrokerOptions {
        namespace: args.namespace,
        image,
        expose: args.expose,
        storage_class: args.storage_class,
        storage_size: args.storage_size,
        ..BrokerOptions::default()
    };
    let Some(client) = client else {
        let objects = deploy::planned(&broker).map_err(|e| Failure::of(&e))?;
        args.dry_run.print(&objects)?;
        return Ok(ExitCode::SUCCESS);
    };
    let options = DeployOptions {
        broker,
        drop_urls: args.drop_urls,
        timeout: args.timeout,
        force: args.force_conflicts,
    };
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let deployed = deploy::deploy_broker(client, &options, &mut progress).await?;
    out::print(&answers(&deployed, args.context.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}

fn answers(deployed: &Deployed, context: Option<&str>) -> String {
    let context = context.map_or_else(String::new, |c| format!(" --context {c}"));
    format!(
        "the broker of fleet `{}` answers at {}\n\nnext: `subsea token create{context} --cluster ID -o join.yaml`\n",
        deployed.status.fleet,
        deployed.urls.join(", ")
    )
}
