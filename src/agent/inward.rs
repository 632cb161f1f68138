//! Tells the gateway of this node whether the other nodes of the cluster are reached: one that does not reach them takes
//! packets that it cannot deliver. Shell around [`judge`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use subsea_api::NodeName;
use tokio::time::Instant;

use super::prober::Prober;
use crate::control::feed::HOLD;
use crate::control::{self, Verb};
use crate::membership::clock::Clock;
use crate::state::SOCKET;

/// All nodes silent for so long, four probes of theirs and a little, and they are not reached.
const SILENCE: Duration = Duration::from_millis(1_200);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often the gateway is told though nothing changed: its belief does not last for ever.
const REPEAT: Duration = Duration::from_secs(1);
/// So long after its start an agent says nothing. Nodes that took it for dead look for it anew every 2 s at most, and for some
/// 2.5 s at its answers: who sends packets here before that would have the answers to them go elsewhere.
const START: Duration = Duration::from_secs(6);

/// Whether none of the other nodes is reached; not when no node was ever heard, so that nothing can be said.
fn judge(heard: &BTreeMap<NodeName, Option<Duration>>, now: Duration) -> bool {
    let last = heard.values().flatten().max();
    last.is_some_and(|last| now.saturating_sub(*last) > SILENCE)
}

/// Tells the gateway whose socket is in `dir` until the task is dropped.
pub(super) async fn run(dir: PathBuf, clock: Clock, prober: Arc<Prober>) {
    let socket = dir.join(SOCKET);
    let mut told: Option<(bool, Instant)> = None;
    const { assert!(START.as_secs() * 2 < HOLD.as_secs()) };
    tokio::time::sleep(START).await;
    loop {
        tokio::time::sleep(LOOK).await;
        let dead = judge(&prober.heard(), clock.now().mono);
        if told.is_some_and(|(last, at)| last == dead && at.elapsed() < REPEAT) {
            continue;
        }
        if told.is_some_and(|(last, _)| last != dead) {
            tracing::warn!(
                dead,
                "the other nodes of the cluster, seen from its gateway"
            );
        }
        let verb = if dead { Verb::InwardDead } else { Verb::Inward };
        if let Err(error) = control::request::<IgnoredAny>(&socket, verb).await {
            tracing::debug!(%error, "the gateway of this node was not told");
        }
        told = Some((dead, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_cut_off_when_all_nodes_that_spoke_are_silent() {
        let s = Duration::from_secs;
        let heard = |nodes: &[(&str, Option<u64>)]| {
            let nodes = nodes.iter();
            nodes
                .map(|(node, at)| (node.parse().unwrap(), at.map(Duration::from_secs)))
                .collect()
        };
        assert!(!judge(&heard(&[]), s(9)));
        assert!(!judge(&heard(&[("a", None)]), s(9)));
        assert!(!judge(&heard(&[("a", Some(1)), ("b", Some(8))]), s(9)));
        assert!(judge(&heard(&[("a", Some(1)), ("b", Some(7))]), s(9)));
    }
}
