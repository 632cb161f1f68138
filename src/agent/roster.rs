//! Which nodes there are behind a gateway's node, and which blocks each of them has. PURE; times are for people, for they
//! survive a restart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, NodeName, UnixMillis};

/// A node that has not been heard of for so long is forgotten.
pub const KEEP: Duration = Duration::from_mins(10);
/// The most nodes of a cluster.
pub const MAX_NODES: usize = 8192;

/// A node as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its address on the nodes' network: where its session came from.
    pub address: IpAddr,
    /// The blocks of its pods.
    pub prefixes: Vec<Cidr>,
    /// When it was last heard.
    pub seen: UnixMillis,
}

/// The nodes, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roster {
    nodes: BTreeMap<NodeName, Node>,
}

/// Why an announced block is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is none of the cluster's pod blocks.
    #[error(
        "{prefix} of node {node} is in no pod block of this cluster: is `--pod-cidr` of its agent right?"
    )]
    Foreign {
        /// The node.
        node: NodeName,
        /// The block.
        prefix: Cidr,
    },
    /// Another node has it.
    #[error(
        "{prefix} of node {node} overlaps {other_prefix} of node {other}: one of the two is wrong, and {other} keeps it"
    )]
    Taken {
        /// The node.
        node: NodeName,
        /// The block.
        prefix: Cidr,
        /// Who has it.
        other: NodeName,
        /// What that one has.
        other_prefix: Cidr,
    },
    /// There are too many nodes.
    #[error("node {node} is left out: there are {MAX_NODES} nodes already")]
    Full {
        /// The node.
        node: NodeName,
    },
}

impl Roster {
    /// The nodes, by name.
    pub fn nodes(&self) -> &BTreeMap<NodeName, Node> {
        &self.nodes
    }

    /// The address of a node and the blocks that it has: a copy, to see what changes.
    pub fn place(&self, node: &NodeName) -> Option<(IpAddr, Vec<Cidr>)> {
        let node = self.nodes.get(node)?;
        Some((node.address, node.prefixes.clone()))
    }

    /// Takes what a node says of itself, as far as the cluster's pod blocks `pods` and the other nodes allow.
    pub fn admit(
        &mut self,
        node: &NodeName,
        address: IpAddr,
        announced: &[Cidr],
        pods: &[Cidr],
        now: UnixMillis,
    ) -> Vec<Refused> {
        if !self.nodes.contains_key(node) && self.nodes.len() >= MAX_NODES {
            return vec![Refused::Full { node: node.clone() }];
        }
        let mut refused = Vec::new();
        let mut prefixes: Vec<Cidr> = Vec::new();
        for prefix in announced.iter().copied() {
            if !pods.iter().any(|block| block.covers(prefix)) {
                let node = node.clone();
                refused.push(Refused::Foreign { node, prefix });
                continue;
            }
            let others = self.nodes.iter().filter(|(name, _)| *name != node);
            let taken = others
                .flat_map(|(name, other)| other.prefixes.iter().map(move |have| (name, *have)))
                .find(|(_, have)| have.covers(prefix) || prefix.covers(*have));
            match taken {
                Some((other, other_prefix)) => refused.push(Refused::Taken {
                    node: node.clone(),
                    prefix,
                    other: other.clone(),
                    other_prefix,
                }),
                None if prefixes.contains(&prefix) => {}
                None => prefixes.push(prefix),
            }
        }
        prefixes.sort_unstable();
        // An address moves with its node: who has it now has it alone.
        self.nodes
            .retain(|name, other| name == node || other.address != address);
        let seen = now;
        let entry = Node {
            address,
            prefixes,
            seen,
        };
        self.nodes.insert(node.clone(), entry);
        refused
    }

    /// Notes that a node lives.
    pub fn hear(&mut self, node: &NodeName, now: UnixMillis) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.seen = now;
        }
    }

    /// Forgets who was silent for [`KEEP`]; true when somebody was. A time from before a clock was set back counts as now.
    pub fn forget(&mut self, now: UnixMillis) -> bool {
        let before = self.nodes.len();
        for node in self.nodes.values_mut() {
            node.seen = node.seen.min(now);
        }
        self.nodes.retain(|_, node| now.since(node.seen) < KEEP);
        self.nodes.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn blocks(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn admit(roster: &mut Roster, node: &str, address: &str, announced: &[&str]) -> Vec<String> {
        let pods = blocks(&["10.32.0.0/16", "fd00:32::/48"]);
        let address = address.parse().unwrap();
        let announced = blocks(announced);
        let refused = roster.admit(&name(node), address, &announced, &pods, UnixMillis(7));
        refused.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_gets_what_is_the_clusters_and_nobody_elses() {
        let mut roster = Roster::default();
        let first = ["10.32.1.0/24", "fd00:32:0:1::/64", "10.32.1.0/24"];
        assert!(admit(&mut roster, "n-1", "192.0.2.1", &first).is_empty());
        let refused = admit(
            &mut roster,
            "n-2",
            "192.0.2.2",
            &[
                "10.32.1.128/25",
                "10.40.0.0/24",
                "10.32.2.0/24",
                "10.0.0.0/8",
            ],
        );
        assert_eq!(refused.len(), 3, "{refused:?}");
        assert!(refused[0].contains("overlaps 10.32.1.0/24 of node n-1"));
        assert!(refused[1].contains("in no pod block"));
        assert_eq!(
            roster.nodes()[&name("n-1")].prefixes,
            blocks(&["10.32.1.0/24", "fd00:32:0:1::/64"])
        );
        assert_eq!(
            roster.nodes()[&name("n-2")].prefixes,
            blocks(&["10.32.2.0/24"])
        );
        // A node may change its mind, and a new node may have the address of one that is gone.
        assert!(admit(&mut roster, "n-1", "192.0.2.2", &["10.32.3.0/24"]).is_empty());
        assert_eq!(roster.nodes().len(), 1);
    }

    #[test]
    fn who_is_silent_is_forgotten_and_a_clock_set_back_forgets_nobody() {
        let mut roster = Roster::default();
        admit(&mut roster, "n-1", "192.0.2.1", &[]);
        roster.hear(&name("n-1"), UnixMillis(10_000_000));
        roster.hear(&name("nobody"), UnixMillis(1));
        assert!(!roster.forget(UnixMillis(1_000)));
        assert!(!roster.forget(UnixMillis(1_000).plus(KEEP / 2)));
        assert!(roster.forget(UnixMillis(1_000).plus(KEEP)));
        assert!(roster.nodes().is_empty());
    }

    #[test]
    fn it_survives_as_json() {
        let mut roster = Roster::default();
        admit(&mut roster, "n-1", "192.0.2.1", &["10.32.1.0/24"]);
        let text = serde_json::to_string(&roster).unwrap();
        assert_eq!(serde_json::from_str::<Roster>(&text).unwrap(), roster);
    }
}
