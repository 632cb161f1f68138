//! Ctrl-C, and being asked to end. Shell.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, say};
use crate::kube::error::KubeError;
use crate::kube::wait::Interrupt;

/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Resolves with SIGTERM or SIGINT.
pub(super) fn signals() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |e| Failure::failed(format!("signals cannot be received: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Works until it is done, or a signal comes: then what has been changed for a time only is put back first, unless there
/// is a second signal.
///
/// # Errors
/// Those of the work; with [`INTERRUPTED`] when it was not done.
pub(super) async fn interruptible(
    interrupt: &Interrupt,
    mut work: impl Future<Output = Result<ExitCode, Failure>> + Unpin,
) -> Result<ExitCode, Failure> {
    tokio::select! {
        ended = &mut work => return ended,
        () = signals()? => {}
    }
    if interrupt.receiver_count() > 0 {
        say("interrupted: what was changed for the time of the rollout only is put back first\n");
        interrupt.send_replace(true);
        tokio::select! {
            ended = &mut work => return ended.map_err(|failure| failure.with_code(INTERRUPTED)),
            () = signals()? => {}
        }
    }
    Err(Failure::from(KubeError::Interrupted).with_code(INTERRUPTED))
}
