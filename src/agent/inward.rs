//! Tells the gateway of this node whether the other nodes of the cluster are reached: one that does not reach them takes
//! packets that it cannot deliver. Shell around [`judge`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::IgnoredAny;
use subsea_api::NodeName;
use tokio::sync::watch;
use tokio::time::Instant;

use super::local::Own;
use super::room::Room;
use crate::control::{self, Verb};
use crate::state::SOCKET;

/// All nodes silent for so long, four probes of theirs and a little, and they are not reached.
const SILENCE: Duration = Duration::from_millis(1_200);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Who comes so much later than that stood still: the processor was not given to us, or the gateway did not answer.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// So long after that the others have to be heard again: sessions are made anew within some 2 s.
const WAKING: Duration = Duration::from_secs(5);
/// How often the gateway is told though nothing changed: its belief does not last for ever.
const REPEAT: Duration = Duration::from_secs(1);
/// So long after its start an agent does not bring a gateway back that is left out. Nodes that took it for dead look for it anew
/// every 2 s at most, and for some 2.5 s at its answers: who sends packets here before that would have the answers to them go
/// elsewhere.
const START: Duration = Duration::from_secs(6);

/// What is said of the other nodes, of which there are some (`any`) or none; nothing before the first of them was heard. Nor is
/// anything known for a while after we stood still until `awake`: that nobody was heard meanwhile is not their silence.
fn judge(
    any: bool,
    heard: &BTreeMap<NodeName, Option<Duration>>,
    awake: Option<Duration>,
    now: Duration,
) -> Option<Verb> {
    match heard.values().flatten().max() {
        Some(last) if awake.is_some_and(|at| *last <= at && now.saturating_sub(at) <= WAKING) => {
            None
        }
        Some(last) if now.saturating_sub(*last) > SILENCE => Some(Verb::InwardDead),
        Some(_) => Some(Verb::Inward),
        None => (!any).then_some(Verb::InwardNone),
    }
}

/// Tells the gateway whose socket is in `dir` until the task is dropped.
pub(super) async fn run(dir: PathBuf, room: Arc<Room>, own: watch::Receiver<Own>) {
    let socket = dir.join(SOCKET);
    let start = Instant::now();
    let mut told: Option<(Verb, Instant)> = None;
    let mut awake = None;
    let mut looked = room.link.clock.now().mono;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = room.link.clock.now().mono;
        if now.saturating_sub(looked) > LOOK + STOOD_STILL {
            awake = Some(now);
        }
        looked = now;
        let left_out = own.borrow().as_ref().is_some_and(|feed| feed.inward_dead);
        let verb = judge(room.has_nodes(), &room.prober.heard(), awake, now);
        let early = left_out && start.elapsed() < START && verb != Some(Verb::InwardDead);
        let Some(verb) = verb.filter(|_| !early) else {
            continue;
        };
        if told.is_some_and(|(last, at)| last == verb && at.elapsed() < REPEAT) {
            continue;
        }
        if told.is_some_and(|(last, _)| last != verb) {
            tracing::warn!(
                ?verb,
                "the other nodes of the cluster, seen from its gateway"
            );
        }
        if let Err(error) = control::request::<IgnoredAny>(&socket, verb).await {
            tracing::debug!(%error, "the gateway of this node was not told");
        }
        told = Some((verb, Instant::now()));
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
        let judge_at =
            |awake: Option<u64>, any, nodes: &[_]| judge(any, &heard(nodes), awake.map(s), s(9));
        let judge = |any, nodes: &[_]| judge_at(None, any, nodes);
        assert_eq!(judge(false, &[]), Some(Verb::InwardNone));
        assert_eq!(judge(true, &[]), None, "they have yet to come back");
        assert_eq!(judge(true, &[("a", None)]), None);
        let some = [("a", Some(1)), ("b", Some(8))];
        assert_eq!(judge(true, &some), Some(Verb::Inward));
        let silent = [("a", Some(1)), ("b", Some(7))];
        assert_eq!(judge(true, &silent), Some(Verb::InwardDead));
        // They are not to blame for the time in which we slept, nor is anybody known to be there before he is heard again.
        assert_eq!(judge_at(Some(8), true, &silent), None);
        assert_eq!(judge_at(Some(3), true, &silent), Some(Verb::InwardDead));
        assert_eq!(judge_at(Some(7), true, &some), Some(Verb::Inward));
    }
}
