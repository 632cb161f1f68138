//! How far a DaemonSet is, node by node. PURE.
//!
//! The counts in a DaemonSet's status do not tell a node that is down from one that is slow: who waits for them waits until the
//! last node is back. Here a node that is not ready holds nobody up; it is named.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

/// On pods and revisions: which template a pod was made from.
const HASH: &str = "controller-revision-hash";

/// Where a DaemonSet is on the nodes that it wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Its name.
    pub name: String,
    /// Nodes whose pod is of its template, and ready.
    pub done: BTreeSet<String>,
    /// Nodes that are ready and whose pod is not, with how it is.
    pub waiting: BTreeMap<String, Lag>,
    /// The same of nodes that are not ready, with why they are not.
    pub behind: BTreeMap<String, String>,
    /// How many of those its controller counts among the pods that may be unavailable at a time.
    pub stuck: usize,
    /// Nodes that have no pod yet.
    uncovered: usize,
    is_taken_up: bool,
    /// Pods that are ready, and not yet for as long as they have to be.
    fresh: usize,
}

/// What a pod lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lag {
    /// It is of an earlier template, or ending.
    Old,
    /// It is not ready.
    NotReady,
}

/// Looks at the pods of a DaemonSet. All that is given may have more in it than is of this one.
pub fn rollout(
    daemon: &DaemonSet,
    revisions: &[ControllerRevision],
    pods: &[Pod],
    nodes: &[Node],
) -> Rollout {
    let status = daemon.status.clone().unwrap_or_default();
    let uid = daemon.uid().unwrap_or_default();
    let is_ours = |owners: &[_]| {
        let owner =
            |o: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| o.uid == uid;
        owners.iter().any(owner)
    };
    let mut own: Vec<&ControllerRevision> = revisions
        .iter()
        .filter(|r| is_ours(r.owner_references()))
        .collect();
    own.sort_by_key(|r| r.revision);
    let hash = own.last().and_then(|r| r.labels().get(HASH));
    let generation = daemon.metadata.generation.unwrap_or(0);
    let mut seen = Rollout {
        name: daemon.name_any(),
        is_taken_up: status.observed_generation.unwrap_or(0) >= generation,
        ..Rollout::default()
    };
    let mut by_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_ours(pod.owner_references())) {
        by_node.entry(node_of(pod)).or_default().push(pod);
    }
    let mut ready_pods = 0;
    for node in nodes {
        let name = node.name_any();
        let Some(pods) = by_node.get(name.as_str()) else {
            continue;
        };
        let ends = pods.iter().any(|p| p.metadata.deletion_timestamp.is_some());
        let is_new =
            |p: &&&Pod| p.metadata.deletion_timestamp.is_none() && p.labels().get(HASH) == hash;
        let new = pods.iter().find(is_new);
        let is_ready = new.is_some_and(|pod| is_pod_ready(pod));
        ready_pods += usize::from(is_ready);
        let why = unready(node);
        match (&why, new, ends) {
            (_, Some(_), false) if is_ready => drop(seen.done.insert(name)),
            (None, Some(_), false) => drop(seen.waiting.insert(name, Lag::NotReady)),
            (None, _, _) => drop(seen.waiting.insert(name, Lag::Old)),
            (Some(why), new, ends) => {
                seen.stuck += usize::from(ends || new.is_some());
                seen.behind.insert(name, why.clone());
            }
        }
    }
    let count = |number: i32| usize::try_from(number).unwrap_or(0);
    let covered = seen.done.len() + seen.waiting.len() + seen.behind.len();
    seen.uncovered = count(status.desired_number_scheduled).saturating_sub(covered);
    let available = count(status.number_available.unwrap_or(0));
    seen.fresh = ready_pods.saturating_sub(available);
    seen
}

impl Rollout {
    /// One that is ready on its one node `a`, or is not.
    #[cfg(test)]
    pub(super) fn of(name: &str, ready: bool) -> Self {
        let node = "a".to_owned();
        let mut seen = Self {
            name: name.to_owned(),
            is_taken_up: true,
            ..Self::default()
        };
        if ready {
            seen.done.insert(node);
        } else {
            seen.waiting.insert(node, Lag::NotReady);
        }
        seen
    }

    /// Whether its controller has made a pod for each of its nodes.
    pub fn is_covered(&self) -> bool {
        self.is_taken_up && self.uncovered == 0
    }

    /// What it lacks of running on all nodes that are ready, in words; none: nothing.
    pub fn missing(&self) -> Option<String> {
        let name = &self.name;
        if !self.is_taken_up {
            return Some(format!("{name}: the cluster has not taken it up yet"));
        }
        let wanted = self.done.len() + self.waiting.len() + self.uncovered;
        let old = self.waiting.values().filter(|l| **l == Lag::Old).count();
        if old > 0 {
            let updated = wanted - old;
            return Some(format!(
                "{name}: of this version on {updated} of {wanted} nodes"
            ));
        }
        let ready = self.done.len() - self.fresh.min(self.done.len());
        (ready < wanted).then(|| format!("{name}: ready on {ready} of {wanted} nodes"))
    }
}

/// On which node a pod is, or is to be.
pub fn node_of(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let bound = spec.and_then(|spec| spec.node_name.as_deref());
    bound.or_else(|| chosen(pod)).unwrap_or_default()
}

/// The node that a DaemonSet has made a pod for, which no scheduler has bound to it yet.
fn chosen(pod: &Pod) -> Option<&str> {
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required.node_selector_terms.iter();
    let fields = fields.flat_map(|term| term.match_fields.iter().flatten());
    let mut names = fields.filter(|field| field.key == "metadata.name");
    names.next()?.values.as_ref()?.first().map(String::as_str)
}

/// Why a node is not ready; none: it is.
pub fn unready(node: &Node) -> Option<String> {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    let Some(ready) = ready else {
        return Some("its kubelet has said nothing yet".to_owned());
    };
    if ready.status == "True" {
        return None;
    }
    let words = [&ready.message, &ready.reason];
    let words = words.into_iter().flatten().find(|text| !text.is_empty());
    Some(words.map_or_else(
        || "it does not say why".to_owned(),
        |text| text.trim().to_owned(),
    ))
}

/// Whether a pod says that it is ready.
pub(super) fn is_pod_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let mut all = conditions.into_iter().flatten();
    all.any(|c| c.type_ == "Ready" && c.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, ready: bool) -> Node {
        let status = if ready { "True" } else { "Unknown" };
        read(
            json!({"metadata": {"name": name}, "status": {"conditions": [
                {"type": "Ready", "status": status, "message": "Kubelet stopped posting node status."}
            ]}}),
        )
    }

    fn pod(node: &str, hash: &str, ready: bool, ends: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        let ends = ends.then_some("2026-01-01T00:00:00Z");
        read(json!({
            "metadata": {"name": format!("{node}-{hash}"), "labels": {"controller-revision-hash": hash},
                         "deletionTimestamp": ends, "ownerReferences": [owner("set")]},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
    }

    fn owner(uid: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": uid})
    }

    fn look(pods: &[Pod], available: i32, observed: i64) -> Rollout {
        let daemon = read(json!({
            "metadata": {"name": "agent", "uid": "set", "generation": 2},
            "status": {"observedGeneration": observed, "desiredNumberScheduled": 3, "numberAvailable": available,
                       "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": available},
        }));
        let revision = |hash: &str, number: i64, uid: &str| {
            read(
                json!({"metadata": {"name": hash, "labels": {"controller-revision-hash": hash},
                                     "ownerReferences": [owner(uid)]}, "revision": number}),
            )
        };
        let revisions = [
            revision("new", 2, "set"),
            revision("old", 1, "set"),
            revision("other", 9, "another"),
        ];
        let nodes = [node("a", true), node("b", true), node("c", false)];
        rollout(&daemon, &revisions, pods, &nodes)
    }

    #[test]
    fn a_node_that_is_down_holds_nobody_up_and_is_named() {
        let pods = [
            pod("a", "new", true, false),
            pod("b", "new", true, false),
            pod("c", "old", false, true),
        ];
        let seen = look(&pods, 2, 2);
        assert_eq!(seen.missing(), None);
        let why = "Kubelet stopped posting node status.".to_owned();
        assert_eq!(seen.behind, [("c".to_owned(), why)].into());
        assert_eq!((seen.stuck, seen.done.len()), (1, 2));
        // A pod that its controller has not touched takes nobody's place.
        let untouched = pod("c", "old", true, false);
        let seen = look(&[pods[0].clone(), pods[1].clone(), untouched], 3, 2);
        assert_eq!(
            (seen.missing(), seen.stuck, seen.behind.len()),
            (None, 0, 1)
        );
        // One that runs all the same, and is of the new version, is not behind.
        let fine = pod("c", "new", true, false);
        assert!(
            look(&[pods[0].clone(), pods[1].clone(), fine], 3, 2)
                .behind
                .is_empty()
        );
    }

    #[test]
    fn a_pod_that_is_not_bound_is_of_the_node_that_it_was_made_for() {
        let pod: Pod = read(
            json!({"spec": {"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}],
                }]},
            }}}}),
        );
        assert_eq!(node_of(&pod), "c");
    }

    #[test]
    fn nodes_that_are_ready_are_waited_for() {
        let (a, c) = (pod("a", "new", true, false), pod("c", "new", false, false));
        for (b, observed, available, wanted) in [
            (
                vec![pod("b", "new", true, false)],
                1,
                2,
                "agent: the cluster has not taken it up yet",
            ),
            (
                vec![pod("b", "old", true, false)],
                2,
                2,
                "agent: of this version on 1 of 2 nodes",
            ),
            (
                vec![pod("b", "old", true, true)],
                2,
                2,
                "agent: of this version on 1 of 2 nodes",
            ),
            (
                vec![pod("b", "new", false, false)],
                2,
                1,
                "agent: ready on 1 of 2 nodes",
            ),
            (
                vec![pod("b", "new", true, false)],
                2,
                1,
                "agent: ready on 1 of 2 nodes",
            ),
            (vec![], 2, 1, "agent: ready on 1 of 2 nodes"),
        ] {
            let seen = look(
                &[vec![a.clone(), c.clone()], b].concat(),
                available,
                observed,
            );
            assert_eq!(seen.missing().as_deref(), Some(wanted));
        }
    }
}
