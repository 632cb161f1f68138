//! Links, addresses, routes and rules in our own words; `Display` reads like `ip` prints them. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, Family};

use super::nexthop::Held;
use super::overlay::{Fdb, Neighbour, Vxlan};

/// The protocol number by which our routes, rules and addresses are known (`docs/security.md`, ownership).
pub const PROTOCOL: u8 = 83;
/// The table of routes to remote clusters, unless settings say otherwise.
pub const TABLE: u32 = 583;
/// The preference of our rule, unless settings say otherwise.
pub const RULE_PREF: u32 = 583;
/// The metric of live routes.
pub const METRIC: u32 = 100;
/// The metric of the `unreachable` backstops: the worst there is, in both families.
pub const BACKSTOP_METRIC: u32 = u32::MAX;

const PROTO_KERNEL: u8 = 2;
/// What is told to nobody beyond a link (`RT_SCOPE_LINK`).
pub const SCOPE_LINK: u8 = 253;
const TABLE_MAIN: u32 = 254;

/// A firewall mark under its mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The bits, all inside the mask.
    pub value: u32,
    /// Which bits are ours.
    pub mask: u32,
}

impl Default for Mark {
    fn default() -> Self {
        Self {
            value: 0x40,
            mask: 0x40,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index; another device under the same name has another one.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// What made it: `tun`, `veth`, `wireguard`; `None` for hardware.
    pub kind: Option<String>,
    /// Its group; 0 unless somebody said another one.
    pub group: u32,
    /// What it is as a VXLAN device, unless it is one that we do not make.
    pub vxlan: Option<Vxlan>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.up { "UP" } else { "DOWN" };
        write!(
            f,
            "{}: {} mtu {} state {state}",
            self.index, self.name, self.mtu
        )
    }
}

/// An address on a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The address.
    pub addr: IpAddr,
    /// The length of its network, in bits.
    pub prefix_len: u8,
    /// The name of the device.
    pub device: String,
    /// Who put it there (`IFA_PROTO`); `None` on kernels before 5.18, or when nobody said.
    pub protocol: Option<u8>,
    /// The scope: 0 is global.
    pub scope: u8,
}

impl Address {
    /// An address of ours, alone on its network.
    pub fn ours(addr: IpAddr, device: &str) -> Self {
        let prefix_len = if addr.is_ipv4() { 32 } else { 128 };
        Self {
            addr,
            prefix_len,
            device: device.to_owned(),
            protocol: Some(PROTOCOL),
            scope: 0,
        }
    }

    /// A link-local address of ours (`fe80::/64`), by which others on the link are reached.
    pub fn link_local(addr: IpAddr, device: &str) -> Self {
        Self {
            prefix_len: 64,
            scope: SCOPE_LINK,
            ..Self::ours(addr, device)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} dev {}", self.addr, self.prefix_len, self.device)
    }
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Forwards it to a next hop.
    Unicast,
    /// Answers "host unreachable".
    Unreachable,
    /// Drops it in silence.
    Blackhole,
    /// Answers "prohibited".
    Prohibit,
    /// Goes on with the next rule.
    Throw,
    /// Anything else, by its number (`RTN_*`).
    Other(u8),
}

impl RouteKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Unicast => "",
            Self::Unreachable => "unreachable ",
            Self::Blackhole => "blackhole ",
            Self::Prohibit => "prohibit ",
            Self::Throw => "throw ",
            Self::Other(_) => "special ",
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// The router, if any.
    pub via: Option<IpAddr>,
    /// The name of the device, if any.
    pub device: Option<String>,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(device) = &self.device {
            write!(f, " dev {device}")?;
        }
        Ok(())
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The routing table.
    pub table: u32,
    /// Where to.
    pub dst: Cidr,
    /// The lower, the better.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// One next hop as a rule, several for a multipath route, none for an `unreachable` one or one with a `next_hop`.
    pub hops: Vec<Hop>,
    /// The number of the next hop, or of the group of them, that it leads to.
    pub next_hop: Option<u32>,
    /// The source address that the host itself takes.
    pub source: Option<IpAddr>,
    /// The largest packet on the path, where it differs from the device's.
    pub mtu: Option<u32>,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// The scope (`RT_SCOPE_*`); always 0 in IPv6.
    pub scope: u8,
}

impl Route {
    /// A route of ours into a tunnel device.
    pub fn live(table: u32, dst: Cidr, device: &str, source: Option<IpAddr>) -> Self {
        let scope = match dst.family() {
            Family::V4 => SCOPE_LINK,
            Family::V6 => 0,
        };
        let hops = vec![Hop {
            via: None,
            device: Some(device.to_owned()),
        }];
        Self {
            table,
            dst,
            metric: METRIC,
            kind: RouteKind::Unicast,
            hops,
            next_hop: None,
            source,
            mtu: None,
            protocol: PROTOCOL,
            scope,
        }
    }

    /// A route of ours by a router on a device; the router of an IPv4 block may have an IPv6 address.
    pub fn via(table: u32, dst: Cidr, via: IpAddr, device: &str, source: Option<IpAddr>) -> Self {
        let mut route = Self {
            scope: 0,
            ..Self::live(table, dst, device, source)
        };
        for hop in &mut route.hops {
            hop.via = Some(via);
        }
        route
    }

    /// A route of ours to a next hop or a group by its number.
    pub fn through(table: u32, dst: Cidr, next_hop: u32, source: Option<IpAddr>) -> Self {
        Self {
            hops: Vec::new(),
            next_hop: Some(next_hop),
            source,
            scope: 0,
            kind: RouteKind::Unicast,
            metric: METRIC,
            ..Self::backstop(table, dst)
        }
    }

    /// Our `unreachable` route beneath a live one: what keeps packets from leaving in clear.
    pub fn backstop(table: u32, dst: Cidr) -> Self {
        Self {
            table,
            dst,
            metric: BACKSTOP_METRIC,
            kind: RouteKind::Unreachable,
            hops: Vec::new(),
            next_hop: None,
            source: None,
            mtu: None,
            protocol: PROTOCOL,
            scope: 0,
        }
    }

    /// Whether it is one of our backstops.
    pub fn is_backstop(&self) -> bool {
        self.is_ours() && self.kind == RouteKind::Unreachable && self.metric == BACKSTOP_METRIC
    }

    /// Whether we made it, whatever its table.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    /// What the kernel tells routes of a table apart by: a new route with the same key replaces the old one.
    pub fn key(&self) -> (u32, Cidr, u32) {
        (self.table, self.dst, self.metric)
    }

    /// Whether the kernel made it for an address of a link.
    pub fn is_connected(&self) -> bool {
        let in_scope = self.scope == SCOPE_LINK || self.dst.family() == Family::V6;
        self.protocol == PROTO_KERNEL
            && self.kind == RouteKind::Unicast
            && in_scope
            && self.next_hop.is_none()
            && self.hops.iter().all(|h| h.via.is_none())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.prefix())?;
        if self.dst.prefix_len() == 0 {
            f.write_str("default")?;
        } else {
            write!(f, "{}", self.dst)?;
        }
        if let [hop] = self.hops.as_slice() {
            write!(f, "{hop}")?;
        }
        if let Some(id) = self.next_hop {
            write!(f, " nhid {id}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        match self.protocol {
            PROTO_KERNEL => f.write_str(" proto kernel")?,
            3 => f.write_str(" proto boot")?,
            4 => f.write_str(" proto static")?,
            9 => f.write_str(" proto ra")?,
            12 => f.write_str(" proto bird")?,
            16 => f.write_str(" proto dhcp")?,
            186 => f.write_str(" proto bgp")?,
            other => write!(f, " proto {other}")?,
        }
        if self.scope == SCOPE_LINK {
            f.write_str(" scope link")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if self.hops.len() > 1 {
            for hop in &self.hops {
                write!(f, " nexthop{hop}")?;
            }
        }
        Ok(())
    }
}

/// A routing rule, as far as ours need it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The lower, the earlier.
    pub pref: u32,
    /// Whether the match is negated.
    pub not: bool,
    /// The mark it matches.
    pub mark: Option<Mark>,
    /// The name of the device that the packet came in by.
    pub iif: Option<String>,
    /// The table it looks in.
    pub table: u32,
    /// Who made it; 0 when nobody said.
    pub protocol: u8,
    /// Whether it has matches or actions that this type has no words for: never one of ours.
    pub more: bool,
}

impl Rule {
    /// Our rule: what does not carry our mark looks in our table first.
    pub fn ours(family: Family, pref: u32, mark: Mark, table: u32) -> Self {
        Self {
            family,
            pref,
            not: true,
            mark: Some(mark),
            iif: None,
            table,
            protocol: PROTOCOL,
            more: false,
        }
    }

    /// A rule of ours for what carries a mark.
    pub fn marked(family: Family, pref: u32, mark: Mark, table: u32) -> Self {
        Self {
            not: false,
            ..Self::ours(family, pref, mark, table)
        }
    }

    /// A rule of ours for what came in by a device.
    pub fn from_device(family: Family, pref: u32, device: &str, table: u32) -> Self {
        Self {
            not: false,
            mark: None,
            iif: Some(device.to_owned()),
            ..Self::ours(family, pref, Mark::default(), table)
        }
    }

    /// Whether we made it: for one of these tables, or for what comes in by the device of `from` or at its preference,
    /// whatever the table. Rules for what comes in by a device are of the agent alone; who has no such device of its own has
    /// none of them.
    pub fn is_ours(&self, tables: &BTreeSet<u32>, from: Option<(&str, u32)>) -> bool {
        let ours = match &self.iif {
            Some(iif) => from.is_some_and(|(device, pref)| {
                device == iif || pref == self.pref || tables.contains(&self.table)
            }),
            None => tables.contains(&self.table),
        };
        self.protocol == PROTOCOL && !self.more && ours
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        write!(f, "{family} pref {}", self.pref)?;
        if self.not {
            f.write_str(" not")?;
        }
        f.write_str(" from all")?;
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark}")?;
        }
        if let Some(device) = &self.iif {
            write!(f, " iif {device}")?;
        }
        write!(f, " lookup {} proto {}", self.table, self.protocol)
    }
}

/// What the kernel holds, as far as the agent compares it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All devices.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// The routes of our tables, those of others in them included.
    pub routes: Vec<Route>,
    /// All rules.
    pub rules: Vec<Rule>,
    /// What stands under the numbers of next hops that are ours to use.
    pub next_hops: BTreeMap<u32, Held>,
    /// The forwarding table of our VXLAN device.
    pub fdb: BTreeSet<Fdb>,
    /// Our permanent neighbours on it.
    pub neighbours: BTreeSet<Neighbour>,
}

impl Observed {
    /// The device of a name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_routes_and_rules_read_alike() {
        let dst = "10.64.0.0/16".parse().unwrap();
        assert_eq!(
            Route::through(584, dst, 9, None).to_string(),
            "10.64.0.0/16 nhid 9 table 584 proto 83 metric 100"
        );
        let via = Route::via(584, dst, "fe80::1".parse().unwrap(), "subsea-vx", None);
        assert_eq!(
            via.to_string(),
            "10.64.0.0/16 via fe80::1 dev subsea-vx table 584 proto 83 metric 100"
        );
        let mark = Mark {
            value: 3,
            mask: 0x3f,
        };
        assert_eq!(
            Rule::marked(Family::V6, 581, mark, 588).to_string(),
            "-6 pref 581 from all fwmark 0x3/0x3f lookup 588 proto 83"
        );
        assert_eq!(
            Rule::from_device(Family::V4, 580, "subsea-vx", 583).to_string(),
            "-4 pref 580 from all iif subsea-vx lookup 583 proto 83"
        );
    }

    #[test]
    fn rules_by_device_are_an_agents_by_device_preference_or_table() {
        let tables = BTreeSet::from([584]);
        let agent = Some(("subsea.vx", 580));
        let ours = |device, pref, table, from| {
            Rule::from_device(Family::V4, pref, device, table).is_ours(&tables, from)
        };
        assert!(ours("subsea.vx", 7, 583, agent));
        assert!(ours("eth0", 580, 583, agent), "of a link of others");
        assert!(ours("subsea0", 581, 584, agent));
        assert!(!ours("eth0", 480, 483, agent), "of another agent");
        assert!(!ours("subsea.vx", 580, 584, None), "a gateway has none");
    }

    #[test]
    fn routes_read_like_ip_route() {
        let dst = "10.64.0.0/16".parse().unwrap();
        let live = Route::live(583, dst, "subsea0", Some("198.19.0.1".parse().unwrap()));
        assert_eq!(
            live.to_string(),
            "10.64.0.0/16 dev subsea0 table 583 proto 83 scope link src 198.19.0.1 metric 100"
        );
        assert_eq!(
            Route::backstop(583, dst).to_string(),
            "unreachable 10.64.0.0/16 table 583 proto 83 metric 4294967295"
        );
        let rule = Rule::ours(Family::V4, 583, Mark::default(), 583);
        assert_eq!(
            rule.to_string(),
            "-4 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83"
        );
    }
}
