//! From how the paths are to which gateways of each cluster carry its flows. PURE.
//!
//! All usable gateways of a cluster share its flows. Where none is usable, what is second best is used rather than
//! nothing, in this order:
//!
//! 1. those that work but are held down, or work but drain: held down and willing before draining before inward-dead;
//! 2. those that were in use last, the last good ones: the next packet tells as well as any probe that they are back;
//! 3. all, where none ever worked.
//!
//! So a flow goes to a path that is known to be dead only where every path to that cluster is.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::ClusterId;

use super::echo::Flags;
use super::mesh::PathId;

/// How a path is, as far as steering cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// It should carry traffic.
    pub usable: bool,
    /// Packets pass.
    pub works: bool,
    /// What its gateway says of itself.
    pub flags: Flags,
}

impl Sight {
    /// Of a stock peer, which says nothing and is judged otherwise.
    pub fn stock(works: bool) -> Self {
        Self {
            usable: works,
            works,
            flags: Flags::default(),
        }
    }

    /// How good it is: the best of a cluster are used.
    fn rank(self) -> Rank {
        match (self.works, self.usable, self.flags) {
            (false, ..) => Rank::Dead,
            (true, true, _) => Rank::Usable,
            (true, false, flags) if flags.inward_dead => Rank::InwardDead,
            (true, false, flags) if flags.draining => Rank::Draining,
            (true, false, _) => Rank::HeldDown,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Dead,
    InwardDead,
    Draining,
    HeldDown,
    Usable,
}

/// Which gateways carry flows now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steering {
    /// Them. There is at least one for each cluster that has any.
    pub in_use: BTreeSet<PathId>,
    /// The clusters that are reached through us: a gateway of theirs is usable. One that is held down does not count: who
    /// chooses among the gateways of our own cluster would switch to us and away again as it flaps.
    pub reached: BTreeSet<ClusterId>,
    /// The others that packets get to all the same: a gateway of theirs works.
    pub could: BTreeSet<ClusterId>,
}

/// Decides. `before` is what was in use until now.
pub fn steer(paths: &BTreeMap<PathId, Sight>, before: &BTreeSet<PathId>) -> Steering {
    let mut clusters: BTreeMap<&ClusterId, Vec<(&PathId, Rank)>> = BTreeMap::new();
    for (id, sight) in paths {
        let of_cluster = clusters.entry(&id.cluster).or_default();
        of_cluster.push((id, sight.rank()));
    }
    let mut steering = Steering::default();
    for (cluster, gateways) in clusters {
        let best = gateways.iter().map(|(_, rank)| *rank).max();
        let best = best.unwrap_or(Rank::Dead);
        if best == Rank::Usable {
            steering.reached.insert(cluster.clone());
        } else if best > Rank::Dead {
            steering.could.insert(cluster.clone());
        }
        let last_good = gateways.iter().any(|(id, _)| before.contains(*id));
        let chosen = gateways.iter().filter(|(id, rank)| {
            *rank == best && (best > Rank::Dead || !last_good || before.contains(*id))
        });
        steering.in_use.extend(chosen.map(|(id, _)| (*id).clone()));
    }
    steering
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> PathId {
        let (cluster, node) = text.split_once('/').unwrap();
        PathId {
            cluster: cluster.parse().unwrap(),
            node: node.parse().unwrap(),
        }
    }

    fn set(ids: &[&str]) -> BTreeSet<PathId> {
        ids.iter().map(|text| id(text)).collect()
    }

    const DEAD: Sight = Sight {
        usable: false,
        works: false,
        flags: Flags {
            draining: false,
            inward_dead: false,
        },
    };
    const HELD: Sight = Sight {
        works: true,
        ..DEAD
    };
    const GOOD: Sight = Sight {
        usable: true,
        ..HELD
    };
    const DRAINS: Sight = Sight {
        flags: Flags {
            draining: true,
            inward_dead: false,
        },
        ..HELD
    };
    const CUT_OFF: Sight = Sight {
        flags: Flags {
            draining: true,
            inward_dead: true,
        },
        ..HELD
    };

    fn of(paths: &[(&str, Sight)], before: &[&str]) -> (BTreeSet<PathId>, bool) {
        let paths = paths.iter().map(|(text, sight)| (id(text), *sight));
        let steering = steer(&paths.collect(), &set(before));
        (steering.in_use, !steering.reached.is_empty())
    }

    #[test]
    fn what_packets_get_to_all_the_same_is_told_apart() {
        let could = |sight| {
            let steering = steer(&[(id("w/a"), sight)].into(), &BTreeSet::new());
            (steering.reached.len(), steering.could.len())
        };
        assert_eq!(could(GOOD), (1, 0));
        assert_eq!(could(HELD), (0, 1));
        assert_eq!(could(DRAINS), (0, 1));
        assert_eq!(could(DEAD), (0, 0));
    }

    #[test]
    fn the_best_are_used() {
        type Case<'a> = (&'a [(&'a str, Sight)], &'a [&'a str], bool);
        let cases: [Case<'_>; 6] = [
            (&[("w/a", GOOD), ("w/b", GOOD)], &["w/a", "w/b"], true),
            (
                &[("w/a", GOOD), ("w/b", HELD), ("w/c", DEAD)],
                &["w/a"],
                true,
            ),
            (&[("w/a", DRAINS), ("w/b", GOOD)], &["w/b"], true),
            (&[("w/a", DRAINS), ("w/b", HELD)], &["w/b"], false),
            (&[("w/a", DRAINS), ("w/b", CUT_OFF)], &["w/a"], false),
            (&[("w/a", DEAD), ("w/b", CUT_OFF)], &["w/b"], false),
        ];
        for (paths, wanted, reached) in cases {
            assert_eq!(of(paths, &["w/a"]), (set(wanted), reached), "{paths:?}");
        }
    }

    #[test]
    fn if_all_look_dead_the_last_good_ones_are_kept() {
        let dead = [("w/a", DEAD), ("w/b", DEAD), ("x/a", GOOD)];
        assert_eq!(of(&dead, &["w/b", "x/a"]), (set(&["w/b", "x/a"]), true));
        assert_eq!(
            of(&dead, &[]).0,
            set(&["w/a", "w/b", "x/a"]),
            "never worked"
        );
        assert_eq!(of(&dead, &["w/gone"]).0, set(&["w/a", "w/b", "x/a"]));
    }

    fn sight() -> impl Strategy<Value = Sight> {
        prop::sample::select(vec![DEAD, HELD, GOOD, DRAINS, CUT_OFF])
    }

    proptest! {
        #[test]
        fn no_flow_goes_to_a_dead_path_while_another_works(
            paths in proptest::collection::btree_map((0_u8..4, 0_u8..4), sight(), 1..16),
            before in proptest::collection::btree_set((0_u8..4, 0_u8..4), 0..8),
        ) {
            let name = |(cluster, node): (u8, u8)| id(&format!("c{cluster}/n{node}"));
            let paths: BTreeMap<_, _> = paths.into_iter().map(|(at, sight)| (name(at), sight)).collect();
            let before = before.into_iter().map(name).collect();
            let steering = steer(&paths, &before);
            for id in paths.keys() {
                let gateways = || paths.iter().filter(|(other, _)| other.cluster == id.cluster);
                let used: Vec<_> = gateways().filter(|(id, _)| steering.in_use.contains(id)).collect();
                prop_assert!(!used.is_empty());
                let works = gateways().any(|(_, sight)| sight.works);
                prop_assert!(used.iter().all(|(_, sight)| sight.works == works));
                let usable = gateways().any(|(_, sight)| sight.usable);
                prop_assert!(used.iter().all(|(_, sight)| sight.usable == usable));
                if usable {
                    prop_assert_eq!(used.len(), gateways().filter(|(_, sight)| sight.usable).count());
                }
            }
            prop_assert!(steering.in_use.iter().all(|id| paths.contains_key(id)));
            prop_assert_eq!(&steer(&paths, &steering.in_use), &steering, "it stays so");
        }
    }
}
