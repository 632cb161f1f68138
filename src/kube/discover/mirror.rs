//! What watches say, put together into what is known about one node. PURE.

use std::collections::BTreeMap;

use serde_json::Value;

use super::prefixes::{NodeFacts, PrefixSource, Prefixes, is_of, pod_prefixes};

/// A kind of object that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// The `Node`.
    Node,
    /// The `CiliumNode`.
    CiliumNode,
    /// All `BlockAffinity` objects: their node is no field to select by.
    Affinity,
}

impl Kind {
    /// What must be watched for a source.
    pub(super) fn of(source: PrefixSource) -> &'static [Self] {
        match source {
            PrefixSource::Auto => &[Self::Node, Self::CiliumNode, Self::Affinity],
            PrefixSource::Node | PrefixSource::OvnKubernetes => &[Self::Node],
            PrefixSource::Calico => &[Self::Affinity],
            PrefixSource::Cilium => &[Self::CiliumNode],
            PrefixSource::None => &[],
        }
    }
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// A list begins: what is not in it is gone.
    Begin,
    /// An object of the list.
    Listed(String, Value),
    /// The list is whole.
    Complete,
    /// An object is new or has changed.
    Put(String, Value),
    /// An object is gone.
    Gone(String),
    /// The server does not know this kind.
    Absent,
    /// We may not read it; what was to be done and why it may not be, in words.
    Denied(String),
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Watched {
    known: bool,
    denied: Option<String>,
    objects: BTreeMap<String, Value>,
    filling: Option<BTreeMap<String, Value>>,
}

/// Everything that is known about one node.
#[derive(Debug)]
pub(super) struct Mirror {
    node: String,
    source: PrefixSource,
    /// Whether blocks are known from before.
    remembered: bool,
    kinds: BTreeMap<Kind, Watched>,
}

impl Mirror {
    pub(super) fn new(node: String, source: PrefixSource, remembered: bool) -> Self {
        let kinds = Kind::of(source).iter().map(|k| (*k, Watched::default()));
        Self {
            node,
            source,
            remembered,
            kinds: kinds.collect(),
        }
    }

    /// Takes in what a watch says. While a list comes in anew, after an outage or because the server has forgotten, what was
    /// known before stands: pods do not lose their way because an API server was restarted.
    pub(super) fn apply(&mut self, kind: Kind, change: Change) {
        let node = self.node.clone();
        let Some(watched) = self.kinds.get_mut(&kind) else {
            return;
        };
        let wanted = |object: &Value| kind != Kind::Affinity || is_of(object, &node);
        match change {
            Change::Begin => watched.filling = Some(BTreeMap::new()),
            Change::Listed(name, object) => {
                if wanted(&object) {
                    watched.filling.get_or_insert_default().insert(name, object);
                }
            }
            Change::Complete => {
                watched.objects = watched.filling.take().unwrap_or_default();
                watched.known = true;
                watched.denied = None;
            }
            Change::Put(name, object) => {
                if wanted(&object) {
                    watched.objects.insert(name, object);
                } else {
                    watched.objects.remove(&name);
                }
            }
            Change::Gone(name) => {
                watched.objects.remove(&name);
            }
            Change::Absent => {
                *watched = Watched {
                    known: true,
                    ..Watched::default()
                };
            }
            // What was known before stands.
            Change::Denied(why) => watched.denied = Some(why),
        }
    }

    /// Whether a kind may be left out that was denied before it was seen once. With `auto` a plugin's kind may be of no plugin
    /// that is here, so a node that knows nothing goes by its own blocks; one that remembers blocks keeps those, which may
    /// have come from just that kind.
    fn is_dispensable(&self, kind: Kind) -> bool {
        self.source == PrefixSource::Auto && kind != Kind::Node && !self.remembered
    }

    /// What may not be read, and what the blocks are taken from meanwhile.
    pub(super) fn denials(&self) -> Option<String> {
        let denied = self.kinds.iter();
        let denied: Vec<(Kind, &str, bool)> = denied
            .filter_map(|(kind, w)| Some((*kind, w.denied.as_deref()?, w.known)))
            .collect();
        let whys: Vec<&str> = denied.iter().map(|(_, why, _)| *why).collect();
        let left_out = denied
            .iter()
            .all(|(kind, _, known)| !known && self.is_dispensable(*kind));
        let meanwhile = if left_out {
            "until then this node's own `spec.podCIDRs` count as the blocks of its pods, which is wrong where a plugin has its own"
        } else {
            "until then the blocks of this node's pods stay as they were known last"
        };
        (!whys.is_empty()).then(|| {
            format!(
                "{} (ClusterRole subsea-agent); {meanwhile}",
                whys.join("; ")
            )
        })
    }

    /// The blocks of the node's pods; none before everything that counts has been seen.
    pub(super) fn prefixes(&self) -> Option<Prefixes> {
        let counts = |(kind, watched): (&Kind, &Watched)| {
            watched.known || (watched.denied.is_some() && self.is_dispensable(*kind))
        };
        if !self.kinds.iter().all(counts) {
            return None;
        }
        let of = |kind| self.kinds.get(&kind).map(|w| &w.objects);
        let one = |kind| of(kind).and_then(|objects| objects.get(&self.node).cloned());
        let facts = NodeFacts {
            node: one(Kind::Node),
            cilium_node: one(Kind::CiliumNode),
            affinities: of(Kind::Affinity)
                .map(|objects| objects.values().cloned().collect())
                .unwrap_or_default(),
        };
        Some(pod_prefixes(&self.node, &facts, self.source))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(block: &str) -> Value {
        json!({"metadata": {"name": "a"}, "spec": {"podCIDRs": [block]}})
    }

    fn blocks(mirror: &Mirror) -> Option<String> {
        let cidrs = mirror.prefixes()?.cidrs();
        Some(
            cidrs
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    #[test]
    fn nothing_is_said_before_all_is_known_and_a_new_list_replaces_the_old_at_once() {
        let mut mirror = Mirror::new("a".to_owned(), PrefixSource::Auto, false);
        mirror.apply(Kind::Node, Change::Begin);
        mirror.apply(
            Kind::Node,
            Change::Listed("a".to_owned(), node("10.1.0.0/24")),
        );
        mirror.apply(Kind::Node, Change::Complete);
        assert_eq!(blocks(&mirror), None);
        mirror.apply(Kind::CiliumNode, Change::Absent);
        mirror.apply(Kind::Affinity, Change::Absent);
        assert_eq!(blocks(&mirror).as_deref(), Some("10.1.0.0/24"));

        // An API server that was restarted: begun anew, then cut off, then begun anew.
        mirror.apply(Kind::Node, Change::Begin);
        assert_eq!(blocks(&mirror).as_deref(), Some("10.1.0.0/24"));
        mirror.apply(
            Kind::Node,
            Change::Listed("b".to_owned(), node("10.9.0.0/24")),
        );
        mirror.apply(Kind::Node, Change::Begin);
        mirror.apply(
            Kind::Node,
            Change::Listed("a".to_owned(), node("10.2.0.0/24")),
        );
        assert_eq!(blocks(&mirror).as_deref(), Some("10.1.0.0/24"));
        mirror.apply(Kind::Node, Change::Complete);
        assert_eq!(blocks(&mirror).as_deref(), Some("10.2.0.0/24"));
        mirror.apply(Kind::Node, Change::Put("a".to_owned(), node("10.3.0.0/24")));
        assert_eq!(blocks(&mirror).as_deref(), Some("10.3.0.0/24"));
        mirror.apply(Kind::Node, Change::Gone("a".to_owned()));
        assert_eq!(blocks(&mirror).as_deref(), Some(""));
    }

    #[test]
    fn affinities_of_other_nodes_are_not_kept() {
        let mut mirror = Mirror::new("a".to_owned(), PrefixSource::Calico, false);
        let of = |node: &str, cidr: &str| json!({"metadata": {"name": cidr}, "spec": {"cidr": cidr, "node": node, "deleted": "false"}});
        mirror.apply(Kind::Affinity, Change::Begin);
        for (i, node) in ["a", "b", "a", "c"].iter().enumerate() {
            let cidr = format!("10.0.{i}.0/26");
            mirror.apply(
                Kind::Affinity,
                Change::Listed(cidr.clone(), of(node, &cidr)),
            );
        }
        mirror.apply(Kind::Affinity, Change::Complete);
        assert_eq!(blocks(&mirror).as_deref(), Some("10.0.0.0/26 10.0.2.0/26"));
        assert_eq!(mirror.kinds[&Kind::Affinity].objects.len(), 2);
        // A block that another node takes over.
        mirror.apply(
            Kind::Affinity,
            Change::Put("10.0.2.0/26".to_owned(), of("b", "10.0.2.0/26")),
        );
        assert_eq!(blocks(&mirror).as_deref(), Some("10.0.0.0/26"));
    }

    fn with_node(source: PrefixSource, remembered: bool) -> Mirror {
        let mut mirror = Mirror::new("a".to_owned(), source, remembered);
        let listed = Change::Listed("a".to_owned(), node("10.1.0.0/24"));
        for change in [Change::Begin, listed, Change::Complete] {
            mirror.apply(Kind::Node, change);
        }
        mirror
    }

    #[test]
    fn a_plugins_kind_that_is_denied_is_left_out_by_a_node_that_knows_nothing() {
        let denied = || Change::Denied("may not list ciliumnodes".to_owned());
        let mut mirror = with_node(PrefixSource::Auto, false);
        mirror.apply(Kind::Affinity, Change::Absent);
        mirror.apply(Kind::CiliumNode, denied());
        assert_eq!(blocks(&mirror).as_deref(), Some("10.1.0.0/24"));
        let said = mirror.denials().unwrap();
        assert!(
            said.starts_with("may not list ciliumnodes (ClusterRole subsea-agent); "),
            "{said}"
        );
        assert!(said.contains("`spec.podCIDRs` count"), "{said}");

        // Allowed, and denied again later: what was seen stands.
        let cilium =
            json!({"metadata": {"name": "a"}, "spec": {"ipam": {"podCIDRs": ["10.9.0.0/24"]}}});
        let listed = Change::Listed("a".to_owned(), cilium);
        for change in [Change::Begin, listed, Change::Complete] {
            mirror.apply(Kind::CiliumNode, change);
        }
        assert_eq!(mirror.denials(), None);
        mirror.apply(Kind::CiliumNode, denied());
        assert_eq!(blocks(&mirror).as_deref(), Some("10.9.0.0/24"));
        assert!(
            mirror
                .denials()
                .unwrap()
                .ends_with("stay as they were known last")
        );
    }

    #[test]
    fn one_that_remembers_blocks_or_was_told_the_kind_waits() {
        for (source, remembered) in [(PrefixSource::Auto, true), (PrefixSource::Cilium, false)] {
            let mut mirror = with_node(source, remembered);
            mirror.apply(Kind::Affinity, Change::Absent);
            mirror.apply(Kind::CiliumNode, Change::Denied("no".to_owned()));
            assert_eq!(blocks(&mirror), None);
            assert!(
                mirror
                    .denials()
                    .unwrap()
                    .ends_with("stay as they were known last")
            );
        }
        let mut mirror = Mirror::new("a".to_owned(), PrefixSource::Auto, false);
        mirror.apply(Kind::Node, Change::Denied("no".to_owned()));
        for kind in [Kind::Affinity, Kind::CiliumNode] {
            mirror.apply(kind, Change::Absent);
        }
        assert_eq!(blocks(&mirror), None, "the node's own object is needed");
    }

    #[test]
    fn where_nodes_have_no_blocks_nothing_is_watched() {
        let mirror = Mirror::new("a".to_owned(), PrefixSource::None, false);
        assert_eq!(blocks(&mirror).as_deref(), Some(""));
        assert!(Kind::of(PrefixSource::None).is_empty());
    }
}
