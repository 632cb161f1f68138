use proptest::prelude::*;
use subsea_api::{Allocation, Family, Kind};

use super::*;
use crate::host::desired::{Input, desired};
use crate::net::netlink::overlay::{Mac, Vxlan};
use crate::net::netlink::types::{Hop, Link, Mark, RouteKind};

const TABLE: u32 = 583;

/// What the kernel does with our changes, as far as they matter here.
pub(super) fn apply(observed: &mut Observed, op: &Change) {
    match op {
        Change::PutRoute(route) => {
            match observed.routes.iter().position(|r| r.key() == route.key()) {
                Some(at) => observed.routes[at] = route.clone(),
                None => observed.routes.push(route.clone()),
            }
        }
        Change::DeleteRoute(route) => observed.routes.retain(|r| r != route),
        Change::SetMtu(device, mtu) => observed
            .links
            .iter_mut()
            .filter(|l| l.name == *device)
            .for_each(|l| l.mtu = *mtu),
        Change::LinkUp(device) => observed
            .links
            .iter_mut()
            .filter(|l| l.name == *device)
            .for_each(|l| l.up = true),
        Change::AddAddress(address) => observed.addresses.push(address.clone()),
        Change::DeleteAddress(address) => observed.addresses.retain(|a| a != address),
        Change::AddRule(rule) => observed.rules.push(rule.clone()),
        Change::DeleteRule(rule) => observed.rules.retain(|r| r != rule),
        Change::PutNextHop(hop) => {
            observed.next_hops.insert(hop.id, Held::Hop(hop.clone()));
        }
        Change::PutGroup(group) => {
            observed
                .next_hops
                .insert(group.id, Held::Group(group.clone()));
        }
        Change::DeleteNextHop(id) => forget(observed, *id),
        Change::PutFdb(fdb) => {
            observed
                .fdb
                .retain(|f| f.device != fdb.device || f.mac != fdb.mac);
            observed.fdb.insert(fdb.clone());
        }
        Change::DeleteFdb(fdb) => {
            observed.fdb.remove(fdb);
        }
        Change::PutNeighbour(neighbour) => {
            observed
                .neighbours
                .retain(|n| n.device != neighbour.device || n.addr != neighbour.addr);
            observed.neighbours.insert(neighbour.clone());
        }
        Change::DeleteNeighbour(neighbour) => {
            observed.neighbours.remove(neighbour);
        }
        Change::AddVxlan(_) | Change::NoLinkLocal(_) | Change::DeleteLink(_) => {}
    }
}

/// The kernel takes what leads to it along.
fn forget(observed: &mut Observed, id: u32) {
    observed.next_hops.remove(&id);
    observed.routes.retain(|r| r.next_hop != Some(id));
    let mut emptied = Vec::new();
    for held in observed.next_hops.values_mut() {
        if let Held::Group(group) = held
            && group.members.remove(&id)
            && group.members.is_empty()
        {
            emptied.push(group.id);
        }
    }
    for id in emptied {
        forget(observed, id);
    }
}

fn block() -> impl Strategy<Value = Cidr> {
    prop_oneof![
        (0..6_u8, 15..18_u8).prop_map(|(n, len)| Cidr::containing([10, 60 + n, 0, 0].into(), len)),
        (0..4_u16).prop_map(|n| Cidr::containing([0xfd00, n, 0, 0, 0, 0, 0, 0].into(), 48)),
    ]
}

fn some_input() -> impl Strategy<Value = Input> {
    (
        proptest::collection::vec(block(), 0..8),
        any::<bool>(),
        1_u8..3,
        prop_oneof![Just(1420_u32), Just(1280)],
        proptest::collection::btree_map(block(), 1200_u32..1300, 0..3),
    )
        .prop_map(|(remote, live, inner, mtu, mtus)| Input {
            local: vec![Allocation {
                kind: Kind::Pod,
                cidr: "10.32.0.0/16".parse().unwrap(),
                exported: true,
            }],
            inner: vec![[198, 19, 0, inner].into()],
            remote: remote
                .into_iter()
                .map(|r| (r, live.then(|| "subsea0".to_owned())))
                .collect(),
            device: "subsea0".into(),
            devices: ["subsea0".into()].into(),
            wireguard: false,
            checks: false,
            mtu,
            mtus,
            table: TABLE,
            rule_pref: 583,
            mark: Mark::default(),
            host_addresses: Vec::new(),
            keep: false,
        })
}

fn foreign_or_stale_route() -> impl Strategy<Value = Route> {
    let protocol = prop_oneof![Just(83_u8), Just(83), Just(4), Just(186)];
    let device = prop_oneof![Just("subsea0"), Just("eth0")];
    let metric = prop_oneof![Just(100_u32), Just(0), Just(u32::MAX)];
    let kind = prop_oneof![
        Just(RouteKind::Unicast),
        Just(RouteKind::Unreachable),
        Just(RouteKind::Blackhole)
    ];
    (block(), protocol, device, metric, kind).prop_map(|(dst, protocol, device, metric, kind)| {
        let mut route = Route::live(TABLE, dst, device, None);
        (route.protocol, route.metric, route.kind) = (protocol, metric, kind);
        if kind != RouteKind::Unicast {
            route.hops.clear();
            route.scope = 0;
        }
        route
    })
}

prop_compose! {
    /// A kernel that an earlier input, others, and accidents have been at.
    fn some_kernel()(
        before in some_input(),
        lost in proptest::collection::vec(any::<bool>(), 16),
        extra in proptest::collection::vec(foreign_or_stale_route(), 0..6),
        device in any::<bool>(),
        up in any::<bool>(),
        foreign_rule in any::<bool>(),
    ) -> Observed {
        let wanted = desired(&before);
        let mut routes: Vec<Route> =
            wanted.routes.iter().zip(lost.iter().cycle()).filter(|(_, lost)| !**lost).map(|(r, _)| r.clone()).collect();
        for route in extra {
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        let mut rules: Vec<Rule> = wanted.rules.iter().cloned().collect();
        if foreign_rule {
            rules.push(Rule { protocol: 0, ..Rule::ours(Family::V4, 583, Mark::default(), TABLE) });
            rules.push(Rule { pref: 400, ..Rule::ours(Family::V4, 400, Mark::default(), TABLE) });
        }
        let link = Link { index: 7, name: "subsea0".into(), mtu: 1500, up, loopback: false, kind: Some("tun".into()), group: 0, vxlan: None };
        let kernel_own = Address { protocol: Some(2), ..Address::ours("fe80::1".parse().unwrap(), "subsea0") };
        Observed {
            links: device.then_some(link).into_iter().collect(),
            addresses: wanted.addresses.iter().cloned().chain([kernel_own]).collect(),
            routes,
            rules,
            ..Observed::default()
        }
    }
}

fn foreign(observed: &Observed) -> (Vec<Route>, Vec<Rule>, Vec<Address>) {
    (
        observed
            .routes
            .iter()
            .filter(|r| !r.is_ours())
            .cloned()
            .collect(),
        observed
            .rules
            .iter()
            .filter(|r| !r.is_ours(&BTreeSet::from([TABLE]), None))
            .cloned()
            .collect(),
        observed
            .addresses
            .iter()
            .filter(|a| a.protocol != Some(PROTOCOL))
            .cloned()
            .collect(),
    )
}

proptest! {
    #[test]
    fn the_plan_leads_to_what_is_desired(input in some_input(), before in some_kernel()) {
        let wanted = desired(&input);
        let mut kernel = before.clone();
        let had: BTreeSet<Cidr> = before.routes.iter().filter(|r| r.is_backstop()).map(|r| r.dst).collect();
        for op in plan(&wanted, &before) {
            apply(&mut kernel, &op);
            // Fail closed: what was and stays remote has its backstop at every step.
            for route in wanted.routes.iter().filter(|r| r.is_backstop() && had.contains(&r.dst)) {
                prop_assert!(kernel.routes.contains(route), "{route} is gone after {op:?}");
            }
            // A way into the tunnel never stands alone.
            if let Change::PutRoute(route) = &op {
                let backstop = Route::backstop(TABLE, route.dst);
                let taken = before.routes.iter().any(|r| !r.is_ours() && r.key() == backstop.key());
                prop_assert!(taken || kernel.routes.contains(&backstop), "{route} came first");
            }
        }
        prop_assert_eq!(foreign(&kernel), foreign(&before));
        let taken: BTreeSet<_> = before.routes.iter().filter(|r| !r.is_ours()).map(Route::key).collect();
        let has_device = !kernel.links.is_empty();
        let expected: BTreeSet<&Route> = wanted
            .routes
            .iter()
            .filter(|r| !taken.contains(&r.key()) && (has_device || r.hops.is_empty()) || before.routes.contains(r))
            .collect();
        let ours: Vec<&Route> = kernel.routes.iter().filter(|r| r.is_ours()).collect();
        prop_assert_eq!(ours.len(), expected.len());
        prop_assert_eq!(ours.into_iter().collect::<BTreeSet<_>>(), expected);
        prop_assert!(wanted.rules.iter().eq(kernel.rules.iter().filter(|r| r.is_ours(&BTreeSet::from([TABLE]), None)).collect::<BTreeSet<_>>()));
        if has_device {
            prop_assert!(wanted.addresses.iter().all(|a| kernel.addresses.contains(a)));
            prop_assert!(kernel.links[0].up && kernel.links[0].mtu == wanted.mtu);
        }
        prop_assert_eq!(plan(&wanted, &kernel), vec![]);
        prop_assert_eq!(blocked(&wanted, &kernel), blocked(&wanted, &before));
    }
}

fn remote(block: &str, device: &str) -> BTreeMap<Cidr, Option<String>> {
    BTreeMap::from([(block.parse().unwrap(), Some(device.to_owned()))])
}

#[test]
fn a_block_moves_to_another_device_by_one_replacement() {
    let input = Input {
        local: Vec::new(),
        inner: Vec::new(),
        remote: remote("10.64.0.0/16", "subsea0"),
        device: "subsea0".into(),
        devices: ["subsea0".into(), "subsea1".into()].into(),
        wireguard: true,
        checks: true,
        mtu: 1420,
        mtus: BTreeMap::new(),
        table: TABLE,
        rule_pref: 583,
        mark: Mark::default(),
        host_addresses: Vec::new(),
        keep: false,
    };
    let link = |index, name: &str| Link {
        index,
        name: name.into(),
        mtu: 1500,
        up: false,
        loopback: false,
        kind: Some("wireguard".into()),
        group: 583,
        vxlan: None,
    };
    let mut kernel = Observed {
        links: vec![link(7, "subsea0"), link(8, "subsea1")],
        ..Observed::default()
    };
    let first = plan(&desired(&input), &kernel);
    let raised = first.iter().filter(|op| matches!(op, Change::LinkUp(_)));
    assert_eq!(raised.count(), 2);
    for op in &first {
        apply(&mut kernel, op);
    }
    let moved = Input {
        remote: remote("10.64.0.0/16", "subsea1"),
        ..input
    };
    let dst = "10.64.0.0/16".parse().unwrap();
    assert_eq!(
        plan(&desired(&moved), &kernel),
        [Change::PutRoute(Route::live(TABLE, dst, "subsea1", None))]
    );
    // While its device is away it is refused, and the others stay as they are.
    kernel.links.retain(|link| link.name != "subsea1");
    let without = plan(&desired(&moved), &kernel);
    assert_eq!(
        without,
        [Change::DeleteRoute(Route::live(
            TABLE, dst, "subsea0", None
        ))]
    );
}

/// A gateway that routes one block, and a kernel that has the device and nothing else of it.
fn one_block_and_a_fresh_device() -> (Input, Observed) {
    let input = Input {
        local: Vec::new(),
        inner: vec!["198.19.0.1".parse().unwrap()],
        remote: remote("10.64.0.0/16", "subsea0"),
        device: "subsea0".into(),
        devices: ["subsea0".into()].into(),
        wireguard: false,
        checks: false,
        mtu: 1420,
        mtus: BTreeMap::new(),
        table: TABLE,
        rule_pref: 583,
        mark: Mark::default(),
        host_addresses: Vec::new(),
        keep: false,
    };
    let link = Link {
        index: 7,
        name: "subsea0".into(),
        mtu: 1500,
        up: false,
        loopback: false,
        kind: Some("tun".into()),
        group: 0,
        vxlan: None,
    };
    let kernel = Observed {
        links: vec![link],
        ..Observed::default()
    };
    (input, kernel)
}

#[test]
fn nothing_is_taken_away_while_the_fleet_is_not_known() {
    let (mut input, mut kernel) = one_block_and_a_fresh_device();
    for op in plan(&desired(&input), &kernel) {
        apply(&mut kernel, &op);
    }
    (input.remote, input.inner) = (BTreeMap::new(), Vec::new());
    // Two routes, a rule and an address.
    let all = plan(&desired(&input), &kernel);
    assert_eq!(all.len(), 4);
    // Without its checks a tunnel is closed; each route goes once.
    let mut closed = all.clone();
    close(&desired(&input), &kernel, &mut closed);
    assert_eq!(closed, all);
    input.keep = true;
    closed.clear();
    close(&desired(&input), &kernel, &mut closed);
    assert!(matches!(&closed[..], [Change::DeleteRoute(live)] if !live.is_backstop()));
    assert_eq!(plan(&desired(&input), &kernel), []);
    input.remote = remote("10.65.0.0/16", "subsea0");
    let added = plan(&desired(&input), &kernel);
    assert!(
        matches!(&added[..], [Change::PutRoute(_), Change::PutRoute(_)]),
        "{added:?}"
    );
}

#[test]
fn the_order_fails_closed() {
    let (mut input, mut kernel) = one_block_and_a_fresh_device();
    let first = plan(&desired(&input), &kernel);
    let [
        Change::PutRoute(backstop),
        Change::SetMtu(..),
        Change::LinkUp(_),
        Change::AddAddress(_),
        Change::PutRoute(live),
        Change::AddRule(_),
    ] = first.as_slice()
    else {
        panic!("{first:?}")
    };
    assert!(backstop.is_backstop() && !live.is_backstop());
    assert_eq!(newly_routed(&first, &kernel).len(), 1);
    for op in &first {
        apply(&mut kernel, op);
    }

    // A changed next hop is one replacement, and no new block.
    let moved = plan(
        &desired(&Input {
            device: "subsea1".into(),
            devices: ["subsea1".into()].into(),
            remote: remote("10.64.0.0/16", "subsea1"),
            ..input.clone()
        }),
        &kernel,
    );
    assert_eq!(
        moved,
        vec![Change::DeleteRoute(Route::live(
            TABLE,
            "10.64.0.0/16".parse().unwrap(),
            "subsea0",
            Some(input.inner[0])
        ))]
    );
    input.inner = vec!["198.19.0.9".parse().unwrap()];
    let moved = plan(&desired(&input), &kernel);
    assert!(
        matches!(
            &moved[..],
            [
                Change::AddAddress(_),
                Change::PutRoute(_),
                Change::DeleteAddress(_)
            ]
        ),
        "{moved:?}"
    );
    assert!(newly_routed(&moved, &kernel).is_empty());
    for op in &moved {
        apply(&mut kernel, op);
    }

    // A path that turned out to be narrow is one replacement, and so is one that is wide again.
    for mtus in [vec![("10.64.0.0/16".parse().unwrap(), 1240)], Vec::new()] {
        input.mtus = mtus.into_iter().collect();
        let narrow = plan(&desired(&input), &kernel);
        let [Change::PutRoute(route)] = &narrow[..] else {
            panic!("{narrow:?}")
        };
        assert_eq!(route.mtu, input.mtus.values().next().copied());
        assert!(newly_routed(&narrow, &kernel).is_empty());
        apply(&mut kernel, &narrow[0]);
    }

    // A member that left goes after all else, its backstop last.
    input.remote = remote("10.65.0.0/16", "subsea0");
    let left = plan(&desired(&input), &kernel);
    let deleted: Vec<bool> = left
        .iter()
        .filter_map(|op| {
            if let Change::DeleteRoute(r) = op {
                Some(r.is_backstop())
            } else {
                None
            }
        })
        .collect();
    assert_eq!(deleted, [false, true]);
}

#[test]
fn somebody_elses_route_in_our_place_is_named_and_left() {
    let dst = "10.64.0.0/16".parse().unwrap();
    let theirs = Route {
        protocol: 4,
        hops: vec![Hop {
            via: Some([192, 0, 2, 1].into()),
            device: Some("eth0".into()),
        }],
        ..Route::live(TABLE, dst, "eth0", None)
    };
    let kernel = Observed {
        routes: vec![theirs],
        ..Observed::default()
    };
    let wanted = Desired {
        devices: ["subsea0".into()].into(),
        mtu: 1420,
        routes: [Route::live(TABLE, dst, "subsea0", None)].into(),
        ..Desired::empty(TABLE)
    };
    assert_eq!(plan(&wanted, &kernel), vec![]);
    assert!(
        blocked(&wanted, &kernel)[0]
            .contains("10.64.0.0/16 via 192.0.2.1 dev eth0 table 583 proto static")
    );
}

#[test]
fn a_vxlan_without_its_checks_is_closed_until_it_is_down() {
    let wanted = Vxlan {
        name: "subsea-vx".into(),
        vni: 583,
        port: 4850,
        local: "192.0.2.1".parse().unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1400,
    };
    let desired = Desired {
        vxlan: Some(wanted.clone()),
        ..Desired::empty(TABLE)
    };
    let closed = |up, group| {
        let link = Link {
            index: 9,
            name: "subsea-vx".into(),
            mtu: 1400,
            up,
            loopback: false,
            kind: Some("vxlan".into()),
            group,
            vxlan: Some(wanted.clone()),
        };
        let kernel = Observed {
            links: vec![link],
            ..Observed::default()
        };
        let mut ops = Vec::new();
        close(&desired, &kernel, &mut ops);
        ops
    };
    assert_eq!(closed(true, 583), [Change::DeleteLink("subsea-vx".into())]);
    assert_eq!(closed(false, 583), []);
    assert_eq!(closed(true, 0), [], "somebody else's");
}
