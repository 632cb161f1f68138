//! What a cluster shows of our DaemonSets: they, their pods, the nodes. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use super::error::{KubeError, is_absent};
use super::labels;
use super::rollout::{Rollout, rollout, unready};

/// How often it is looked, at least and at most, and how long for each object that a look reads: a thousand nodes are not
/// transferred twice a second.
const LOOK: Duration = Duration::from_millis(500);
const SELDOM: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_millis(2);

/// What must be known to say how far DaemonSets are.
pub(super) struct Ground {
    daemons: Vec<DaemonSet>,
    revisions: Vec<ControllerRevision>,
    pub(super) pods: Vec<Pod>,
    nodes: Vec<Node>,
}

impl Ground {
    /// Reads what is in a namespace of ours.
    pub(super) async fn read(client: &Client, namespace: &str) -> Result<Self, KubeError> {
        let part = ListParams::default().labels(&format!("{}={}", labels::PART_OF, labels::SUBSEA));
        // From the API server's own cache. Pods and nodes may be a moment behind; a DaemonSet may not, or what was applied just
        // now would be taken for done as it was before.
        let (cached, all) = (part.clone().match_any(), ListParams::default().match_any());
        let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let nodes: Api<Node> = Api::all(client.clone());
        Ok(Self {
            daemons: items(daemons.list(&part).await, "DaemonSets")?,
            revisions: items(revisions.list(&part).await, "ControllerRevisions")?,
            pods: items(pods.list(&cached).await, "pods")?,
            nodes: items(nodes.list(&all).await, "nodes")?,
        })
    }

    /// How far each of them is.
    pub(super) fn rollouts(&self) -> impl Iterator<Item = Rollout> {
        let Self {
            daemons,
            revisions,
            pods,
            nodes,
        } = self;
        daemons
            .iter()
            .map(|daemon| rollout(daemon, revisions, pods, nodes))
    }

    /// Nodes that are ready.
    pub(super) fn ready(&self) -> BTreeSet<String> {
        let ready = self.nodes.iter().filter(|node| unready(node).is_none());
        ready.map(kube::ResourceExt::name_any).collect()
    }

    /// How long to wait until the next look.
    pub(super) fn pause(&self) -> Duration {
        pause(self.pods.len() + self.nodes.len())
    }
}

/// How long to wait after a look that read so many objects.
pub(super) fn pause(objects: usize) -> Duration {
    let objects = u32::try_from(objects).unwrap_or(u32::MAX);
    EACH.saturating_mul(objects).clamp(LOOK, SELDOM)
}

/// What a list has; nothing where the API server does not know the kind.
pub(super) fn items<T: Clone>(
    list: Result<kube::core::ObjectList<T>, kube::Error>,
    what: &str,
) -> Result<Vec<T>, KubeError> {
    match list {
        Ok(list) => Ok(list.items),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(KubeError::of("list", what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_there_is_the_less_often_it_is_looked() {
        let millis = |objects| pause(objects).as_millis();
        assert_eq!(
            [0, 12, 1_000, 2_500, usize::MAX].map(millis),
            [500, 500, 2_000, 5_000, 5_000]
        );
    }
}
