//! The messages of VXLAN devices and of who is behind them. No I/O.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use subsea_api::Cidr;

use super::super::overlay::{Fdb, Mac, Neighbour, Vxlan};
use super::super::types::PROTOCOL;
use super::{Names, family, name};
use crate::net::wireguard::GROUP;

/// A message that makes a device, of our group.
pub(in super::super) fn vxlan_message(vxlan: &Vxlan) -> LinkMessage {
    let local = match vxlan.local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    };
    let data = vec![
        InfoVxlan::Id(vxlan.vni),
        local,
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(false),
    ];
    let info = vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(vxlan.name.clone()),
        LinkAttribute::Address(vxlan.mac.0.to_vec()),
        LinkAttribute::Mtu(vxlan.mtu),
        LinkAttribute::Group(GROUP),
        LinkAttribute::LinkInfo(info),
    ];
    message
}

/// A message after which the kernel gives a device no link-local address of its own.
pub(in super::super) fn no_link_local(index: u32) -> LinkMessage {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
        vec![mode],
    )])];
    message
}

/// The device of a message, if it is a VXLAN device that we could have made.
pub(super) fn vxlan(message: &LinkMessage) -> Option<Vxlan> {
    let (mut device, mut mac, mut mtu) = (None, None, 0);
    let mut infos = None;
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            device = Some(name.clone());
        } else if let LinkAttribute::Address(bytes) = attribute {
            mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
        } else if let LinkAttribute::Mtu(bytes) = attribute {
            mtu = *bytes;
        } else if let LinkAttribute::LinkInfo(found) = attribute {
            infos = Some(found);
        }
    }
    let data = infos?.iter().find_map(|info| {
        if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
            Some(data)
        } else {
            None
        }
    })?;
    let (mut vni, mut port, mut local) = (None, None, None);
    for item in data {
        if let InfoVxlan::Id(id) = item {
            vni = Some(*id);
        } else if let InfoVxlan::Port(number) = item {
            port = Some(*number);
        } else if let InfoVxlan::Local(v4) = item {
            local = Some(IpAddr::from(*v4));
        } else if let InfoVxlan::Local6(v6) = item {
            local = Some(IpAddr::from(*v6));
        } else if matches!(item, InfoVxlan::Learning(true)) {
            return None;
        }
    }
    Some(Vxlan {
        name: device?,
        vni: vni?,
        port: port?,
        local: local?,
        mac: mac?,
        mtu,
    })
}

/// A message for frames to a hardware address; `index` is of the device.
pub(in super::super) fn fdb_message(fdb: &Fdb, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(fdb.mac.0.to_vec()),
        NeighbourAttribute::Destination(destination(fdb.dst)),
    ];
    message
}

pub(in super::super) fn fdb(message: &NeighbourMessage, names: &Names) -> Option<Fdb> {
    let (addr, mac, _) = told(message)?;
    Some(Fdb {
        device: name(names, message.header.ifindex),
        mac,
        dst: addr,
    })
}

/// A message for a neighbour of ours; `index` is of the device.
pub(in super::super) fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(Cidr::host(neighbour.addr).family());
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(destination(neighbour.addr)),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
        NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

/// A permanent neighbour that we made; none for all others.
pub(in super::super) fn neighbour(message: &NeighbourMessage, names: &Names) -> Option<Neighbour> {
    let (addr, mac, protocol) = told(message)?;
    let ours = protocol == Some(PROTOCOL) && message.header.state == NeighbourState::Permanent;
    ours.then(|| Neighbour {
        device: name(names, message.header.ifindex),
        addr,
        mac,
    })
}

/// An address and the hardware address behind it, as far as the kernel trusts that.
pub(in super::super) fn resolved(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let trusted = [
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Permanent,
    ];
    let (addr, mac, _) = told(message)?;
    trusted
        .contains(&message.header.state)
        .then_some((addr, mac))
}

/// A request for the entries of one device.
pub(in super::super) fn listing(family: AddressFamily, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    // Forwarding tables are filtered by the header, neighbours by an attribute.
    if family == AddressFamily::Bridge {
        message.header.ifindex = index;
    } else {
        message.attributes = vec![NeighbourAttribute::IfIndex(index)];
    }
    message
}

fn told(message: &NeighbourMessage) -> Option<(IpAddr, Mac, Option<u8>)> {
    let (mut addr, mut mac, mut protocol) = (None, None, None);
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(to) = attribute {
            addr = address(to);
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
        } else if let NeighbourAttribute::Protocol(by) = attribute {
            protocol = Some(u8::from(*by));
        }
    }
    Some((addr?, mac?, protocol))
}

fn address(to: &NeighbourAddress) -> Option<IpAddr> {
    if let NeighbourAddress::Inet(v4) = to {
        Some((*v4).into())
    } else if let NeighbourAddress::Inet6(v6) = to {
        Some((*v6).into())
    } else if let NeighbourAddress::Other(bytes) = to {
        let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok()
    } else {
        None
    }
}

fn destination(addr: IpAddr) -> NeighbourAddress {
    match addr {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}
