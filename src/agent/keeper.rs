//! Keeps the kernel of this node as the pilot wants it. Shell.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::gateway::status::KernelStatus;
use crate::host::Reconciler;
use crate::host::desired::Desired;
use crate::membership::{Link, chain};

/// How often the kernel is read though nothing is known to have changed.
const PASS: Duration = Duration::from_secs(30);
/// After a pass that left something undone.
const PASS_AGAIN: Duration = Duration::from_secs(3);

/// Keeps it until the task is dropped. `seen` counts what changed in the kernel, `status` says how the last pass ended.
pub(super) async fn run(
    link: &Link,
    mut reconciler: Reconciler,
    mut wanted: watch::Receiver<Option<Arc<Desired>>>,
    seen: watch::Sender<u64>,
    status: watch::Sender<KernelStatus>,
) {
    let mut next = Instant::now();
    loop {
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            () = reconciler.changed() => seen.send_modify(|count| *count += 1),
            () = tokio::time::sleep_until(next) => seen.send_modify(|count| *count += 1),
        }
        let Some(desired) = wanted.borrow_and_update().clone() else {
            next = Instant::now() + PASS_AGAIN;
            continue;
        };
        let result = reconciler.reconcile(&desired).await;
        let last_reconcile = Some(link.clock.now().wall);
        let kernel = match result {
            Ok(report) => KernelStatus {
                converged: report.converged(),
                last_reconcile,
                problems: report.problems,
            },
            Err(error) => KernelStatus {
                converged: false,
                last_reconcile,
                problems: vec![chain(&error)],
            },
        };
        let pause = if kernel.converged { PASS } else { PASS_AGAIN };
        status.send_modify(|before| {
            if before.problems != kernel.problems {
                for problem in &kernel.problems {
                    tracing::warn!(problem, "kernel");
                }
            }
            *before = kernel;
        });
        next = Instant::now() + pause;
    }
}
