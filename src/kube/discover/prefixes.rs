//! The blocks of one node's pods, as its network plugin gives them. PURE.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use subsea_api::Cidr;

use super::facts::{text, texts};
use super::found::{Claims, Found, Note, Rank, Source};
use super::nodes::node_blocks;

/// Who gives a node the blocks of its pods. A join writes it into the agents' settings (`Discovered::prefix_source`), so that
/// they ask the API server for that alone, and what an earlier plugin left over does not mislead them.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixSource {
    /// Whatever there is: OVN-Kubernetes' annotation, else Cilium's node, else Calico's blocks, else the node's own.
    #[default]
    Auto,
    /// `Node.spec.podCIDRs`.
    Node,
    /// Calico's block affinities.
    Calico,
    /// `CiliumNode.spec.ipam`.
    Cilium,
    /// The node's annotation `k8s.ovn.org/node-subnets`.
    OvnKubernetes,
    /// Nobody: pods' addresses come out of subnets that are no node's.
    None,
}

impl PrefixSource {
    const ALL: [(Self, &str); 6] = [
        (Self::Auto, "auto"),
        (Self::Node, "node"),
        (Self::Calico, "calico"),
        (Self::Cilium, "cilium"),
        (Self::OvnKubernetes, "ovn-kubernetes"),
        (Self::None, "none"),
    ];
}

impl fmt::Display for PrefixSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL
            .iter()
            .find(|(s, _)| s == self)
            .map_or("", |(_, n)| n);
        f.pad(name)
    }
}

impl FromStr for PrefixSource {
    type Err = String;
    fn from_str(given: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == given);
        found.map(|(source, _)| *source).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("write one of {}", names.join(", "))
        })
    }
}

/// The objects that say something about one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    /// The `Node`.
    pub node: Option<Value>,
    /// The `CiliumNode`.
    pub cilium_node: Option<Value>,
    /// Calico's `BlockAffinity` objects, of any node.
    pub affinities: Vec<Value>,
}

/// The blocks of one node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// The blocks, with where they were found.
    pub blocks: Vec<Found>,
    /// What is to be said about them.
    pub notes: Vec<Note>,
}

impl Prefixes {
    /// The blocks alone, in order, each once.
    pub fn cidrs(&self) -> Vec<Cidr> {
        let mut all: Vec<Cidr> = self.blocks.iter().map(|f| f.cidr).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// The annotation in which OVN-Kubernetes keeps a node's subnets of each network.
const OVN_SUBNETS: &str = "/metadata/annotations/k8s.ovn.org~1node-subnets";

/// The blocks of `node`'s pods.
///
/// A block that goes (`pendingDeletion`) still has pods and counts until it is gone. With Calico a node whose blocks are full
/// borrows single addresses of other nodes' blocks, which are not among these.
pub fn pod_prefixes(node: &str, facts: &NodeFacts, source: PrefixSource) -> Prefixes {
    match source {
        PrefixSource::Node => of_node(node, facts),
        PrefixSource::Calico => of_calico(node, facts),
        PrefixSource::Cilium => of_cilium(node, facts),
        PrefixSource::OvnKubernetes => of_ovn(node, facts),
        PrefixSource::None => Prefixes {
            blocks: Vec::new(),
            notes: vec![Note::info(
                "pods' addresses come out of subnets that are no node's: replies to them go by the network's own routes",
            )],
        },
        PrefixSource::Auto => {
            let mut notes = Vec::new();
            for of in [of_ovn, of_cilium, of_calico, of_node] {
                let found = of(node, facts);
                notes.extend(found.notes);
                if !found.blocks.is_empty() {
                    return Prefixes {
                        blocks: found.blocks,
                        notes,
                    };
                }
            }
            Prefixes {
                blocks: Vec::new(),
                notes,
            }
        }
    }
}

fn of_node(node: &str, facts: &NodeFacts) -> Prefixes {
    let place = format!("Node {node}, spec.podCIDRs");
    let from = Source::new(Rank::Allocator, place);
    let cidrs = facts.node.iter().flat_map(node_blocks);
    let blocks = cidrs.map(|cidr| Found {
        cidr,
        from: from.clone(),
    });
    Prefixes {
        blocks: blocks.collect(),
        notes: Vec::new(),
    }
}

fn of_calico(node: &str, facts: &NodeFacts) -> Prefixes {
    let mut claims = Claims::default();
    for affinity in facts.affinities.iter().filter(|a| is_of(a, node)) {
        let name = text(affinity, "/metadata/name").unwrap_or("?");
        let cidr = text(affinity, "/spec/cidr").unwrap_or_default();
        claims.pods(
            Rank::Allocator,
            &format!("BlockAffinity {name}, spec.cidr"),
            cidr,
        );
    }
    from(claims)
}

/// Whether an affinity is of this node and in force. `deleted` is a text.
pub(super) fn is_of(affinity: &Value, node: &str) -> bool {
    let gone = text(affinity, "/spec/deleted") == Some("true");
    // Blocks for load balancers belong to no host, but may name one.
    let host = text(affinity, "/spec/type").is_none_or(|kind| kind.is_empty() || kind == "host");
    !gone && host && text(affinity, "/spec/node") == Some(node)
}

fn of_cilium(node: &str, facts: &NodeFacts) -> Prefixes {
    let mut claims = Claims::default();
    let Some(object) = &facts.cilium_node else {
        return Prefixes::default();
    };
    let list = texts(object, "/spec/ipam/podCIDRs").join(",");
    claims.pods(
        Rank::Allocator,
        &format!("CiliumNode {node}, spec.ipam.podCIDRs"),
        &list,
    );
    let pools = object
        .pointer("/spec/ipam/pools/allocated")
        .and_then(Value::as_array);
    for pool in pools.into_iter().flatten() {
        let name = text(pool, "/pool").unwrap_or("?");
        let place = format!("CiliumNode {node}, spec.ipam.pools, pool {name}");
        claims.pods(Rank::Allocator, &place, &texts(pool, "/cidrs").join(","));
    }
    from(claims)
}

fn of_ovn(node: &str, facts: &NodeFacts) -> Prefixes {
    let Some(annotation) = facts.node.as_ref().and_then(|n| text(n, OVN_SUBNETS)) else {
        return Prefixes::default();
    };
    let mut claims = Claims::default();
    let place = format!("Node {node}, annotation k8s.ovn.org/node-subnets");
    match serde_json::from_str::<BTreeMap<String, OneOrMany>>(annotation) {
        // Other networks than the default one are not Subsea's.
        Ok(networks) => match networks.get("default") {
            Some(OneOrMany::One(one)) => claims.pods(Rank::Allocator, &place, one),
            Some(OneOrMany::Many(many)) => claims.pods(Rank::Allocator, &place, &many.join(",")),
            None => {}
        },
        Err(error) => claims.notes.push(Note::warning(format!(
            "{place} could not be understood: {error}"
        ))),
    }
    from(claims)
}

/// Older versions write one text for a single-stack node.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn from(claims: Claims) -> Prefixes {
    Prefixes {
        blocks: claims.pod,
        notes: claims.notes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts() -> NodeFacts {
        let affinity = |name: &str, spec: Value| json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity", "metadata": {"name": name}, "spec": spec});
        NodeFacts {
            node: Some(json!({
                "metadata": {"name": "a", "annotations": {}},
                "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
            })),
            cilium_node: Some(json!({"metadata": {"name": "a"}, "spec": {"ipam": {
                "podCIDRs": ["10.0.2.0/24"],
                "pools": {"allocated": [{"pool": "blue", "cidrs": ["10.10.0.0/27", "10.10.0.32/27"]}], "requested": []},
            }}})),
            affinities: vec![
                affinity(
                    "a-192-168-18-64-26",
                    json!({"cidr": "192.168.18.64/26", "deleted": "false", "node": "a", "state": "confirmed"}),
                ),
                affinity(
                    "a-192-168-18-128-26",
                    json!({"cidr": "192.168.18.128/26", "deleted": "false", "node": "a", "state": "pendingDeletion", "type": "host"}),
                ),
                affinity(
                    "a-192-168-19-0-26",
                    json!({"cidr": "192.168.19.0/26", "deleted": "true", "node": "a", "state": "pendingDeletion"}),
                ),
                affinity(
                    "b-192-168-20-0-26",
                    json!({"cidr": "192.168.20.0/26", "deleted": "false", "node": "b", "state": "confirmed"}),
                ),
                affinity(
                    "lb",
                    json!({"cidr": "203.0.113.0/26", "deleted": "false", "node": "a", "state": "confirmed", "type": "virtual"}),
                ),
            ],
        }
    }

    fn cidrs(facts: &NodeFacts, source: PrefixSource) -> String {
        let all: Vec<String> = pod_prefixes("a", facts, source)
            .cidrs()
            .iter()
            .map(Cidr::to_string)
            .collect();
        all.join(" ")
    }

    #[test]
    fn each_plugin_says_it_in_its_own_way() {
        let mut facts = facts();
        assert_eq!(
            cidrs(&facts, PrefixSource::Node),
            "10.244.1.0/24 fd00:10:244:1::/64"
        );
        assert_eq!(
            cidrs(&facts, PrefixSource::Calico),
            "192.168.18.64/26 192.168.18.128/26"
        );
        assert_eq!(
            cidrs(&facts, PrefixSource::Cilium),
            "10.0.2.0/24 10.10.0.0/27 10.10.0.32/27"
        );
        assert_eq!(cidrs(&facts, PrefixSource::OvnKubernetes), "");
        assert_eq!(cidrs(&facts, PrefixSource::None), "");
        for (written, read) in [
            (r#"{"default":"10.128.0.0/23"}"#, "10.128.0.0/23"),
            (
                r#"{"default":["10.128.0.0/23","fd01:0:0:1::/64"],"blue":["10.9.0.0/24"]}"#,
                "10.128.0.0/23 fd01:0:0:1::/64",
            ),
            (r#"{"blue":["10.9.0.0/24"]}"#, ""),
        ] {
            facts.node.as_mut().unwrap()["metadata"]["annotations"] =
                json!({"k8s.ovn.org/node-subnets": written});
            assert_eq!(cidrs(&facts, PrefixSource::OvnKubernetes), read);
        }
        facts.node.as_mut().unwrap()["metadata"]["annotations"] =
            json!({"k8s.ovn.org/node-subnets": "[1]"});
        let odd = pod_prefixes("a", &facts, PrefixSource::OvnKubernetes);
        assert!(odd.blocks.is_empty() && odd.notes.len() == 1);
    }

    #[test]
    fn auto_takes_the_first_that_says_something() {
        let mut facts = facts();
        assert_eq!(
            cidrs(&facts, PrefixSource::Auto),
            cidrs(&facts, PrefixSource::Cilium)
        );
        facts.cilium_node = Some(json!({"metadata": {"name": "a"}, "spec": {"ipam": {}}}));
        assert_eq!(
            cidrs(&facts, PrefixSource::Auto),
            cidrs(&facts, PrefixSource::Calico)
        );
        facts.affinities.clear();
        assert_eq!(
            cidrs(&facts, PrefixSource::Auto),
            cidrs(&facts, PrefixSource::Node)
        );
        // A control plane older than lists.
        facts.node = Some(json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.9.0/24"}}));
        assert_eq!(cidrs(&facts, PrefixSource::Auto), "10.244.9.0/24");
        facts.node = None;
        assert_eq!(cidrs(&facts, PrefixSource::Auto), "");
    }

    #[test]
    fn a_source_survives_its_text_form() {
        for (source, name) in PrefixSource::ALL {
            assert_eq!(source.to_string(), name);
            assert_eq!(name.parse(), Ok(source));
            assert_eq!(serde_json::to_value(source).unwrap(), name);
        }
        assert!("flannel".parse::<PrefixSource>().is_err());
    }
}
