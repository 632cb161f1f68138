//! How an agent ends. What it leaves in the kernel goes on, and the other nodes believe in it for a while: that must be true.
//! Shell.

use std::path::Path;
use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::sync::watch;

use super::local::Own;
use crate::control::{self, Verb};
use crate::state::SOCKET;

/// Who ends a whole node tells agent and gateway at the same time: whether the gateway drains shows in this time. In Kubernetes a
/// program has to be started for that, on a node that ends dozens of pods.
const MOMENT: Duration = Duration::from_secs(2);
/// An agent waits so long for its gateway; its pod may take 15 s to end.
const MOST: Duration = Duration::from_secs(10);
/// What all sessions need to tell the nodes a word.
const TELL: Duration = Duration::from_millis(200);

/// Waits for a gateway that drains, so that the nodes hear of it until it has ended; else only a moment.
pub(super) async fn outlive(own: watch::Receiver<Own>) {
    if ends_within(own, (MOMENT, MOST)).await {
        tokio::time::sleep(TELL).await;
    }
}

/// Whether a gateway ran that drains within the first of the two times; waits the second for its end.
async fn ends_within(mut own: watch::Receiver<Own>, limits: (Duration, Duration)) -> bool {
    if own.borrow().is_none() {
        return false;
    }
    let drains = own.wait_for(|feed| feed.as_ref().is_none_or(|feed| feed.draining));
    if tokio::time::timeout(limits.0, drains).await.is_err() {
        return false;
    }
    tracing::info!("waits for the gateway of this node, which ends as well");
    let ended = own.wait_for(Option::is_none);
    if tokio::time::timeout(limits.1, ended).await.is_err() {
        tracing::warn!("the gateway of this node has not ended: stopping before it");
    }
    true
}

/// Tells the gateway of this node, whose socket is in `dir`, and by it the nodes, that nothing is steered here any more.
pub(super) async fn resign(dir: &Path) {
    let told = control::request::<IgnoredAny>(&dir.join(SOCKET), Verb::InwardDead).await;
    if let Err(error) = told {
        tracing::debug!(%error, "the gateway of this node was not told");
        return;
    }
    // Its word comes to us, and goes on to them.
    tokio::time::sleep(TELL).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::control::feed::Feed;

    fn feed(draining: bool) -> Arc<Feed> {
        Arc::new(Feed {
            draining,
            ..Feed::default()
        })
    }

    #[tokio::test]
    async fn only_a_gateway_that_drains_is_waited_for() {
        let (moment, long) = (Duration::from_millis(50), Duration::from_mins(1));
        let own = watch::Sender::new(None);
        let ends = |limits| ends_within(own.subscribe(), limits);
        assert!(!ends((long, long)).await, "there is none");
        own.send_replace(Some(feed(false)));
        assert!(!ends((moment, long)).await, "it stays");
        own.send_replace(Some(feed(true)));
        assert!(ends((long, moment)).await, "it drains without end");
        own.send_replace(Some(feed(false)));
        let draining = async {
            own.send_replace(Some(feed(true)));
            tokio::time::sleep(moment).await;
            own.send_replace(None);
        };
        let (ended, ()) = tokio::join!(ends((long, long)), draining);
        assert!(ended);
    }
}
