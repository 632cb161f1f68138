//! `subsea leave`. Shell.

use std::process::ExitCode;

use super::args::StateArg;
use super::failure::{Failure, say};
use super::out;
use crate::enrol::{self, LeaveOptions};

/// Takes this node out of the fleet and every trace of it out of this host
///
/// Stops a gateway that runs, removes the cluster (or, for a further gateway, the gateway) at the broker, takes our
/// device, routes, rules, nftables table and kernel settings out, and removes the keys. Nothing of others is
/// touched. Can be repeated.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// Do not ask the broker: for when it is away
    #[arg(long)]
    local: bool,

    /// Go on when the broker refuses, and leave although other gateways of the cluster are registered
    #[arg(long)]
    force: bool,
}

/// Leaves and prints what was done.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = LeaveOptions {
        local: args.local,
        force: args.force,
    };
    let mut progress = |text: &str| say(&format!("{text}\n"));
    let left = enrol::leave(&args.state.state_dir, options, &mut progress).await?;
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
