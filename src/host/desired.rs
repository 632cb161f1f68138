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
mod tests {
    use super::*;

    fn input() -> Input {
        let allocation = |kind, cidr: &str| Allocation {
            kind,
            cidr: cidr.parse().unwrap(),
            exported: true,
        };
        Input {
            local: vec![
                allocation(Kind::Service, "10.112.0.0/20"),
                allocation(Kind::Pod, "10.32.0.0/16"),
                allocation(Kind::Pod, "fd00:32::/48"),
            ],
            inner: vec!["198.19.0.1".parse().unwrap(), "fd00:19::1".parse().unwrap()],
            remote: ["10.64.0.0/16", "198.19.0.2/32", "fd00:64::/48"]
                .map(|c| (c.parse().unwrap(), Some("subsea0".into())))
                .into(),
            device: "subsea0".into(),
            devices: ["subsea0".into()].into(),
            wireguard: false,
            checks: false,
            mtu: 1420,
            mtus: BTreeMap::new(),
            table: 583,
            rule_pref: 583,
            mark: Mark::default(),
            host_addresses: ["192.0.2.1", "10.112.0.1", "10.32.0.9", "10.32.0.1"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            keep: false,
        }
    }

    fn routes(input: &Input) -> Vec<String> {
        desired(input)
            .routes
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_backstop_beneath_every_live_route() {
        assert_eq!(
            routes(&input()),
            [
                "10.64.0.0/16 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100",
                "unreachable 10.64.0.0/16 table 583 proto 83 metric 4294967295",
                "198.19.0.2/32 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100",
                "unreachable 198.19.0.2/32 table 583 proto 83 metric 4294967295",
                "fd00:64::/48 dev subsea0 table 583 proto 83 src fd00:19::1 metric 100",
                "unreachable fd00:64::/48 table 583 proto 83 metric 4294967295",
            ]
        );
        let rules: Vec<String> = desired(&input())
            .rules
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            rules,
            [
                "-4 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83",
                "-6 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83",
            ]
        );
    }

    #[test]
    fn a_path_that_takes_less_shows_in_the_routes_of_its_blocks_alone() {
        let mut input = input();
        input.mtus = [("10.64.0.0/16", 1240), ("fd00:64::/48", 1280)]
            .map(|(block, mtu)| (block.parse().unwrap(), mtu))
            .into();
        let with_mtu: Vec<String> = routes(&input)
            .into_iter()
            .filter(|r| r.contains(" mtu "))
            .collect();
        assert_eq!(
            with_mtu,
            [
                "10.64.0.0/16 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100 mtu 1240",
                "fd00:64::/48 dev subsea0 table 583 proto 83 src fd00:19::1 metric 100 mtu 1280",
            ]
        );
    }

    #[test]
    fn without_a_tunnel_only_the_backstops_and_the_rules_stand() {
        let mut lost = input();
        for device in lost.remote.values_mut() {
            *device = None;
        }
        let dead = desired(&lost);
        assert!(dead.routes.iter().all(Route::is_backstop));
        assert_eq!(dead.routes.len(), 3);
        assert_eq!(dead.rules, desired(&input()).rules);
    }

    #[test]
    fn each_block_goes_to_the_device_of_its_gateway_and_every_device_is_cared_for() {
        let mut input = input();
        input.devices.insert("subsea1".into());
        input
            .remote
            .insert("198.19.0.3/32".parse().unwrap(), Some("subsea1".into()));
        let wanted = desired(&input);
        let second: Vec<String> = wanted
            .routes
            .iter()
            .filter(|r| {
                r.hops
                    .iter()
                    .any(|h| h.device.as_deref() == Some("subsea1"))
            })
            .map(|r| r.dst.to_string())
            .collect();
        assert_eq!(second, ["198.19.0.3/32"]);
        assert!(wanted.addresses.iter().all(|a| a.device == "subsea0"));
        assert_eq!(wanted.ruleset.devices, input.devices);
        assert_eq!(wanted.ruleset.checked, None);
    }

    #[test]
    fn a_device_of_somebody_else_is_left_alone_though_it_has_a_name_of_ours() {
        let mut input = input();
        input.wireguard = true;
        input.devices.insert("subsea1".into());
        input
            .remote
            .insert("10.65.0.0/16".parse().unwrap(), Some("subsea1".into()));
        let link = |name: &str, kind: &str, group| Link {
            index: 1,
            name: name.into(),
            mtu: 1500,
            up: false,
            loopback: false,
            kind: Some(kind.into()),
            group,
            vxlan: None,
        };
        let ours = link("subsea0", "wireguard", GROUP);
        let wanted = desired(&input);
        let links = [ours.clone(), link("subsea1", "wireguard", GROUP)];
        assert_eq!(wanted.foreign(&links), BTreeSet::new());
        for theirs in [
            link("subsea1", "wireguard", 0),
            link("subsea1", "tun", GROUP),
        ] {
            let foreign = wanted.foreign(&[ours.clone(), theirs]);
            assert_eq!(foreign, BTreeSet::from(["subsea1".into()]));
            let left = wanted.without(&foreign);
            let text = format!("{left:?}");
            assert!(!text.contains("subsea1"), "{text}");
            assert!(
                left.routes
                    .contains(&Route::backstop(583, "10.65.0.0/16".parse().unwrap()))
            );
            assert_eq!(left.ruleset.remote, wanted.ruleset.remote);
        }
        input.wireguard = false;
        let wanted = desired(&input);
        let foreign = wanted.foreign(&[link("subsea0", "tun", 0), ours]);
        assert_eq!(foreign, BTreeSet::from(["subsea0".into()]));
    }

    #[test]
    fn only_exported_blocks_and_inner_addresses_pass_the_checks() {
        let mut input = input();
        input.checks = true;
        input.local.push(Allocation {
            kind: Kind::Node,
            cidr: "192.0.2.0/24".parse().unwrap(),
            exported: false,
        });
        let checked = desired(&input).ruleset.checked.unwrap();
        assert_eq!(checked.len(), 5);
        assert!(!checked.contains(&"192.0.2.0/24".parse().unwrap()));
        assert!(checked.contains(&"198.19.0.1/32".parse().unwrap()));
    }

    #[test]
    fn the_source_is_a_pod_address_then_an_exported_node_address_then_the_inner_one() {
        let source = |input: &Input| {
            let Input {
                local,
                inner,
                host_addresses,
                ..
            } = input;
            let source = preferred_source(local, inner, host_addresses, Family::V4);
            source.unwrap().to_string()
        };
        let mut input = input();
        assert_eq!(source(&input), "10.32.0.1");
        input
            .host_addresses
            .retain(|a| !a.to_string().starts_with("10.32"));
        assert_eq!(source(&input), "198.19.0.1");
        let node = Allocation {
            kind: Kind::Node,
            cidr: "192.0.2.0/24".parse().unwrap(),
            exported: false,
        };
        input.local.push(node);
        assert_eq!(source(&input), "198.19.0.1");
        input.local.push(Allocation {
            exported: true,
            ..node
        });
        assert_eq!(source(&input), "192.0.2.1");
    }

    #[test]
    fn ipv6_is_left_alone_without_ipv6_blocks() {
        let mut input = input();
        let link = |name: &str, up| Link {
            index: 1,
            name: name.into(),
            mtu: 1500,
            up,
            loopback: name == "lo",
            kind: None,
            group: 0,
            vxlan: None,
        };
        let links = [
            link("lo", true),
            link("eth0", true),
            link("eth1", false),
            link("subsea0", true),
        ];
        let keys = |input: &Input| {
            parameters(&desired(input), &links)
                .into_iter()
                .map(|p| p.key)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&input),
            [
                "net/ipv4/conf/subsea0/rp_filter",
                "net/ipv4/ip_forward",
                "net/ipv6/conf/eth0/accept_ra",
                "net/ipv6/conf/all/forwarding",
            ]
        );
        input.remote.retain(|r, _| r.family() == Family::V4);
        assert_eq!(
            keys(&input),
            ["net/ipv4/conf/subsea0/rp_filter", "net/ipv4/ip_forward"]
        );
        assert_eq!(desired(&input).rules.len(), 1);
    }
}
