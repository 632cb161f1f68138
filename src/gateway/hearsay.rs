//! What others than echo say of the paths: the tunnel is told who is in use, refusals of the underlay are a reason to look
//! closely, and the agent of this node knows whether our own cluster is reached. Shell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::echo::Flags;
use super::pilot::Pilot;
use super::plane::Keys;
use super::prober::{Prober, Steer};
use super::shared::{Shared, say_inward};
use crate::control::feed::HOLD;
use crate::tunnel::Tunnel;

/// Has flows go by the paths in use, in the moment in which they are found to be.
pub(super) fn steerer(pilot: Arc<Pilot>, tunnel: Arc<dyn Tunnel>, keys: Keys) -> Steer {
    Arc::new(move |in_use| {
        // First what waits for nobody.
        pilot.steer(in_use);
        tunnel.steer(&keys.of(in_use));
    })
}

/// Has a path looked at closely at once when the host of its gateway says that nobody listens there.
pub(super) async fn heed_refusals(tunnel: Arc<dyn Tunnel>, keys: Keys, prober: Arc<Prober>) {
    let mut refusals = tunnel.refusals();
    let mut before = BTreeMap::new();
    while refusals.changed().await.is_ok() {
        let now = refusals.borrow_and_update().clone();
        for (key, count) in &now {
            if before.get(key) != Some(count)
                && let Some(id) = keys.path_of(key)
            {
                prober.hint(id);
            }
        }
        before = now;
    }
}

/// Believes the agent of this node about the way to our own cluster, unless targets to ask were configured. Without an agent
/// nothing is said; one that was there and is silent for [`HOLD`] steers no packets here any more.
pub(super) async fn heed_agent(
    shared: Arc<Shared>,
    mut told: watch::Receiver<Option<(bool, Duration)>>,
    flags: watch::Sender<Flags>,
) {
    if !shared.options.inward_probes.is_empty() {
        return;
    }
    loop {
        let word = *told.borrow_and_update();
        let now = shared.link.clock.now().mono;
        let left = word.map(|(_, at)| (at + HOLD).saturating_sub(now));
        let dead = word.is_some_and(|(dead, _)| dead) || left.is_some_and(|left| left.is_zero());
        say_inward(&flags, dead, "the agent of this node");
        tokio::select! {
            changed = told.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(left.unwrap_or_default()), if word.is_some() && !dead => {}
        }
    }
}
