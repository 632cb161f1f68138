//! Next hops and groups: what must be made before routes can lead to them, and what goes after. PURE.

use std::collections::BTreeSet;

use crate::host::desired::Desired;
use crate::net::netlink::change::Change;
use crate::net::netlink::nexthop::{Group, Held, Resilient};
use crate::net::netlink::types::Observed;

/// What becomes of next hops and groups.
#[derive(Debug, Default)]
pub(super) struct NextHops {
    /// Before the routes: next hops first, then groups.
    pub(super) puts: Vec<Change>,
    /// After the routes, the other way round.
    pub(super) unwanted: Vec<Change>,
    /// What routes can lead to, once `puts` are made.
    pub(super) possible: BTreeSet<u32>,
    /// What is taken away and made anew: routes to it go with it.
    pub(super) renewed: BTreeSet<u32>,
}

pub(super) fn next_hops(desired: &Desired, observed: &Observed) -> NextHops {
    let mut plan = NextHops::default();
    for hop in &desired.next_hops {
        let held = observed.next_hops.get(&hop.id);
        if held == Some(&Held::Foreign) || observed.link(&hop.device).is_none() {
            continue;
        }
        plan.possible.insert(hop.id);
        match held {
            Some(Held::Hop(there)) if there == hop => continue,
            Some(Held::Hop(there)) if there.family == hop.family => {}
            None => {}
            // The kernel changes no next hop into a group, nor the family of one that routes lead to.
            Some(_) => {
                plan.puts.push(Change::DeleteNextHop(hop.id));
                plan.renewed.insert(hop.id);
            }
        }
        plan.puts.push(Change::PutNextHop(hop.clone()));
    }
    let mut groups = Vec::new();
    for wanted in &desired.groups {
        let held = observed.next_hops.get(&wanted.id);
        let members: BTreeSet<u32> = wanted
            .members
            .intersection(&plan.possible)
            .copied()
            .collect();
        if held == Some(&Held::Foreign) || members.is_empty() {
            continue;
        }
        groups.push(wanted.id);
        let group = Group {
            members,
            ..wanted.clone()
        };
        match held {
            Some(Held::Group(there)) => {
                // A member that is made anew drops out of it meanwhile.
                let whole = plan.renewed.is_disjoint(&group.members);
                let held = desired.hold && there.members.is_subset(&plan.possible);
                if (*there == group || held) && whole {
                    continue;
                }
                if !is_replaceable(there.resilient, group.resilient) {
                    plan.puts.push(Change::DeleteNextHop(group.id));
                    plan.renewed.insert(group.id);
                }
            }
            None => {}
            Some(_) => {
                plan.puts.push(Change::DeleteNextHop(group.id));
                plan.renewed.insert(group.id);
            }
        }
        plan.puts.push(Change::PutGroup(group));
    }
    plan.possible.extend(groups);

    let wanted: BTreeSet<u32> = desired
        .next_hops
        .iter()
        .map(|hop| hop.id)
        .chain(desired.groups.iter().map(|group| group.id))
        .collect();
    let stale = observed
        .next_hops
        .iter()
        .filter(|(id, held)| **held != Held::Foreign && !wanted.contains(id));
    let (hops, groups): (Vec<_>, Vec<_>) =
        stale.partition(|(_, held)| matches!(held, Held::Hop(_)));
    let ids = groups.into_iter().chain(hops).map(|(id, _)| *id);
    plan.unwanted = ids.map(Change::DeleteNextHop).collect();
    plan
}

/// The number of buckets is for life.
fn is_replaceable(there: Resilient, wanted: Resilient) -> bool {
    there.buckets == wanted.buckets
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use subsea_api::Family;

    use super::super::{plan, tests::apply};
    use super::*;
    use crate::net::netlink::nexthop::NextHop;
    use crate::net::netlink::types::{Link, Route};

    const TABLE: u32 = 584;

    fn link(name: &str) -> Link {
        Link {
            index: 7,
            name: name.into(),
            mtu: 1370,
            up: true,
            loopback: false,
            kind: None,
            group: 0,
            vxlan: None,
        }
    }

    fn hop(id: u32, device: &str) -> NextHop {
        NextHop::via(id, "fe80::1".parse().unwrap(), device)
    }

    fn wanted() -> Desired {
        let mut desired = Desired::empty(TABLE);
        desired.next_hops = [1, 2].map(|id| hop(id, "vx0")).into();
        desired.groups = [Group::new(9, [1, 2])].into();
        let dst = "10.64.0.0/16".parse().unwrap();
        desired.routes = [
            Route::backstop(TABLE, dst),
            Route::through(TABLE, dst, 9, None),
        ]
        .into();
        desired
    }

    fn texts(ops: Vec<Change>) -> Vec<String> {
        let text = |op: Change| op.to_string();
        ops.into_iter().map(text).collect()
    }

    #[test]
    fn next_hops_come_before_routes_and_go_after_them() {
        let mut kernel = Observed {
            links: vec![link("vx0")],
            ..Observed::default()
        };
        let ops = plan(&wanted(), &kernel);
        for op in &ops {
            apply(&mut kernel, op);
        }
        assert_eq!(
            texts(ops),
            [
                "add route unreachable 10.64.0.0/16 table 584 proto 83 metric 4294967295",
                "set next hop id 1 via fe80::1 dev vx0",
                "set next hop id 2 via fe80::1 dev vx0",
                "set next hop id 9 group 1/2 type resilient buckets 128 idle_timer 60 unbalanced_timer 0",
                "add route 10.64.0.0/16 nhid 9 table 584 proto 83 metric 100",
            ]
        );
        assert_eq!(plan(&wanted(), &kernel), vec![]);
        assert_eq!(
            texts(plan(&Desired::empty(TABLE), &kernel)),
            [
                "delete route 10.64.0.0/16 nhid 9 table 584 proto 83 metric 100",
                "delete route unreachable 10.64.0.0/16 table 584 proto 83 metric 4294967295",
                "delete next hop 9",
                "delete next hop 1",
                "delete next hop 2",
            ]
        );
    }

    #[test]
    fn what_cannot_be_made_is_left_out_with_what_leads_to_it() {
        let mut kernel = Observed {
            links: vec![link("vx0")],
            ..Observed::default()
        };
        let mut wanted = wanted();
        wanted.next_hops = [hop(1, "vx0"), hop(2, "vx1")].into();
        assert!(texts(plan(&wanted, &kernel))[2].starts_with("set next hop id 9 group 1 "));
        kernel.links.clear();
        assert_eq!(plan(&wanted, &kernel).len(), 1, "the backstop");
        // What others have under its number is theirs.
        kernel.links = vec![link("vx0"), link("vx1")];
        kernel.next_hops.insert(9, Held::Foreign);
        assert_eq!(plan(&wanted, &kernel).len(), 3);
    }

    fn some_held() -> impl Strategy<Value = Held> {
        let device = prop_oneof![Just("vx0"), Just("vx1")];
        let members = proptest::collection::btree_set(1_u32..5, 1..4);
        let buckets = prop_oneof![Just(128_u16), Just(64)];
        prop_oneof![
            device.prop_map(|d| Held::Hop(hop(0, d))),
            Just(Held::Hop(NextHop::device(0, Family::V4, "vx0"))),
            Just(Held::Odd),
            Just(Held::Foreign),
            (members, buckets, 1_u64..3).prop_map(|(members, buckets, idle)| {
                let resilient = Resilient {
                    buckets,
                    idle_timer: Duration::from_mins(idle),
                    ..Resilient::default()
                };
                Held::Group(Group {
                    id: 0,
                    members,
                    resilient,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_second_plan_finds_nothing_to_do(
            held in proptest::collection::btree_map(1_u32..12, some_held(), 0..8),
            hops in proptest::collection::btree_set(1_u32..5, 0..4),
            members in proptest::collection::btree_set(1_u32..5, 1..4),
            leads in 7_u32..11,
        ) {
            let mut kernel = Observed { links: vec![link("vx0"), link("vx1")], ..Observed::default() };
            for (id, mut held) in held {
                match &mut held {
                    Held::Hop(hop) => hop.id = id,
                    Held::Group(group) => group.id = id,
                    Held::Odd | Held::Foreign => {}
                }
                kernel.next_hops.insert(id, held);
            }
            let dst = "10.64.0.0/16".parse().unwrap();
            if kernel.next_hops.contains_key(&leads) {
                kernel.routes.push(Route::through(TABLE, dst, leads, None));
            }
            let foreign = |kernel: &Observed| -> Vec<u32> {
                let theirs = kernel.next_hops.iter().filter(|(_, held)| **held == Held::Foreign);
                theirs.map(|(id, _)| *id).collect()
            };
            let theirs = foreign(&kernel);
            let mut wanted = wanted();
            wanted.next_hops = hops.into_iter().map(|id| hop(id, "vx0")).collect();
            wanted.groups = [Group::new(9, members)].into();
            for op in plan(&wanted, &kernel) {
                apply(&mut kernel, &op);
            }
            prop_assert_eq!(plan(&wanted, &kernel), vec![]);
            prop_assert_eq!(foreign(&kernel), theirs);
            let through = kernel.routes.iter().filter_map(|route| route.next_hop);
            for id in through {
                prop_assert!(kernel.next_hops.contains_key(&id), "a route to nothing");
            }
        }
    }
}
