use subsea_api::Kind;

use super::super::encap::Connected;
use super::super::turn::turn;
use super::*;

const OWN_GATEWAY: &str = "gw-own";

/// What the agent of a node knows, owned.
#[derive(Debug, Clone)]
struct World {
    options: Options,
    local: Vec<Allocation>,
    blocks: BTreeMap<ClusterId, Vec<Cidr>>,
    numbers: BTreeMap<ClusterId, u32>,
    own: Option<(NodeName, u16)>,
    address: Option<(IpAddr, u32)>,
    gateways: BTreeMap<NodeName, Gateway>,
    sets: Sets,
    mtus: BTreeMap<ClusterId, u32>,
    nodes: BTreeMap<NodeName, Node>,
    keep: bool,
}

impl World {
    fn input(&self) -> Input<'_> {
        Input {
            options: &self.options,
            local: &self.local,
            blocks: &self.blocks,
            numbers: &self.numbers,
            names: names("self"),
            own: self.own.as_ref().map(|(node, slot)| (node, *slot)),
            tunnels: ["subsea0".to_owned()].into(),
            address: self.address,
            links: ["eth0".to_owned()].into(),
            gateways: &self.gateways,
            sets: &self.sets,
            mtus: &self.mtus,
            nodes: &self.nodes,
            host_addresses: &[],
            keep: self.keep,
        }
    }

    fn desired(&self) -> Desired {
        desired(&self.numbered().input())
    }

    fn numbered(&self) -> Self {
        Self {
            numbers: cluster_numbers(&self.blocks),
            ..self.clone()
        }
    }

    fn carry(&mut self, cluster: &str, by: &[&str]) {
        let set = by.iter().map(|node| node.parse().unwrap()).collect();
        self.sets.insert(cluster.parse().unwrap(), set);
    }
}

fn names(node: &str) -> Names {
    Names::of(
        &"harbour".parse().unwrap(),
        &"east".parse().unwrap(),
        &node.parse().unwrap(),
    )
}

fn blocks(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node whose addresses end in `last`, on our link as far as there is one.
fn place(node: &str, last: u8, v6: bool) -> Place {
    let v4: IpAddr = Ipv4Addr::new(192, 0, 2, last).into();
    let addresses = [Some(v4), v6.then(|| v6_of(last))];
    let connected = [
        Connected::of(Ipv4Addr::new(192, 0, 2, 1).into(), 24, "eth0"),
        Connected::of(v6_of(1), 64, "eth0"),
    ];
    let connected: Vec<Connected> = connected.into_iter().flatten().collect();
    Place {
        names: names(node),
        address: v4,
        on_link: OnLink::of(addresses.into_iter().flatten(), &connected),
    }
}

fn v6_of(last: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
}

fn gateway(node: &str, slot: u16, alive: bool) -> Gateway {
    let last = 10 + u8::try_from(slot).unwrap();
    Gateway {
        place: place(node, last, true),
        slot,
        alive,
        reaches: BTreeSet::new(),
        sender: Some(("eth0".to_owned(), Mac([2, 0, 0, 0, 0, last]))),
    }
}

/// A plain node behind two gateways, with a cluster of both families and one of IPv4 alone.
fn plain() -> World {
    let allocation = |cidr: &str| Allocation {
        kind: Kind::Pod,
        cidr: cidr.parse().unwrap(),
        exported: true,
    };
    let mut world = World {
        options: Options::new("/var/lib/subsea".into()),
        local: vec![allocation("10.32.0.0/16"), allocation("fd00:32::/48")],
        blocks: [
            ("west", blocks(&["10.64.0.0/16", "fd00:64::/48"])),
            ("north", blocks(&["10.96.0.0/16"])),
        ]
        .map(|(cluster, blocks)| (cluster.parse().unwrap(), blocks))
        .into(),
        numbers: BTreeMap::new(),
        own: None,
        address: Some(("192.0.2.1".parse().unwrap(), 1500)),
        gateways: [("gw-a", 0), ("gw-b", 1)]
            .map(|(node, slot)| (node.parse().unwrap(), gateway(node, slot, true)))
            .into(),
        sets: Sets::new(),
        mtus: BTreeMap::new(),
        nodes: BTreeMap::new(),
        keep: false,
    };
    world.carry("west", &["gw-a", "gw-b"]);
    world.carry("north", &["gw-a", "gw-b"]);
    world
}

/// The same as a node with a gateway of its own, in slot 2, and a plain node behind it.
fn with_gateway() -> World {
    let mut world = plain();
    world.own = Some((OWN_GATEWAY.parse().unwrap(), 2));
    world.carry("west", &["gw-a", "gw-b", OWN_GATEWAY]);
    world.carry("north", &["gw-a", "gw-b", OWN_GATEWAY]);
    let node = Node {
        place: place("n-1", 100, true),
        prefixes: blocks(&["10.32.7.0/24", "fd00:32:0:7::/64"]),
    };
    world.nodes.insert("n-1".parse().unwrap(), node);
    world
}

fn direct(world: World) -> World {
    World {
        options: Options {
            encap: Encap::None,
            ..world.options
        },
        ..world
    }
}

fn routes(desired: &Desired, table: u32) -> Vec<String> {
    let routes = desired.routes.iter().filter(|route| route.table == table);
    routes.map(ToString::to_string).collect()
}

fn rules(desired: &Desired) -> Vec<String> {
    desired.rules.iter().map(ToString::to_string).collect()
}

/// The routes of a table that lead somewhere, as block and the routers behind the number.
fn leads(desired: &Desired, table: u32) -> Vec<String> {
    let via = |id: &u32| {
        let hop = desired.next_hops.iter().find(|hop| hop.id == *id);
        let hop = hop.expect("a next hop of that number");
        format!("{} {}", hop.via.expect("a router"), hop.device)
    };
    let lead = |route: &Route| {
        let id = route.next_hop?;
        let group = desired.groups.iter().find(|group| group.id == id);
        let members: Vec<String> = match group {
            Some(group) => {
                // Each of them stands there twice.
                let all: Vec<String> = group.members.iter().map(via).collect();
                let (first, second) = all.split_at(all.len() / 2);
                assert_eq!(first, second);
                first.to_vec()
            }
            None => vec![via(&id)],
        };
        Some(format!("{} -> {}", route.dst, members.join(", ")))
    };
    let routes = desired.routes.iter().filter(|route| route.table == table);
    routes.filter_map(lead).collect()
}

#[test]
fn a_plain_node_sends_to_all_living_gateways_above_backstops() {
    let wanted = plain().desired();
    let [a, b] = ["gw-a", "gw-b"].map(|node| format!("{} subsea.vx", names(node).inner));
    assert_eq!(
        leads(&wanted, 584),
        [
            format!("10.64.0.0/16 -> {a}, {b}"),
            format!("10.96.0.0/16 -> {a}, {b}"),
            format!("fd00:64::/48 -> {a}, {b}"),
        ]
    );
    let backstops: Vec<&Route> = wanted.routes.iter().filter(|r| r.is_backstop()).collect();
    let covered: Vec<String> = backstops.iter().map(|r| r.dst.to_string()).collect();
    assert_eq!(covered, ["10.64.0.0/16", "10.96.0.0/16", "fd00:64::/48"]);
    assert!(backstops.iter().all(|route| route.table == 584));
    assert_eq!(wanted.groups.len(), 2, "one for each cluster");
    assert_eq!(
        rules(&wanted),
        [
            "-4 pref 581 from all fwmark 0x1/0x3f lookup 586 proto 83",
            "-4 pref 581 from all fwmark 0x2/0x3f lookup 587 proto 83",
            "-4 pref 582 not from all fwmark 0x40/0x40 lookup 584 proto 83",
            "-6 pref 581 from all fwmark 0x1/0x3f lookup 586 proto 83",
            "-6 pref 581 from all fwmark 0x2/0x3f lookup 587 proto 83",
            "-6 pref 582 not from all fwmark 0x40/0x40 lookup 584 proto 83",
        ]
    );
    assert_eq!(wanted.vxlan.as_ref().unwrap().mtu, 1450);
    assert_eq!(routes(&wanted, 585), Vec::<String>::new());
}

#[test]
fn a_gateways_node_leaves_to_its_own_gateway_what_that_carries() {
    let wanted = with_gateway().desired();
    assert_eq!(routes(&wanted, 584), Vec::<String>::new());
    assert_backstops_come_after_the_gateways_routes(&wanted);
    let node = format!("{} subsea.vx", names("n-1").inner);
    assert_eq!(
        leads(&wanted, 585),
        [
            format!("10.32.7.0/24 -> {node}"),
            format!("192.0.2.100/32 -> {node}"),
            format!("fd00:32:0:7::/64 -> {node}"),
        ]
    );
    let rules = rules(&wanted);
    for rule in [
        "-4 pref 580 from all iif subsea.vx lookup 583 proto 83",
        "-4 pref 581 from all iif subsea0 lookup 585 proto 83",
    ] {
        assert!(rules.iter().any(|r| r == rule), "{rules:#?}");
    }
    let own = &wanted.ruleset.roads.all[0];
    assert_eq!(
        own.ingress,
        Ingress::Device("subsea0".into()),
        "what came in by our own gateway leaves by it"
    );
    assert_eq!((own.number, own.table), (3, 583));
}

/// They would stand before the routes of the gateway in table 583.
fn assert_backstops_come_after_the_gateways_routes(wanted: &Desired) {
    let backstops: Vec<&Route> = wanted.routes.iter().filter(|r| r.is_backstop()).collect();
    assert!(!backstops.is_empty());
    assert!(backstops.iter().all(|route| route.table == 648));
    let rule = "-4 pref 584 not from all fwmark 0x40/0x40 lookup 648 proto 83";
    assert!(rules(wanted).iter().any(|r| r == rule));
}

#[test]
fn a_gateways_node_whose_gateway_is_dead_goes_by_the_others() {
    let mut world = with_gateway();
    world.carry("west", &["gw-b"]);
    let wanted = world.desired();
    let b = format!("{} subsea.vx", names("gw-b").inner);
    assert_eq!(
        leads(&wanted, 584),
        [
            format!("10.64.0.0/16 -> {b}"),
            format!("fd00:64::/48 -> {b}")
        ],
        "north is still our own gateway's"
    );
    assert_backstops_come_after_the_gateways_routes(&wanted);
    // What other nodes send must not go on to another gateway.
    let transit = "-4 pref 580 from all iif subsea.vx lookup 583 proto 83";
    assert!(rules(&wanted).iter().any(|rule| rule == transit));
}

#[test]
fn roads_are_for_living_gateways_and_lead_to_what_these_carry() {
    let mut world = plain();
    world.carry("north", &["gw-b"]);
    let gone: NodeName = "gw-b".parse().unwrap();
    world.gateways.get_mut(&gone).unwrap().alive = false;
    let wanted = world.desired();
    let a = format!("{} subsea.vx", names("gw-a").inner);
    assert_eq!(
        leads(&wanted, 586),
        [
            format!("10.64.0.0/16 -> {a}"),
            format!("fd00:64::/48 -> {a}")
        ],
        "north is not among them"
    );
    assert_eq!(routes(&wanted, 587), Vec::<String>::new());
    let rules = rules(&wanted);
    assert!(rules.iter().any(|rule| rule.contains("fwmark 0x1/0x3f")));
    assert!(!rules.iter().any(|rule| rule.contains("fwmark 0x2/0x3f")));
    // One that reaches a cluster takes answers there, though nothing new goes by it.
    let mut reached = world.clone();
    let a: NodeName = "gw-a".parse().unwrap();
    reached.gateways.get_mut(&a).unwrap().reaches = ["north".parse().unwrap()].into();
    let road = leads(&reached.desired(), 586);
    assert_eq!(road.len(), 3, "north is among them: {road:?}");
    // Its flows are still told apart, so that they find back when it lives again.
    assert_eq!(wanted.ruleset.roads.all.len(), 2);
    world.gateways.get_mut(&gone).unwrap().slot = MAX_ROADS;
    assert_eq!(
        world.desired().ruleset.roads.all.len(),
        1,
        "no number is left"
    );
}

#[test]
fn a_path_that_takes_less_than_the_vxlan_shows_in_its_routes() {
    let mut world = plain();
    world.mtus = [("west", 1240), ("north", 9000)]
        .map(|(cluster, mtu)| (cluster.parse().unwrap(), mtu))
        .into();
    let with_mtu = |world: &World| {
        let wanted = world.desired();
        let routes = wanted.routes.iter().filter(|route| route.table == 584);
        let mtus = routes.filter_map(|r| Some(format!("{} {}", r.dst, r.mtu?)));
        mtus.collect::<Vec<_>>()
    };
    // Nothing below 1280 is IPv6.
    let expected = ["10.64.0.0/16 1240", "fd00:64::/48 1280"];
    assert_eq!(with_mtu(&world), expected);
    let west: ClusterId = "west".parse().unwrap();
    world.mtus.insert(west, 1480);
    assert_eq!(with_mtu(&world), Vec::<String>::new());
    let expected = ["10.64.0.0/16 1480", "fd00:64::/48 1480"];
    assert_eq!(with_mtu(&direct(world)), expected, "the link takes 1500");
    assert_eq!(
        mtu::device(Encap::Vxlan, Some((v6_of(1), 9000)), &BTreeMap::new()),
        8930
    );
    assert_eq!(mtu::device(Encap::Vxlan, None, &BTreeMap::new()), 1430);
}

#[test]
fn blocks_that_lead_our_own_traffic_astray_are_left_out_and_named() {
    let mut world = with_gateway();
    let wrong = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.32.5.0/24",
        "192.0.2.8/29",
        "192.0.2.100/32",
    ];
    let west: ClusterId = "west".parse().unwrap();
    let west = world.blocks.entry(west).or_default();
    west.extend(blocks(&wrong));
    let wanted = world.desired();
    let expected = blocks(&["10.64.0.0/16", "10.96.0.0/16", "fd00:64::/48"]);
    assert!(wanted.ruleset.remote.iter().eq(&expected));
    let refused = refused(&world.input());
    assert_eq!(refused.len(), wrong.len(), "{refused:#?}");
    assert_eq!(
        refused[1],
        "10.0.0.0/8 of cluster west overlaps 10.32.0.0/16 of our own cluster"
    );
    assert_eq!(
        refused[3],
        "192.0.2.8/29 of cluster west has the address 192.0.2.10 of a node in it"
    );
}

#[test]
fn without_our_address_nothing_is_led_anywhere_and_nothing_leaves_in_clear() {
    for mut world in [plain(), direct(plain())] {
        world.address = None;
        for gateway in world.gateways.values_mut() {
            gateway.place.on_link = OnLink::default();
            gateway.alive = false;
        }
        let wanted = world.desired();
        assert!(wanted.routes.iter().all(Route::is_backstop));
        assert_eq!(wanted.routes.len(), 3);
        assert!(wanted.vxlan.is_none() && wanted.next_hops.is_empty());
    }
}

#[test]
fn without_vxlan_a_node_sends_to_addresses_on_its_link() {
    let wanted = direct(plain()).desired();
    assert!(wanted.vxlan.is_none() && wanted.fdb.is_empty() && wanted.neighbours.is_empty());
    assert!(wanted.addresses.is_empty() && wanted.ruleset.guard.is_none());
    assert_eq!(
        leads(&wanted, 584),
        [
            "10.64.0.0/16 -> 192.0.2.10 eth0, 192.0.2.11 eth0",
            "10.96.0.0/16 -> 192.0.2.10 eth0, 192.0.2.11 eth0",
            "fd00:64::/48 -> 2001:db8::a eth0, 2001:db8::b eth0",
        ]
    );
    assert_eq!(
        leads(&wanted, 587),
        [
            "10.64.0.0/16 -> 192.0.2.11 eth0",
            "10.96.0.0/16 -> 192.0.2.11 eth0",
            "fd00:64::/48 -> 2001:db8::b eth0",
        ]
    );
    let road = Ingress::Link {
        device: "eth0".into(),
        mac: Mac([2, 0, 0, 0, 0, 10]),
    };
    assert_eq!(wanted.ruleset.roads.all[0].ingress, road);
    assert_eq!(wanted.ruleset.links, ["eth0".to_owned()].into());
    assert_eq!(rules(&wanted), rules(&plain().desired()));
}

#[test]
fn without_vxlan_a_gateway_without_an_address_of_a_family_carries_none_of_it() {
    let mut world = direct(plain());
    for (node, gateway) in &mut world.gateways {
        gateway.place = place(node.as_str(), 10, false);
        gateway.sender = None;
    }
    let wanted = world.desired();
    assert!(
        leads(&wanted, 584)
            .iter()
            .all(|lead| lead.starts_with("10."))
    );
    let backstops = wanted.routes.iter().filter(|r| r.is_backstop());
    assert_eq!(backstops.count(), 3, "IPv6 is refused, not let out");
    assert!(
        wanted.ruleset.roads.all.is_empty(),
        "nobody knows their cards"
    );
}

#[test]
fn without_vxlan_what_comes_from_nodes_goes_to_our_gateway_or_nowhere() {
    let wanted = direct(with_gateway()).desired();
    let rules = rules(&wanted);
    for rule in [
        "-4 pref 580 from all iif eth0 lookup 583 proto 83",
        "-6 pref 580 from all iif eth0 lookup 583 proto 83",
        "-4 pref 581 from all iif subsea0 lookup 585 proto 83",
    ] {
        assert!(rules.iter().any(|r| r == rule), "{rules:#?}");
    }
    assert_eq!(
        leads(&wanted, 585),
        [
            "10.32.7.0/24 -> 192.0.2.100 eth0",
            "fd00:32:0:7::/64 -> 2001:db8::64 eth0",
        ]
    );
}

#[test]
fn numbers_stay_the_same_whoever_comes_and_goes() {
    let before = with_gateway();
    let mut after = before.clone();
    let more = Node {
        place: place("n-2", 101, true),
        prefixes: blocks(&["10.32.8.0/24"]),
    };
    after.nodes.insert("n-2".parse().unwrap(), more);
    after.nodes.insert(
        "a-0".parse().unwrap(),
        before.nodes.values().next().unwrap().clone(),
    );
    after.gateways.remove(&"gw-a".parse::<NodeName>().unwrap());
    after.carry("west", &["gw-b"]);
    after.carry("north", &["gw-b"]);
    after
        .blocks
        .insert("aft".parse().unwrap(), blocks(&["10.99.0.0/16"]));
    let mut without_own = before.clone();
    without_own.carry("west", &["gw-b"]);
    without_own.carry("north", &["gw-b"]);
    let (first, second) = (without_own.desired(), after.desired());
    let kept = |world: &Desired, address: Ipv6Addr| {
        let hops = world.next_hops.iter();
        let of = hops.filter(|hop| hop.via == Some(address.into()));
        of.map(|hop| hop.id).collect::<BTreeSet<_>>()
    };
    for node in ["gw-b", "n-1"] {
        let inner = names(node).inner;
        assert!(
            kept(&first, inner).is_subset(&kept(&second, inner)),
            "{node}"
        );
    }
    let groups: BTreeSet<&Group> = second.groups.iter().collect();
    assert_eq!(first.groups.len(), 2);
    assert!(first.groups.iter().all(|group| groups.contains(group)));
}

/// Prints how long a decision takes for a fleet of 1,000 clusters of 10 blocks: `--nocapture` shows it.
#[test]
fn a_large_fleet_is_decided_upon_in_time() {
    use std::time::{Duration, Instant};

    let mut world = plain();
    world.local.truncate(1);
    world.blocks.clear();
    for cluster in 0_u32..1_000 {
        let name = format!("c-{cluster}");
        let block = |n: u32| {
            let first = Ipv4Addr::from_bits(0x0b00_0000 + ((cluster * 10 + n) << 8));
            Cidr::containing(first.into(), 24)
        };
        let blocks = (0..10).map(block).collect();
        world.blocks.insert(name.parse().unwrap(), blocks);
        world.carry(&name, &["gw-a", "gw-b"]);
    }
    let world = world.numbered();
    let mut fewer = world.clone();
    fewer
        .gateways
        .get_mut(&"gw-b".parse::<NodeName>().unwrap())
        .unwrap()
        .alive = false;
    for set in fewer.sets.values_mut() {
        set.pop_last();
    }
    let mut best = [Duration::MAX; 4];
    for _ in 0..3 {
        let mut last = Instant::now();
        let mut lap = |n: usize| {
            best[n] = best[n].min(last.elapsed());
            last = Instant::now();
        };
        let wanted = desired(&world.input());
        lap(0);
        assert_eq!(refused(&world.input()), Vec::<String>::new());
        lap(1);
        assert!(wanted.clone() == wanted);
        lap(2);
        let turn = turn(&fewer.input(), &wanted);
        lap(3);
        assert_eq!((turn.groups.len(), turn.rules.len()), (1_000, 1));
        assert_eq!(
            wanted.routes.len(),
            40_000,
            "with a backstop, a group and two roads for each block"
        );
        assert_eq!(wanted.groups.len(), 1_000);
    }
    let [whole, refused, equal, turn] = best;
    println!(
        "desired {whole:?}, refused {refused:?}, clone and comparison {equal:?}, turn {turn:?}"
    );
}

#[path = "desired_property_tests.rs"]
mod properties;
