//! Which nodes are to be gateways. PURE.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::labels;

/// So many are labelled where the operator labelled none: one that fails leaves another.
const WANTED: usize = 2;
const ZONE: &str = "topology.kubernetes.io/zone";
const CONTROL_PLANE: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// The gateways of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Nodes that have the label.
    pub labelled: Vec<String>,
    /// Nodes that are to get it, because none has it.
    pub to_label: Vec<String>,
}

impl Choice {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.labelled.iter().chain(&self.to_label)
    }
}

/// Takes the nodes that are labelled. Where none is, takes two that are ready: those that can be reached from outside first, workers
/// before control planes, and from two zones where there are several.
pub fn choose(nodes: &[Node]) -> Choice {
    let labelled: Vec<String> = nodes
        .iter()
        .filter(|node| {
            node.labels()
                .get(labels::GATEWAY)
                .is_some_and(|v| v == "true")
        })
        .map(kube::ResourceExt::name_any)
        .collect();
    if !labelled.is_empty() {
        return Choice {
            labelled,
            ..Choice::default()
        };
    }
    let mut fit: Vec<&Node> = nodes.iter().filter(|node| is_fit(node)).collect();
    fit.sort_by_key(|node| (is_control_plane(node), !is_outside(node), node.name_any()));
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    // A second one of a zone only where there is no other zone.
    for may_share in [false, true] {
        for node in &fit {
            let zone = node.labels().get(ZONE).map_or("", String::as_str);
            let shares = taken.values().any(|other| *other == zone);
            if taken.len() < WANTED && (may_share || !shares) {
                taken.entry(node.name_any()).or_insert(zone);
            }
        }
    }
    Choice {
        to_label: taken.into_keys().collect(),
        ..Choice::default()
    }
}

fn is_fit(node: &Node) -> bool {
    let linux = node
        .labels()
        .get("kubernetes.io/os")
        .is_none_or(|os| os == "linux");
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    // An operator who wrote `false` means it.
    let asked = node.labels().contains_key(labels::GATEWAY);
    linux && ready && !cordoned && !asked && node.metadata.deletion_timestamp.is_none()
}

fn is_control_plane(node: &Node) -> bool {
    CONTROL_PLANE
        .iter()
        .any(|label| node.labels().contains_key(*label))
}

fn is_outside(node: &Node) -> bool {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    addresses
        .into_iter()
        .flatten()
        .any(|address| address.type_ == "ExternalIP")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, labels: &[(&str, &str)], external: bool, ready: bool) -> Node {
        let mut all = json!({"kubernetes.io/os": "linux"});
        for (key, value) in labels {
            all[*key] = json!(value);
        }
        let kind = if external { "ExternalIP" } else { "InternalIP" };
        let ready = if ready { "True" } else { "Unknown" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": all},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": kind, "address": "192.0.2.1"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_the_operator_labelled_is_taken() {
        let label = [(labels::GATEWAY, "true")];
        let nodes = [
            node("a", &[], true, true),
            node("b", &label, false, false),
            node("c", &[(labels::GATEWAY, "false")], true, true),
        ];
        let choice = choose(&nodes);
        assert_eq!(choice.labelled, ["b"]);
        assert!(choice.to_label.is_empty());
    }

    #[test]
    fn else_two_that_are_ready_reachable_workers_of_two_zones() {
        let zone = |zone| [(ZONE, zone)];
        let nodes = [
            node("a", &[(CONTROL_PLANE[0], "")], true, true),
            node("b", &zone("1"), false, true),
            node("c", &zone("1"), true, true),
            node("d", &zone("1"), true, true),
            node("e", &zone("2"), false, true),
            node("f", &zone("3"), true, false),
        ];
        assert_eq!(choose(&nodes).to_label, ["c", "e"]);
        assert_eq!(choose(&nodes[1..4]).to_label, ["c", "d"]);
        assert_eq!(choose(&nodes[..1]).to_label, ["a"]);
        assert!(choose(&nodes[5..]).to_label.is_empty());
    }
}
