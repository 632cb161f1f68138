//! The nodes: their addresses, and the blocks that they have of pods' addresses. PURE.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;
use subsea_api::Cidr;

use super::facts::{Facts, text, texts};
use super::prefixes::{NodeFacts, PrefixSource, pod_prefixes};
use super::query::Query;
use crate::kube::cni::Cni;

/// A node, as far as blocks and addresses go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`s.
    pub addresses: Vec<IpAddr>,
    /// Its `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
}

/// The nodes, by name.
pub(super) fn nodes(facts: &Facts) -> Vec<Node> {
    let mut all: Vec<Node> = facts.objects(Query::Nodes).iter().map(node).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn node(object: &Value) -> Node {
    let addresses = object
        .pointer("/status/addresses")
        .and_then(Value::as_array);
    let internal = |a: &&Value| text(a, "/type") == Some("InternalIP");
    Node {
        name: text(object, "/metadata/name").unwrap_or("?").to_owned(),
        addresses: addresses
            .into_iter()
            .flatten()
            .filter(internal)
            .filter_map(|a| text(a, "/address")?.parse().ok())
            .collect(),
        pod_cidrs: node_blocks(object),
    }
}

/// A node's own blocks. The older field is the first of the newer list.
pub(super) fn node_blocks(object: &Value) -> Vec<Cidr> {
    let mut all = texts(object, "/spec/podCIDRs");
    if all.is_empty() {
        all.extend(text(object, "/spec/podCIDR"));
    }
    all.iter().filter_map(|c| c.parse().ok()).collect()
}

/// The blocks that nodes have, where pods' addresses come out of them: the nodes' own, or those that Cilium gave to them.
pub(super) fn pod_evidence(facts: &Facts, nodes: &[Node], plugins: &[Cni]) -> Vec<(Cidr, String)> {
    let main = plugins.iter().find(|p| p.gives_addresses());
    if matches!(main, Some(Cni::Cilium(it)) if it.ipam != "kubernetes") {
        return cilium_evidence(facts);
    }
    if main.and_then(Cni::uses_node_blocks) == Some(false) {
        return Vec::new();
    }
    let of = |n: &Node| -> Vec<(Cidr, String)> {
        let name = format!("node {}", n.name);
        n.pod_cidrs.iter().map(|c| (*c, name.clone())).collect()
    };
    nodes.iter().flat_map(of).collect()
}

fn cilium_evidence(facts: &Facts) -> Vec<(Cidr, String)> {
    let mut all = Vec::new();
    for object in facts.objects(Query::CiliumNodes) {
        let name = text(object, "/metadata/name").unwrap_or("?");
        let own = NodeFacts {
            cilium_node: Some(object.clone()),
            ..NodeFacts::default()
        };
        let prefixes = pod_prefixes(name, &own, PrefixSource::Cilium);
        let holder = format!("CiliumNode {name}");
        all.extend(prefixes.cidrs().into_iter().map(|c| (c, holder.clone())));
    }
    all
}
