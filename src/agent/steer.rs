//! Which of the cluster's gateways a node sends the traffic for each other cluster to. PURE.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::{ClusterId, NodeName};

use crate::control::feed::Feed;

/// A gateway of our cluster, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Whether it is on this very node.
    pub own: bool,
    /// Whether echo goes both ways between this node and that of the gateway; not looked at for the own one.
    pub reachable: bool,
    /// What it said last of itself; none while no gateway runs there, or none has said anything yet.
    pub feed: Option<Feed>,
}

impl Gateway {
    /// Whether this node's traffic to `cluster` may go to it.
    pub fn carries(&self, cluster: &ClusterId) -> bool {
        self.says(|feed| feed.carries(cluster))
    }

    fn says(&self, what: impl Fn(&Feed) -> bool) -> bool {
        (self.own || self.reachable) && self.feed.as_ref().is_some_and(what)
    }
}

/// The gateways that traffic goes to, by cluster.
pub type Sets = BTreeMap<ClusterId, BTreeSet<NodeName>>;

/// Whether a gateway is among the chosen.
type Choice<'c> = &'c dyn Fn(&NodeName, &Gateway) -> bool;

/// The gateways that carry traffic to each of `clusters`. Where none does, those that drain, then those that are cut off from
/// our own cluster, then those whose paths there work and are held down: they forward all the same. Where none answers, the set of before stays, as far as its gateways
/// still exist: it may be our judgement that is wrong, and a packet has nowhere better to go. Without one of before, all
/// that echo reaches, else all.
pub fn sets<'c>(
    gateways: &BTreeMap<NodeName, Gateway>,
    clusters: impl IntoIterator<Item = &'c ClusterId>,
    before: &Sets,
) -> Sets {
    let those = |keep: Choice<'_>| -> BTreeSet<NodeName> {
        let kept = gateways
            .iter()
            .filter(|(node, gateway)| keep(node, gateway));
        kept.map(|(node, _)| node.clone()).collect()
    };
    let choose = |cluster: &ClusterId| {
        let last = before.get(cluster);
        let reaches = |feed: &Feed| feed.reaches.contains_key(cluster);
        let choices: [Choice<'_>; 7] = [
            &|_, gateway| gateway.carries(cluster),
            // One that would rather not still does: better than one that does not answer.
            &|_, gateway| gateway.says(|feed| reaches(feed) && !feed.inward_dead),
            &|_, gateway| gateway.says(reaches),
            &|_, gateway| gateway.says(|feed| feed.could.contains(cluster)),
            &|node, _| last.is_some_and(|last| last.contains(node)),
            &|_, gateway| gateway.own || gateway.reachable,
            &|_, _| true,
        ];
        let found = choices.into_iter().map(those).find(|set| !set.is_empty());
        found.unwrap_or_default()
    };
    clusters
        .into_iter()
        .map(|cluster| (cluster.clone(), choose(cluster)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(reaches: &[&str]) -> Feed {
        Feed {
            reaches: reaches.iter().map(|c| (c.parse().unwrap(), 1420)).collect(),
            ..Feed::default()
        }
    }

    fn gateways(all: &[(&str, bool, Option<Feed>)]) -> BTreeMap<NodeName, Gateway> {
        all.iter()
            .map(|(node, reachable, feed)| {
                let gateway = Gateway {
                    own: *node == "own",
                    reachable: *reachable,
                    feed: feed.clone(),
                };
                (node.parse().unwrap(), gateway)
            })
            .collect()
    }

    fn chosen(all: &[(&str, bool, Option<Feed>)], before: &[&str]) -> Vec<String> {
        let west: ClusterId = "west".parse().unwrap();
        let last = before.iter().map(|node| node.parse().unwrap()).collect();
        let before = Sets::from([(west.clone(), last)]);
        let sets = sets(&gateways(all), [&west], &before);
        sets[&west].iter().map(ToString::to_string).collect()
    }

    #[test]
    fn traffic_goes_to_those_that_reach_the_cluster_and_are_reached() {
        let west = || Some(feed(&["west"]));
        let drains = || {
            west().map(|f| Feed {
                draining: true,
                ..f
            })
        };
        let alone = || {
            west().map(|f| Feed {
                inward_dead: true,
                ..f
            })
        };
        for (all, want) in [
            (vec![("a", true, west()), ("b", true, west())], "a b"),
            (vec![("a", true, west()), ("b", false, west())], "a"),
            (
                vec![("a", true, Some(feed(&["north"]))), ("b", true, west())],
                "b",
            ),
            (vec![("a", true, drains()), ("b", true, west())], "b"),
            (vec![("a", true, alone()), ("b", true, west())], "b"),
            (vec![("a", true, None), ("b", true, west())], "b"),
            (vec![("own", false, west()), ("b", true, west())], "b own"),
            (vec![("own", false, None), ("b", true, west())], "b"),
        ] {
            assert_eq!(chosen(&all, &["z"]).join(" "), want, "{all:?}");
        }
    }

    #[test]
    fn if_all_look_dead_the_last_good_ones_stay() {
        let dead = [("a", false, None), ("b", false, Some(feed(&["west"])))];
        assert_eq!(chosen(&dead, &["b"]), ["b"]);
        let drains = Feed {
            draining: true,
            ..feed(&["west"])
        };
        let last = [
            ("a", true, Some(drains)),
            ("b", false, Some(feed(&["west"]))),
        ];
        assert_eq!(chosen(&last, &["b"]), ["a"], "it still forwards");
        let held = Feed {
            could: ["west".parse().unwrap()].into(),
            ..feed(&[])
        };
        let last = [("a", true, Some(held)), ("b", false, Some(feed(&["west"])))];
        assert_eq!(
            chosen(&last, &["b"]),
            ["a"],
            "its paths work again, and are held down"
        );
        assert_eq!(chosen(&dead, &["gone"]), ["a", "b"]);
        assert_eq!(chosen(&[("a", true, None), ("b", false, None)], &[]), ["a"]);
        assert!(chosen(&[], &["a"]).is_empty());
    }
}
