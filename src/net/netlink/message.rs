//! Between our types and the messages of rtnetlink. No I/O; foreign types stop here, in `overlay` beside it, and in
//! the shells of this folder.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use subsea_api::{Cidr, Family};

use super::types::{Address, Hop, Link, Mark, Route, RouteKind, Rule};

pub(super) mod overlay;

/// Device names by index.
pub(super) type Names = BTreeMap<u32, String>;

pub(super) fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn known_family(family: AddressFamily) -> Option<Family> {
    if family == AddressFamily::Inet {
        Some(Family::V4)
    } else if family == AddressFamily::Inet6 {
        Some(Family::V6)
    } else {
        None
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        kind: None,
        group: 0,
        vxlan: None,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Group(group) = attribute {
            link.group = *group;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.kind = infos.iter().find_map(|i| {
                if let LinkInfo::Kind(kind) = i {
                    Some(kind.to_string())
                } else {
                    None
                }
            });
        }
    }
    link.vxlan = overlay::vxlan(message);
    link
}

pub(super) fn address(message: &AddressMessage, names: &Names) -> Option<Address> {
    known_family(message.header.family)?;
    let (mut local, mut peer, mut protocol) = (None, None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(addr) = attribute {
            local = Some(*addr);
        } else if let AddressAttribute::Address(addr) = attribute {
            peer = Some(*addr);
        } else if let AddressAttribute::Protocol(by) = attribute {
            protocol = Some(u8::from(*by));
        }
    }
    Some(Address {
        addr: local.or(peer)?,
        prefix_len: message.header.prefix_len,
        device: name(names, message.header.index),
        protocol,
        scope: message.header.scope.into(),
    })
}

/// Whether the address cannot be used as a source yet (duplicate address detection runs, or has failed).
pub(super) fn is_tentative(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
    message
        .attributes
        .iter()
        .any(|a| matches!(a, AddressAttribute::Flags(flags) if flags.intersects(unusable)))
}

/// A message for an address; IPv6 without duplicate address detection, for nobody else is on the device.
pub(super) fn address_message(address: &Address, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(Cidr::host(address.addr).family());
    message.header.prefix_len = address.prefix_len;
    message.header.scope = address.scope.into();
    message.header.index = index;
    message
        .attributes
        .push(AddressAttribute::Address(address.addr));
    if address.addr.is_ipv4() {
        message
            .attributes
            .push(AddressAttribute::Local(address.addr));
    } else {
        message.header.flags = AddressHeaderFlags::Nodad;
        let mut flags = AddressFlags::Nodad;
        // Nor with a route in the main table, which is not ours: the address alone does. On the link it takes one.
        if address.prefix_len == 128 {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    if let Some(protocol) = address.protocol {
        message
            .attributes
            .push(AddressAttribute::Protocol(AddressProtocol::from(protocol)));
    }
    message
}

/// `None` for what `ip route` would not list either, and for routes by source or type of service, which our
/// type has no words for.
pub(super) fn route(message: &RouteMessage, names: &Names) -> Option<Route> {
    let header = &message.header;
    let family = known_family(header.address_family)?;
    if header.source_prefix_length != 0 || header.tos != 0 {
        return None;
    }
    let unspecified: IpAddr = match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let kind = route_kind(header.kind);
    let mut route = Route {
        table: u32::from(header.table),
        dst: Cidr::containing(unspecified, header.destination_prefix_length),
        metric: 0,
        kind,
        hops: Vec::new(),
        next_hop: None,
        source: None,
        mtu: None,
        protocol: header.protocol.into(),
        scope: header.scope.into(),
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(dst) = attribute {
            route.dst = Cidr::containing(ip(dst)?, header.destination_prefix_length);
        } else if let RouteAttribute::Table(table) = attribute {
            route.table = *table;
        } else if let RouteAttribute::Priority(metric) = attribute {
            route.metric = *metric;
        } else if let RouteAttribute::PrefSource(source) = attribute {
            route.source = ip(source);
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            route.mtu = metrics.iter().find_map(|m| {
                if let RouteMetric::Mtu(mtu) = m {
                    Some(*mtu)
                } else {
                    None
                }
            });
        } else if let RouteAttribute::NhId(id) = attribute {
            route.next_hop = Some(*id);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            route.hops = hops
                .iter()
                .map(|h: &RouteNextHop| hop(&h.attributes, Some(h.interface_index), names))
                .collect();
        }
    }
    // What the number stands for, the kernel tells as well.
    if route.next_hop.is_some() {
        route.hops.clear();
        return Some(route);
    }
    // The kernel hangs IPv6 routes that reject on the loopback device.
    if route.hops.is_empty() && matches!(kind, RouteKind::Unicast | RouteKind::Other(_)) {
        route.hops.push(hop(&message.attributes, None, names));
    }
    Some(route)
}

fn hop(attributes: &[RouteAttribute], index: Option<u32>, names: &Names) -> Hop {
    let mut hop = Hop {
        via: None,
        device: index.map(|i| name(names, i)),
    };
    for attribute in attributes {
        if let RouteAttribute::Gateway(via) = attribute {
            hop.via = ip(via);
        } else if let RouteAttribute::Via(RouteVia::Inet6(via)) = attribute {
            hop.via = Some((*via).into());
        } else if let RouteAttribute::Oif(index) = attribute {
            hop.device = Some(name(names, *index));
        }
    }
    hop
}

/// A message for one of our routes; `None` when its device is not there.
pub(super) fn route_message(
    route: &Route,
    indices: &BTreeMap<String, u32>,
) -> Option<RouteMessage> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.family());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::from(route.scope);
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Other(number) => RouteType::from(number),
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(route.dst.first().into()));
    attributes.push(RouteAttribute::Priority(route.metric));
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    if let Some(id) = route.next_hop {
        attributes.push(RouteAttribute::NhId(id));
    } else if let [hop] = route.hops.as_slice() {
        attributes.extend(hop_attributes(route.dst.family(), hop, indices)?);
    } else if !route.hops.is_empty() {
        let mut hops = Vec::with_capacity(route.hops.len());
        for hop in &route.hops {
            let mut next = RouteNextHop::default();
            if let Some(device) = &hop.device {
                next.interface_index = *indices.get(device)?;
            }
            next.attributes
                .extend(hop.via.map(|via| gateway(route.dst.family(), via)));
            hops.push(next);
        }
        attributes.push(RouteAttribute::MultiPath(hops));
    }
    Some(message)
}

/// The router of a hop, which may be of the other family.
fn gateway(of: Family, via: IpAddr) -> RouteAttribute {
    match via {
        IpAddr::V6(v6) if of == Family::V4 => RouteAttribute::Via(RouteVia::Inet6(v6)),
        IpAddr::V4(_) | IpAddr::V6(_) => RouteAttribute::Gateway(via.into()),
    }
}

fn hop_attributes(
    of: Family,
    hop: &Hop,
    indices: &BTreeMap<String, u32>,
) -> Option<Vec<RouteAttribute>> {
    let mut attributes = Vec::with_capacity(2);
    attributes.extend(hop.via.map(|via| gateway(of, via)));
    if let Some(device) = &hop.device {
        attributes.push(RouteAttribute::Oif(*indices.get(device)?));
    }
    Some(attributes)
}

pub(super) fn rule(message: &RuleMessage) -> Option<Rule> {
    let mut rule = Rule {
        family: known_family(message.header.family)?,
        pref: 0,
        not: message.header.flags.contains(RuleFlags::Invert),
        mark: None,
        iif: None,
        table: u32::from(message.header.table),
        protocol: 0,
        more: message.header.action != RuleAction::ToTable
            || message.header.src_len != 0
            || message.header.dst_len != 0
            || message.header.tos != 0,
    };
    let (mut value, mut mask) = (None, None);
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(pref) = attribute {
            rule.pref = *pref;
        } else if let RuleAttribute::Table(table) = attribute {
            rule.table = *table;
        } else if let RuleAttribute::Protocol(protocol) = attribute {
            rule.protocol = u8::from(*protocol);
        } else if let RuleAttribute::FwMark(mark) = attribute {
            value = Some(*mark);
        } else if let RuleAttribute::FwMask(bits) = attribute {
            mask = Some(*bits);
        } else if let RuleAttribute::Iifname(device) = attribute {
            rule.iif = Some(device.clone());
        } else if !matches!(
            attribute,
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Other(_)
        ) {
            rule.more = true;
        }
    }
    if let Some(mask) = mask {
        rule.mark = Some(Mark {
            value: value.unwrap_or(0),
            mask,
        });
    }
    Some(rule)
}

pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.header.action = RuleAction::ToTable;
    if rule.not {
        message.header.flags = RuleFlags::Invert;
    }
    message.attributes.push(RuleAttribute::Priority(rule.pref));
    message.attributes.push(RuleAttribute::Table(rule.table));
    message
        .attributes
        .push(RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)));
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark.value));
        message.attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    if let Some(device) = &rule.iif {
        message
            .attributes
            .push(RuleAttribute::Iifname(device.clone()));
    }
    message
}

/// What the kernel says about a refusal in its own words (`NLMSGERR_ATTR_MSG`), after the header of the request.
pub(super) fn extended_ack(refused: &[u8]) -> Option<String> {
    const REQUEST_HEADER: usize = 16;
    const ATTR_MSG: u16 = 1;
    for attribute in NlasIterator::new(refused.get(REQUEST_HEADER..)?) {
        let attribute = attribute.ok()?;
        if attribute.kind() == ATTR_MSG {
            let text = String::from_utf8_lossy(attribute.value());
            return Some(text.trim_end_matches('\0').to_owned());
        }
    }
    None
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}

fn name(names: &Names, index: u32) -> String {
    names
        .get(&index)
        .cloned()
        .unwrap_or_else(|| format!("if{index}"))
}

fn route_kind(kind: RouteType) -> RouteKind {
    if kind == RouteType::Unicast {
        RouteKind::Unicast
    } else if kind == RouteType::Unreachable {
        RouteKind::Unreachable
    } else if kind == RouteType::BlackHole {
        RouteKind::Blackhole
    } else if kind == RouteType::Prohibit {
        RouteKind::Prohibit
    } else if kind == RouteType::Throw {
        RouteKind::Throw
    } else {
        RouteKind::Other(kind.into())
    }
}
