//! `subsea drain`. Shell.

use std::process::ExitCode;
use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::args::{self, StateArg};
use super::failure::{Failure, say};
use super::out;
use crate::control::{self, Answer, ControlError, Verb};
use crate::state::{StateDir, StateError};

/// How often it is looked whether the gateway has ended.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often it is said that it has not.
const PROGRESS: Duration = Duration::from_secs(2);

/// Takes this node's gateway out of service without losing a packet, and ends it
///
/// Tells every other gateway, and the agents of its own cluster, that this one is about to stop; waits until its traffic
/// has moved to the others; then ends the process. What it put into the kernel stays. Starting it again puts it back into
/// service. Exits with 0 when the gateway has ended, else with 1 at the end of the time: then it still runs, drained.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// How long to wait for the end
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = args::duration)]
    wait: Duration,
}

/// Asks the gateway, and waits for its end.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let dir = args.state.state_dir.as_path();
    let state = StateDir::open(dir)?;
    let start = Instant::now();
    let pid = match control::request::<IgnoredAny>(&state.socket_path(), Verb::Drain).await {
        Ok(Answer::Stopping { pid }) => pid,
        Ok(other @ (Answer::Status(_) | Answer::Noted | Answer::Error { .. })) => {
            return Err(Failure::failed(format!(
                "the answer makes no sense: {other:?}"
            )));
        }
        Err(error @ ControlError::NotRunning { .. }) => {
            let hint = format!("is `subsea gateway --state-dir {}` running?", dir.display());
            return Err(Failure::of(&error).hint(hint));
        }
        Err(error) => return Err(Failure::of(&error)),
    };
    let mut told = Duration::ZERO;
    loop {
        match state.lock() {
            Ok(_) => break,
            // Somebody has started it again already.
            Err(StateError::Locked { pid: Some(now), .. }) if now != pid => break,
            Err(StateError::Locked { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let waited = start.elapsed();
        if waited >= args.wait {
            return Err(Failure::failed(format!(
                "the gateway (pid {pid}) still runs after {} s, drained",
                waited.as_secs()
            ))
            .hint("its traffic has not moved: `subsea status` on the other gateways tells whether they can carry it"));
        }
        if waited >= told + PROGRESS {
            told = waited;
            say(&format!(
                "draining: pid {pid} waits until its traffic has moved, {} s\n",
                waited.as_secs()
            ));
        }
        tokio::time::sleep(INTERVAL).await;
    }
    let took = start.elapsed().as_secs_f64();
    out::print(&format!("drained and ended in {took:.1} s\n"))?;
    Ok(ExitCode::SUCCESS)
}
