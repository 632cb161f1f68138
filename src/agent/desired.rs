//! From what the agent knows to what this node's kernel should hold. PURE.
//!
//! | table | rule | what is in it |
//! |---|---|---|
//! | 584 | 582: all that is not marked as ours | the blocks of other clusters, to the gateways; on a gateway's node only those that its own gateway does not carry |
//! | 585 | 581: what comes out of a tunnel, on a gateway's node | the pods of the other nodes |
//! | 586 + slot | 581: what is marked for a road | back to the gateway by which a flow came |
//!
//! What comes from other nodes goes to this node's gateway or nowhere (580): never on to another gateway, or two of them
//! could send it to each other.
//!
//! Without VXLAN next hops are the nodes' own addresses on the link, one for each family, and so are groups.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use subsea_api::{Allocation, Cidr, ClusterId, Family, NodeName};

use super::encap::{Encap, OnLink};
use super::mtu;
use super::names::Names;
use super::options::{MAX_ROADS, Options};
use super::steer::Sets;
use crate::host::Part;
use crate::host::desired::{Desired, numbers, preferred_source};
use crate::net::netlink::nexthop::{Group, NextHop};
use crate::net::netlink::overlay::{Fdb, Mac, Neighbour, Vxlan};
use crate::net::netlink::types::{Address, Route, Rule, SCOPE_LINK};
use crate::net::nft::ruleset::{Bits, Guard, Ingress, Road};

/// Never on any wire: the IPv4 dummy address (RFC 7600, section 4.8).
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// Each gateway stands in groups with two next hops, the second of which has a number so much larger. The kernel does not
/// note which buckets of a group of one are in use (`fib_select_path`): with the second gateway back, all of them would look
/// idle, and flows would move although they are not.
const TWIN: u32 = 0x4_0000;
/// Where the numbers of nodes' next hops and of groups begin, after those of gateways.
const NODES: u32 = 0x10_0000;
const GROUPS: u32 = 0x20_0000;
/// What is added for IPv6 where each family has a number of its own.
const V6: u32 = 0x8_0000;

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is called in the VXLAN.
    pub names: Names,
    /// Its address on the nodes' network.
    pub address: IpAddr,
    /// Where it is on our link; not looked at with VXLAN.
    pub on_link: OnLink,
}

/// A gateway on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Where it is.
    pub place: Place,
    /// Its number in the cluster.
    pub slot: u16,
    /// Whether replies may go by it.
    pub alive: bool,
    /// The clusters that it reaches, whether or not anything new goes there by it.
    pub reaches: BTreeSet<ClusterId>,
    /// By which link and from which hardware address its packets come, if that is known; not looked at with VXLAN.
    pub sender: Option<(String, Mac)>,
}

/// A node whose pods are reached through the gateway of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is.
    pub place: Place,
    /// The blocks of its pods.
    pub prefixes: Vec<Cidr>,
}

/// What the agent knows.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// How it is to run.
    pub options: &'a Options,
    /// The blocks of our own cluster.
    pub local: &'a [Allocation],
    /// The blocks of each other cluster, inner addresses of its gateways included.
    pub blocks: &'a BTreeMap<ClusterId, Vec<Cidr>>,
    /// What this node is called.
    pub names: Names,
    /// Its name, where it is a gateway's node, and the gateway's slot.
    pub own: Option<(&'a NodeName, u16)>,
    /// The tunnel devices that its gateway may have: that of the userspace driver, or one for each slot.
    pub tunnels: BTreeSet<String>,
    /// Our address on the nodes' network, and the MTU of its link.
    pub address: Option<(IpAddr, u32)>,
    /// The links that have it.
    pub links: BTreeSet<String>,
    /// The gateways on other nodes.
    pub gateways: &'a BTreeMap<NodeName, Gateway>,
    /// The number of the group of each cluster, from [`cluster_numbers`].
    pub numbers: &'a BTreeMap<ClusterId, u32>,
    /// Which gateways carry each cluster's traffic.
    pub sets: &'a Sets,
    /// The largest packet that gets to each cluster.
    pub mtus: &'a BTreeMap<ClusterId, u32>,
    /// The nodes behind the gateway of this node.
    pub nodes: &'a BTreeMap<NodeName, Node>,
    /// The addresses of this host.
    pub host_addresses: &'a [IpAddr],
    /// Whether the fleet is not known yet.
    pub keep: bool,
}

/// What this node's kernel should hold.
pub fn desired(input: &Input<'_>) -> Desired {
    let options = input.options;
    let mut build = Build {
        input,
        desired: Desired::empty(options.table),
        mtu: mtu::device(options.encap, input.address, input.mtus),
        nodes: node_addresses(input),
        roads: BTreeSet::new(),
    };
    build.desired.keep = input.keep;
    build.overlay();
    build.blocks();
    build.roads();
    build.nodes();
    build.rules();
    build.desired
}

/// The numbers of the groups of clusters: a name keeps its number whoever comes and goes.
pub fn cluster_numbers(blocks: &BTreeMap<ClusterId, Vec<Cidr>>) -> BTreeMap<ClusterId, u32> {
    numbers(blocks.keys(), Part::Agent.next_hop_ids().start + GROUPS)
}

/// Where flows go: what of the desired state changes when a gateway comes or goes, and costs nothing for blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// The groups.
    pub groups: BTreeSet<Group>,
    /// The numbers of the roads that lead somewhere, by family.
    pub roads: BTreeSet<(u8, Family)>,
}

/// The flows of [`desired`], while the VXLAN device is `vxlan`.
pub fn flows(input: &Input<'_>, vxlan: Option<Vxlan>) -> Flows {
    let mut build = Build {
        input,
        desired: Desired {
            vxlan,
            ..Desired::empty(input.options.table)
        },
        mtu: 0,
        nodes: BTreeSet::new(),
        roads: BTreeSet::new(),
    };
    for (cluster, id) in input.numbers {
        build.groups(cluster, *id);
    }
    for gateway in input.gateways.values() {
        let ways = build.road(gateway);
        let ways = ways.map(|(all, _)| (number(gateway.slot), all.family()));
        let ways: Vec<_> = ways.collect();
        build.roads.extend(ways);
    }
    Flows {
        groups: build.desired.groups,
        roads: build.roads,
    }
}

/// The blocks that are left out, with whose they are and why: they would lead astray what is our own cluster's.
pub fn refused(input: &Input<'_>) -> Vec<String> {
    let nodes = node_addresses(input);
    let of_cluster = |(cluster, blocks): (&ClusterId, &Vec<Cidr>)| {
        let of_block = |block: &Cidr| {
            let why = collides(*block, input.local, &nodes)?;
            Some(format!("{block} of cluster {cluster} {why}"))
        };
        blocks.iter().filter_map(of_block).collect::<Vec<_>>()
    };
    input.blocks.iter().flat_map(of_cluster).collect()
}

/// Why a block must not be routed; none when it may.
fn collides(block: Cidr, local: &[Allocation], nodes: &BTreeSet<IpAddr>) -> Option<String> {
    if block.prefix_len() == 0 {
        return Some("is everything".to_owned());
    }
    let own = local.iter().map(|a| a.cidr);
    let mut own = own.filter(|own| own.covers(block) || block.covers(*own));
    if let Some(own) = own.next() {
        return Some(format!("overlaps {own} of our own cluster"));
    }
    let mut inside = nodes.range(block.first()..=block.last());
    let node = inside.next()?;
    Some(format!("has the address {node} of a node in it"))
}

/// The addresses by which nodes of this cluster speak with each other.
fn node_addresses(input: &Input<'_>) -> BTreeSet<IpAddr> {
    let gateways = input.gateways.values().map(|gateway| &gateway.place);
    let nodes = input.nodes.values().map(|node| &node.place);
    let own = input.address.map(|(address, _)| address);
    let others = gateways.chain(nodes).flat_map(|place| {
        let on_link = place.on_link.all().map(|(_, address, _)| address);
        on_link.chain([place.address])
    });
    others.chain(own).collect()
}

struct Build<'a> {
    input: &'a Input<'a>,
    desired: Desired,
    mtu: u32,
    nodes: BTreeSet<IpAddr>,
    /// The roads that lead somewhere.
    roads: BTreeSet<(u8, Family)>,
}

impl Build<'_> {
    fn device(&self) -> &str {
        &self.input.options.vxlan
    }

    fn first() -> u32 {
        Part::Agent.next_hop_ids().start
    }

    /// The number by which a place is the next hop of a family, `id` being that of the place.
    fn hop(&self, place: &Place, id: u32, family: Family) -> Option<u32> {
        if self.input.options.encap == Encap::Vxlan {
            return self.desired.vxlan.is_some().then_some(id);
        }
        let has = |family| place.on_link.get(family).is_some();
        match family {
            Family::V4 if has(Family::V4) => Some(id),
            // An IPv4 block may be behind an IPv6 router.
            Family::V4 | Family::V6 => has(Family::V6).then_some(id + V6),
        }
    }

    /// The next hops to a place, `id` being its number.
    fn next_hops(&mut self, place: &Place, id: u32) {
        let hops = &mut self.desired.next_hops;
        if let Some(vxlan) = &self.desired.vxlan {
            hops.insert(NextHop::via(id, place.names.inner.into(), &vxlan.name));
        } else if self.input.options.encap == Encap::None {
            for (family, address, device) in place.on_link.all() {
                let id = id + if family == Family::V6 { V6 } else { 0 };
                hops.insert(NextHop::via(id, address, device));
            }
        }
    }

    /// The device, and who is behind it.
    fn overlay(&mut self) {
        if self.input.options.encap == Encap::None {
            return;
        }
        let Input {
            options,
            names,
            address: Some((address, _)),
            ..
        } = self.input
        else {
            return;
        };
        let device = options.vxlan.clone();
        self.desired.vxlan = Some(Vxlan {
            name: device.clone(),
            vni: options.vni,
            port: options.vxlan_port,
            local: *address,
            mac: names.mac,
            mtu: self.mtu,
        });
        let own = Address::link_local(names.inner.into(), &device);
        self.desired.addresses.insert(own);
        // A device without any IPv4 address passes no reverse path check (`__fib_validate_source`), however loose.
        let dummy = Address {
            scope: SCOPE_LINK,
            ..Address::ours(DUMMY.into(), &device)
        };
        self.desired.addresses.insert(dummy);
        let gateways = self.input.gateways.values().map(|gateway| &gateway.place);
        let nodes = self.input.nodes.values().map(|node| &node.place);
        for Place { names, address, .. } in gateways.chain(nodes) {
            self.desired.fdb.insert(Fdb {
                device: device.clone(),
                mac: names.mac,
                dst: *address,
            });
            self.desired.neighbours.insert(Neighbour {
                device: device.clone(),
                addr: names.inner.into(),
                mac: names.mac,
            });
        }
        self.guard();
    }

    /// What is taken from the VXLAN: from a gateway what may come from other clusters, from a node what its pods send.
    fn guard(&mut self) {
        let remote: BTreeSet<Cidr> = self.input.blocks.values().flatten().copied().collect();
        let mut guard = Guard {
            device: self.device().to_owned(),
            port: self.input.options.vxlan_port,
            links: self.input.links.clone(),
            senders: BTreeSet::new(),
            sources: BTreeSet::new(),
        };
        let mut admit = |place: &Place, blocks: &mut dyn Iterator<Item = Cidr>| {
            let mac = place.names.mac;
            guard.senders.insert((place.address, mac));
            let inner = Cidr::host(place.names.inner.into());
            guard
                .sources
                .extend(blocks.chain([inner]).map(|block| (mac, block)));
        };
        for gateway in self.input.gateways.values() {
            admit(&gateway.place, &mut remote.iter().copied());
        }
        for node in self.input.nodes.values() {
            let own = Cidr::host(node.place.address);
            admit(&node.place, &mut node.prefixes.iter().copied().chain([own]));
        }
        self.desired.ruleset.guard = Some(guard);
    }

    /// The way to the other clusters.
    fn blocks(&mut self) {
        let input = self.input;
        let options = input.options;
        let source = |family| preferred_source(input.local, &[], input.host_addresses, family);
        let sources = [Family::V4, Family::V6].map(|family| (family, source(family)));
        let sources = BTreeMap::from(sources);
        for gateway in input.gateways.values() {
            for id in twins(gateway.slot) {
                self.next_hops(&gateway.place, Self::first() + id);
            }
        }
        for (cluster, blocks) in input.blocks {
            let groups = input
                .numbers
                .get(cluster)
                .map(|id| self.groups(cluster, *id));
            let groups = groups.unwrap_or_default();
            for block in blocks.iter().copied() {
                if collides(block, input.local, &self.nodes).is_some() {
                    continue;
                }
                self.desired.ruleset.remote.insert(block);
                // On a gateway's node ours would stand before the routes of the gateway: there they have a table after its.
                let table = match input.own {
                    None => options.table,
                    Some(_) => options.backstop_table(),
                };
                self.desired.routes.insert(Route::backstop(table, block));
                if let Some(id) = groups.get(&block.family()) {
                    let source = sources.get(&block.family()).copied().flatten();
                    let route = Route::through(options.table, block, *id, source);
                    let mtu = self.route_mtu(cluster).map(|mtu| mtu::route(block, mtu));
                    self.desired.routes.insert(Route { mtu, ..route });
                }
            }
        }
        self.desired.ruleset.local = input.local.iter().map(|a| a.cidr).collect();
        if self.desired.vxlan.is_some() {
            self.desired.ruleset.devices = [options.vxlan.clone()].into();
        }
        if options.encap == Encap::None {
            self.desired.ruleset.links.clone_from(&input.links);
        }
    }

    /// Makes the groups of those that carry a cluster, and says which one each family takes; none where our own gateway
    /// carries it.
    fn groups(&mut self, cluster: &ClusterId, id: u32) -> BTreeMap<Family, u32> {
        let input = self.input;
        let set = input.sets.get(cluster);
        let carries = |node: &NodeName| set.is_some_and(|set| set.contains(node));
        let mut groups = BTreeMap::new();
        if input.own.is_some_and(|(node, _)| carries(node)) {
            return groups;
        }
        let families = [(Family::V4, id), (Family::V6, id + V6)];
        for (family, of_family) in families {
            // One router of the VXLAN serves both families, and so does one group.
            let id = match input.options.encap {
                Encap::Vxlan => id,
                Encap::None => of_family,
            };
            let gateways = input.gateways.iter().filter(|(node, _)| carries(node));
            let members: BTreeSet<u32> = gateways
                .flat_map(|(_, gateway)| {
                    let hop = |id| self.hop(&gateway.place, Self::first() + id, family);
                    twins(gateway.slot).map(hop)
                })
                .flatten()
                .collect();
            if !members.is_empty() {
                self.desired.groups.insert(Group::new(id, members));
                groups.insert(family, id);
            }
        }
        groups
    }

    /// The largest packet to a cluster, where it is smaller than the device's.
    fn route_mtu(&self, cluster: &ClusterId) -> Option<u32> {
        let mtu = self.input.mtus.get(cluster).copied();
        mtu.filter(|mtu| *mtu < self.mtu)
    }

    /// The way back of flows that came in by a gateway.
    fn roads(&mut self) {
        let input = self.input;
        if let Some((_, slot)) = input.own.filter(|(_, slot)| *slot < MAX_ROADS) {
            let by_tunnel = input.tunnels.iter().map(|tunnel| Road {
                number: number(slot),
                ingress: Ingress::Device(tunnel.clone()),
                table: input.options.gateway_table,
            });
            self.desired.ruleset.roads.all.extend(by_tunnel);
        }
        let usable = |gateway: &&Gateway| gateway.slot < MAX_ROADS;
        for (node, gateway) in input.gateways.iter().filter(|(_, g)| usable(g)) {
            let Some(ingress) = self.ingress(gateway) else {
                continue;
            };
            let table = input.options.road_table(gateway.slot);
            let number = number(gateway.slot);
            self.desired.ruleset.roads.all.push(Road {
                number,
                ingress,
                table,
            });
            if !gateway.alive {
                continue;
            }
            let ways: Vec<(Cidr, u32)> = self.road(gateway).collect();
            let families = ways.iter().map(|(all, _)| (number, all.family()));
            self.roads.extend(families);
            // What this gateway does not carry goes on to those that do, by the rule after. No more than that stands here: a mark
            // alone, which somebody else may use as well, shall lead nothing else astray.
            let carried = |cluster: &ClusterId| {
                let set = input.sets.get(cluster);
                gateway.reaches.contains(cluster) || set.is_some_and(|set| set.contains(node))
            };
            for (cluster, blocks) in input.blocks.iter().filter(|(c, _)| carried(c)) {
                let mtu = self.route_mtu(cluster);
                for block in blocks.iter().copied() {
                    let way = ways.iter().find(|(all, _)| all.family() == block.family());
                    let Some((_, id)) =
                        way.filter(|_| self.desired.ruleset.remote.contains(&block))
                    else {
                        continue;
                    };
                    let mtu = mtu.map(|mtu| mtu::route(block, mtu));
                    let route = Route::through(table, block, *id, None);
                    self.desired.routes.insert(Route { mtu, ..route });
                }
            }
            self.desired.tables.insert(table);
        }
    }

    /// The next hops of the road back to a gateway, while there is one.
    fn road(&self, gateway: &Gateway) -> impl Iterator<Item = (Cidr, u32)> {
        let usable = gateway.alive && gateway.slot < MAX_ROADS && self.ingress(gateway).is_some();
        let id = Self::first() + u32::from(gateway.slot);
        let ways = everything().into_iter().filter(move |_| usable);
        ways.filter_map(move |all| Some((all, self.hop(&gateway.place, id, all.family())?)))
    }

    /// How what a gateway sends comes in; none while that cannot be told from what others send.
    fn ingress(&self, gateway: &Gateway) -> Option<Ingress> {
        match self.input.options.encap {
            Encap::Vxlan => Some(Ingress::Mac {
                device: self.device().to_owned(),
                mac: gateway.place.names.mac,
            }),
            Encap::None => {
                let (device, mac) = gateway.sender.clone()?;
                Some(Ingress::Link { device, mac })
            }
        }
    }

    /// The way from the gateway of this node to the pods of the others.
    fn nodes(&mut self) {
        let input = self.input;
        let numbers = numbers(input.nodes.keys(), Self::first() + NODES);
        for (name, node) in input.nodes {
            let Some(id) = numbers.get(name).copied() else {
                continue;
            };
            self.next_hops(&node.place, id);
            // On the link a node is where the link says.
            let host = match input.options.encap {
                Encap::Vxlan => Some(Cidr::host(node.place.address)),
                Encap::None => None,
            };
            let table = input.options.nodes_table();
            for prefix in node.prefixes.iter().copied().chain(host) {
                if let Some(id) = self.hop(&node.place, id, prefix.family()) {
                    let route = Route::through(table, prefix, id, None);
                    self.desired.routes.insert(route);
                }
            }
        }
    }

    fn rules(&mut self) {
        let options = self.input.options;
        self.desired.tables.insert(options.nodes_table());
        let families: BTreeSet<Family> = self
            .desired
            .ruleset
            .remote
            .iter()
            .map(|block| block.family())
            .collect();
        let pref = options.rule_pref;
        for family in families {
            let rules = &mut self.desired.rules;
            rules.insert(Rule::ours(family, pref, options.mark, options.table));
            if self.input.own.is_some() {
                let backstops = options.backstop_table();
                rules.insert(Rule::ours(family, pref + 2, options.mark, backstops));
                self.desired.tables.insert(backstops);
                let ingress = match options.encap {
                    Encap::Vxlan => &BTreeSet::from([options.vxlan.clone()]),
                    Encap::None => &self.input.links,
                };
                for device in ingress {
                    let table = options.gateway_table;
                    rules.insert(Rule::from_device(family, pref - 2, device, table));
                }
                let nodes = options.nodes_table();
                let tunnels = self.input.tunnels.iter();
                rules.extend(tunnels.map(|t| Rule::from_device(family, pref - 1, t, nodes)));
            }
            for road in &self.desired.ruleset.roads.all {
                if self.roads.contains(&(road.number, family)) {
                    rules.extend(road.rule(Bits::AGENT, family, pref - 1));
                }
            }
        }
    }
}

/// The numbers of the next hops of a gateway.
fn twins(slot: u16) -> [u32; 2] {
    [u32::from(slot), u32::from(slot) + TWIN]
}

/// The number of the road of a gateway.
fn number(slot: u16) -> u8 {
    u8::try_from(slot).map_or(u8::MAX, |slot| slot.saturating_add(1))
}

fn everything() -> [Cidr; 2] {
    [
        Cidr::containing(Ipv4Addr::UNSPECIFIED.into(), 0),
        Cidr::containing(Ipv6Addr::UNSPECIFIED.into(), 0),
    ]
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
