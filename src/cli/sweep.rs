//! `subsea sweep`: takes from a node what its daemons left, for `subsea leave --context`. Shell.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::failure::{Failure, say};
use super::gateway::signals;
use crate::enrol::{self, EnrolError, LeaveOptions};
use crate::state::StateError;

/// Takes devices, routes, rules and keys of daemons that ended from this node, then waits for SIGTERM
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A state directory; may repeat
    #[arg(long = "state-dir", value_name = "DIR", required = true)]
    state_dirs: Vec<PathBuf>,

    /// Listens there as soon as everything is gone: who can connect knows so
    #[arg(long, value_name = "ADDR:PORT")]
    ready_listen: SocketAddr,
}

/// Sweeps, says so, and stays until a signal.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = LeaveOptions {
        local: true,
        force: true,
    };
    for dir in &args.state_dirs {
        let mut progress = |text: &str| say(&format!("{text}\n"));
        let left = match enrol::leave(dir, options, &mut progress).await {
            Ok(left) => left,
            // Nothing ever ran here, or an earlier sweep was here.
            Err(EnrolError::NotJoined { .. } | EnrolError::State(StateError::Missing { .. })) => {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for line in &left.done {
            say(&format!("{line}\n"));
        }
        if !left.failed.is_empty() {
            let failed = left.failed.join("\n  ");
            return Err(Failure::failed(format!(
                "not everything was removed:\n  {failed}"
            )));
        }
    }
    let address = args.ready_listen;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|e| Failure::failed(format!("cannot listen on {address}: {e}")))?;
    let shutdown = signals()?;
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(ExitCode::SUCCESS),
            accepted = listener.accept() => drop(accepted),
        }
    }
}
