//! `subsea leave`. Shell.

use std::path::PathBuf;
use std::process::ExitCode;

use super::failure::{Failure, say};
use super::leave_cluster::{self, ClusterArgs};
use super::out;
use crate::enrol::{self, LeaveOptions};

/// Takes this node out of the fleet and every trace of it out of this host
///
/// Stops a gateway that runs, removes the cluster (or, for a further gateway, the gateway) at the broker, takes our
/// device, routes, rules, nftables table and kernel settings out, and removes the keys. Nothing of others is
/// touched. Can be repeated. With `--context`, all of that is done with a whole cluster of Kubernetes and its nodes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The state directory of this node; one for each daemon
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "context",
        conflicts_with = "context"
    )]
    state_dir: Option<PathBuf>,

    /// Do not ask the broker: for when it is away
    #[arg(long)]
    local: bool,

    /// Go on when the broker refuses, and leave although other gateways of the cluster are registered
    #[arg(long, conflicts_with = "context")]
    force: bool,

    #[command(flatten)]
    whole: ClusterArgs,
}

/// Leaves and prints what was done.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let Some(state_dir) = args.state_dir else {
        return leave_cluster::run(args.local, args.whole).await;
    };
    let options = LeaveOptions {
        local: args.local,
        force: args.force,
    };
    let mut progress = |text: &str| say(&format!("{text}\n"));
    let left = enrol::leave(&state_dir, options, &mut progress).await?;
    out::print(
        &left
            .done
            .iter()
            .fold(String::new(), |text, line| text + line + "\n"),
    )?;
    if let (true, Some(cluster)) = (args.local, &left.cluster) {
        say(&format!(
            "\nhint: the broker was not told; if the cluster is to go for good: `subsea-broker cluster forget {cluster}`\n"
        ));
    }
    match left.failed.as_slice() {
        [] => Ok(ExitCode::SUCCESS),
        failed => Err(Failure::failed(format!(
            "not everything was removed:\n  {}",
            failed.join("\n  ")
        ))
        .hint("put right what is named, and leave again")),
    }
}
