//! From the fleet's blocks to what this host's kernel should hold. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use subsea_api::{Allocation, Cidr, Family, Kind};

use super::plan::overlay;
use crate::net::netlink::nexthop::{Group, NextHop};
use crate::net::netlink::overlay::{Fdb, Neighbour, Vxlan};
use crate::net::netlink::types::{Address, Link, Mark, Route, Rule};
use crate::net::nft::ruleset::Ruleset;
use crate::net::wireguard::GROUP;

/// What the gateway knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The blocks of our own cluster.
    pub local: Vec<Allocation>,
    /// The inner addresses of this gateway.
    pub inner: Vec<IpAddr>,
    /// Every routed block of the other clusters, their inner addresses included, and the device that leads to it. While
    /// there is none only the backstop stands, and nothing leaves in clear.
    pub remote: BTreeMap<Cidr, Option<String>>,
    /// The tunnel device that has our inner addresses.
    pub device: String,
    /// All tunnel devices, this one included.
    pub devices: BTreeSet<String>,
    /// Whether they are of the kernel's WireGuard.
    pub wireguard: bool,
    /// Whether nftables must check what goes through them, because the driver does not.
    pub checks: bool,
    /// Their MTU.
    pub mtu: u32,
    /// The largest packet for blocks whose path takes less than the device.
    pub mtus: BTreeMap<Cidr, u32>,
    /// The routing table.
    pub table: u32,
    /// The preference of the rule.
    pub rule_pref: u32,
    /// What our own sockets are marked with.
    pub mark: Mark,
    /// The addresses of this host.
    pub host_addresses: Vec<IpAddr>,
    /// Whether the fleet is not known yet: then what an earlier process left may be right, and stays.
    pub keep: bool,
}

/// What the kernel should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The tunnel devices.
    pub devices: BTreeSet<String>,
    /// Whether they are of the kernel's WireGuard, and known by kind and group.
    pub wireguard: bool,
    /// Their MTU.
    pub mtu: u32,
    /// The routing table.
    pub table: u32,
    /// Further tables; the reconciler adds those of its settings. Rules and routes of protocol 83 in them are ours.
    pub tables: BTreeSet<u32>,
    /// Rules for what comes in by this device are ours, and those for what comes in by any at this preference, whatever
    /// their table; the reconciler says that of its settings.
    pub from: Option<(String, u32)>,
    /// The addresses on the devices.
    pub addresses: BTreeSet<Address>,
    /// The routes of our tables: for each remote block a backstop and, while live, the way into the tunnel.
    pub routes: BTreeSet<Route>,
    /// What routes may lead to by number, or be members of groups. One whose device is missing is left out.
    pub next_hops: BTreeSet<NextHop>,
    /// What spreads flows over next hops. One none of whose members is there is not made, nor are routes to it; one
    /// that stands is left with its last members.
    pub groups: BTreeSet<Group>,
    /// The VXLAN device between the nodes of the cluster.
    pub vxlan: Option<Vxlan>,
    /// All that its forwarding table holds.
    pub fdb: BTreeSet<Fdb>,
    /// Our permanent neighbours on it.
    pub neighbours: BTreeSet<Neighbour>,
    /// Our rules.
    pub rules: BTreeSet<Rule>,
    /// The number of the decision by which members of groups and rules of roads are these ([`super::Steering`]).
    pub steering: u64,
    /// Whether groups that stand are left as they are: who starts does not know yet who carries what.
    pub hold: bool,
    /// Kernel parameters beyond those that the devices and families need.
    pub parameters: Vec<Parameter>,
    /// Our table of nftables.
    pub ruleset: Ruleset,
    /// Whether things of ours are only added, never taken away: of the fleet nothing is known, and a backstop that is
    /// taken away lets traffic out in clear.
    pub keep: bool,
}

/// A kernel parameter that we need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Such as `net/ipv4/ip_forward`.
    pub key: String,
    /// The value that we need.
    pub value: &'static str,
    /// The only value that it replaces; any, when there is none.
    pub replaces: Option<&'static str>,
}

/// What this host's kernel should hold for `input`.
pub fn desired(input: &Input) -> Desired {
    // A block that is our own as well would take our own traffic away: the broker lets none through, and
    // neither do we.
    let own: Vec<Cidr> = input
        .local
        .iter()
        .map(|a| a.cidr)
        .chain(input.inner.iter().map(|a| Cidr::host(*a)))
        .collect();
    let mut remote = BTreeSet::new();
    let mut routes = BTreeSet::new();
    for (block, device) in &input.remote {
        if block.prefix_len() == 0 || own.iter().any(|o| o.covers(*block)) {
            continue;
        }
        remote.insert(*block);
        routes.insert(Route::backstop(input.table, *block));
        if let Some(device) = device {
            let source = preferred_source(
                &input.local,
                &input.inner,
                &input.host_addresses,
                block.family(),
            );
            routes.insert(Route {
                mtu: input.mtus.get(block).copied(),
                ..Route::live(input.table, *block, device, source)
            });
        }
    }
    let exported = input.local.iter().filter(|a| a.exported).map(|a| a.cidr);
    let inner = input.inner.iter().copied().map(Cidr::host);
    let checked = input.checks.then(|| exported.chain(inner).collect());
    let families: BTreeSet<Family> = remote.iter().map(|r| r.family()).collect();
    let rule = |family| Rule::ours(family, input.rule_pref, input.mark, input.table);
    Desired {
        devices: input.devices.clone(),
        wireguard: input.wireguard,
        mtu: input.mtu,
        addresses: input
            .inner
            .iter()
            .map(|a| Address::ours(*a, &input.device))
            .collect(),
        routes,
        rules: families.into_iter().map(rule).collect(),
        ruleset: Ruleset {
            devices: input.devices.clone(),
            local: own.into_iter().collect(),
            remote,
            checked,
            ..Ruleset::default()
        },
        keep: input.keep,
        ..Desired::empty(input.table)
    }
}

/// The source address of what the host itself sends towards other clusters: one that the other side routes back and lets
/// in. The CNI's address on this host, else the node's own where node blocks are routed, else the gateway's inner one.
///
/// An address in a service block is none of these: kube-proxy in IPVS mode puts every ClusterIP on the host.
pub fn preferred_source(
    local: &[Allocation],
    inner: &[IpAddr],
    host_addresses: &[IpAddr],
    family: Family,
) -> Option<IpAddr> {
    let of_family = |addr: &&IpAddr| Cidr::host(**addr).family() == family;
    let of_kind = |kind: Kind| {
        let blocks = local.iter().filter(move |a| a.kind == kind && a.exported);
        blocks
            .flat_map(|a| host_addresses.iter().filter(move |h| a.cidr.contains(**h)))
            .filter(of_family)
            .min()
    };
    of_kind(Kind::Pod)
        .or_else(|| of_kind(Kind::Node))
        .or_else(|| inner.iter().find(of_family))
        .copied()
}

/// How many numbers [`numbers()`] gives out.
const NUMBERS: u32 = 0x1_0000;

/// Numbers for names, 65,536 from `first` on: by a hash, so that a name keeps its number whoever comes and goes; of two
/// with the same hash the second in order has the next free one.
pub fn numbers<'n, N: ToString + Ord + Clone + 'n>(
    names: impl Iterator<Item = &'n N>,
    first: u32,
) -> BTreeMap<N, u32> {
    let mut taken = BTreeSet::new();
    let number = |name: &N| {
        let hash = ring::digest::digest(&ring::digest::SHA256, name.to_string().as_bytes());
        let bytes = hash.as_ref().first_chunk().copied().unwrap_or_default();
        let mut at = u32::from_le_bytes(bytes) % NUMBERS;
        while !taken.insert(at) {
            at = (at + 1) % NUMBERS;
        }
        (name.clone(), first + at)
    };
    names.map(number).collect()
}

impl Desired {
    /// Nothing yet, with `table` as the main table: the start for a host without a tunnel device.
    pub fn empty(table: u32) -> Self {
        Self {
            devices: BTreeSet::new(),
            wireguard: false,
            mtu: 0,
            table,
            tables: BTreeSet::new(),
            from: None,
            addresses: BTreeSet::new(),
            routes: BTreeSet::new(),
            next_hops: BTreeSet::new(),
            groups: BTreeSet::new(),
            vxlan: None,
            fdb: BTreeSet::new(),
            neighbours: BTreeSet::new(),
            rules: BTreeSet::new(),
            steering: 0,
            hold: false,
            parameters: Vec::new(),
            ruleset: Ruleset::default(),
            keep: false,
        }
    }

    /// Every table of ours.
    pub fn all_tables(&self) -> BTreeSet<u32> {
        let mut all = self.tables.clone();
        all.insert(self.table);
        all
    }

    /// The devices that are ours to set up, and their MTU.
    pub fn devices_and_mtus(&self) -> impl Iterator<Item = (&str, u32)> {
        let tunnels = self.devices.iter().map(|d| (d.as_str(), self.mtu));
        tunnels.chain(self.vxlan.iter().map(|v| (v.name.as_str(), v.mtu)))
    }

    /// The devices that others' rules must let forwarded packets through.
    pub fn forwarding_devices(&self) -> BTreeSet<String> {
        let devices = self.devices_and_mtus().map(|(d, _)| d.to_owned());
        devices.collect()
    }

    /// Devices that have a name of ours and are somebody else's. With the kernel driver that may happen at any time: a
    /// slot gets its name when a gateway appears in it. The userspace driver holds its device open, so nobody else
    /// has one of that name.
    pub fn foreign(&self, links: &[Link]) -> BTreeSet<String> {
        let is_wireguard = |link: &Link| link.kind.as_deref() == Some("wireguard");
        let is_ours = |link: &Link| {
            if self.wireguard {
                is_wireguard(link) && link.group == GROUP
            } else {
                !is_wireguard(link)
            }
        };
        let named = links.iter().filter(|l| self.devices.contains(&l.name));
        let foreign = named.filter(|link| !is_ours(link));
        let vxlan = self.vxlan.iter().filter_map(|v| {
            let link = links.iter().find(|l| l.name == v.name)?;
            (!overlay::is_ours(link)).then_some(link)
        });
        foreign.chain(vxlan).map(|link| link.name.clone()).collect()
    }

    /// What is left of it when these devices are not ours to touch: their blocks keep their backstops.
    #[must_use]
    pub fn without(&self, foreign: &BTreeSet<String>) -> Self {
        let mut left = self.clone();
        left.devices.retain(|device| !foreign.contains(device));
        left.ruleset
            .devices
            .retain(|device| !foreign.contains(device));
        // The guard stays: it lets nothing in that would not come in without it.
        left.addresses.retain(|a| !foreign.contains(&a.device));
        left.vxlan = left.vxlan.filter(|v| !foreign.contains(&v.name));
        left.fdb.retain(|f| !foreign.contains(&f.device));
        left.neighbours.retain(|n| !foreign.contains(&n.device));
        // The plan leaves members that are not wanted out of groups, and routes to nothing out altogether.
        left.next_hops.retain(|hop| !foreign.contains(&hop.device));
        left.routes.retain(|route| {
            let mut devices = route.hops.iter().filter_map(|hop| hop.device.as_ref());
            devices.all(|device| !foreign.contains(device))
        });
        left
    }
}

/// The kernel parameters that forwarding to and from the tunnel needs, in the order in which to set them.
///
/// With IPv6 forwarding on, the kernel ignores router advertisements on links whose `accept_ra` is 1 and drops
/// what it learnt from them: such links are set to 2 before.
pub fn parameters(desired: &Desired, links: &[Link]) -> Vec<Parameter> {
    let mut wanted = Vec::new();
    let is_vxlan = |l: &Link| desired.vxlan.as_ref().is_some_and(|v| v.name == l.name);
    let is_device = |l: &Link| desired.devices.contains(&l.name) || is_vxlan(l);
    for link in links.iter().filter(|l| is_device(l)) {
        // Loose: the kernel takes the maximum of this and `all`, so strict mode elsewhere does not hurt.
        wanted.push(Parameter {
            key: format!("net/ipv4/conf/{}/rp_filter", link.name),
            value: "2",
            replaces: None,
        });
    }
    let has = |family| desired.ruleset.remote.iter().any(|r| r.family() == family);
    if has(Family::V4) {
        wanted.push(Parameter {
            key: "net/ipv4/ip_forward".into(),
            value: "1",
            replaces: None,
        });
    }
    if has(Family::V6) {
        for link in links
            .iter()
            .filter(|l| l.up && !l.loopback && !is_device(l))
        {
            let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
            wanted.push(Parameter {
                key,
                value: "2",
                replaces: Some("1"),
            });
        }
        wanted.push(Parameter {
            key: "net/ipv6/conf/all/forwarding".into(),
            value: "1",
            replaces: None,
        });
    }
    wanted.extend(desired.parameters.iter().cloned());
    wanted
}

/// The kernel parameters that the VXLAN device needs before it can have addresses: IPv6 on it whatever the default is,
/// and nothing that a node could be talked into by others on it.
pub fn device_parameters(desired: &Desired) -> Vec<Parameter> {
    let Some(vxlan) = &desired.vxlan else {
        return Vec::new();
    };
    let parameters = [
        ("ipv6", "disable_ipv6", "0"),
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "accept_redirects", "0"),
        ("ipv4", "accept_redirects", "0"),
        ("ipv4", "send_redirects", "0"),
    ];
    let parameter = |(family, name, value)| Parameter {
        key: format!("net/{family}/conf/{}/{name}", vxlan.name),
        value,
        replaces: None,
    };
    parameters.map(parameter).into()
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
