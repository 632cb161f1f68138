//! The changes that can be made, and their messages. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::NetlinkError;
use super::message::{self, overlay};
use super::nexthop::{Group, NextHop};
use super::overlay::{Fdb, Neighbour, Vxlan};
use super::types::{Address, Route, Rule};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a device up.
    LinkUp(String),
    /// Sets the MTU of a device.
    SetMtu(String, u32),
    /// Adds an address; one that is there is fine.
    AddAddress(Address),
    /// Removes an address; one that is gone is fine.
    DeleteAddress(Address),
    /// Adds a route, in place of the one with the same key.
    PutRoute(Route),
    /// Removes a route; one that is gone is fine.
    DeleteRoute(Route),
    /// Adds a rule; one that is there is fine.
    AddRule(Rule),
    /// Removes a rule; one that is gone is fine.
    DeleteRule(Rule),
    /// Removes a device; one that is gone is fine.
    DeleteLink(String),
    /// Makes a VXLAN device, down.
    AddVxlan(Vxlan),
    /// Keeps the kernel from giving a device a link-local address.
    NoLinkLocal(String),
    /// Says to which node frames go, in place of what was said before.
    PutFdb(Fdb),
    /// Forgets it; what is gone is fine.
    DeleteFdb(Fdb),
    /// Says which hardware address is behind an address, in place of what was known.
    PutNeighbour(Neighbour),
    /// Forgets it; what is gone is fine.
    DeleteNeighbour(Neighbour),
    /// Makes a next hop, in place of the one with its number.
    PutNextHop(NextHop),
    /// Makes a group of next hops, in place of the one with its number.
    PutGroup(Group),
    /// Removes a next hop or a group; one that is gone is fine.
    DeleteNextHop(u32),
}

impl Change {
    /// Whether it is one of those that [`super::Fast`] makes.
    pub fn is_fast(&self) -> bool {
        matches!(
            self,
            Self::PutNextHop(_)
                | Self::PutGroup(_)
                | Self::DeleteNextHop(_)
                | Self::AddRule(_)
                | Self::DeleteRule(_)
        )
    }

    /// Whether devices are others after it, so that what follows must look for them anew.
    pub(super) fn changes_devices(&self) -> bool {
        matches!(self, Self::DeleteLink(_) | Self::AddVxlan(_))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUp(device) => write!(f, "set device {device} up"),
            Self::SetMtu(device, mtu) => write!(f, "set the MTU of device {device} to {mtu}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
            Self::PutRoute(route) => write!(f, "add route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Self::DeleteLink(device) => write!(f, "delete device {device}"),
            Self::AddVxlan(vxlan) => write!(f, "make device {vxlan}"),
            Self::NoLinkLocal(device) => write!(f, "set device {device} addrgenmode none"),
            Self::PutFdb(fdb) => write!(f, "set forwarding of {fdb}"),
            Self::DeleteFdb(fdb) => write!(f, "delete forwarding of {fdb}"),
            Self::PutNeighbour(neighbour) => write!(f, "set neighbour {neighbour}"),
            Self::DeleteNeighbour(neighbour) => write!(f, "delete neighbour {neighbour}"),
            Self::PutNextHop(hop) => write!(f, "set next hop {hop}"),
            Self::PutGroup(group) => write!(f, "set next hop {group}"),
            Self::DeleteNextHop(id) => write!(f, "delete next hop {id}"),
        }
    }
}

/// The message of a change; `None` when there is nothing to do, for what it deletes went with its device.
pub(super) fn request(
    change: &Change,
    indices: &BTreeMap<String, u32>,
) -> Result<Option<NetlinkMessage<Message>>, NetlinkError> {
    let index = |device: &String| indices.get(device).copied();
    let no_device = || NetlinkError::NoDevice {
        what: change.to_string(),
    };
    let (message, flags) = match change {
        Change::LinkUp(device) => {
            let mut link = link_message(index(device).ok_or_else(no_device)?);
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
            (Message::SetLink(link), 0)
        }
        Change::SetMtu(device, mtu) => {
            let mut link = link_message(index(device).ok_or_else(no_device)?);
            link.attributes.push(LinkAttribute::Mtu(*mtu));
            (Message::SetLink(link), 0)
        }
        Change::DeleteLink(device) => {
            let Some(index) = index(device) else {
                return Ok(None);
            };
            (Message::DelLink(link_message(index)), 0)
        }
        Change::AddAddress(address) => {
            let index = index(&address.device).ok_or_else(no_device)?;
            (
                Message::NewAddress(message::address_message(address, index)),
                NLM_F_CREATE | NLM_F_EXCL,
            )
        }
        Change::DeleteAddress(address) => {
            let Some(index) = index(&address.device) else {
                return Ok(None);
            };
            (
                Message::DelAddress(message::address_message(address, index)),
                0,
            )
        }
        Change::PutRoute(route) => {
            let message = message::route_message(route, indices).ok_or_else(no_device)?;
            (Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Change::DeleteRoute(route) => {
            let Some(message) = message::route_message(route, indices) else {
                return Ok(None);
            };
            (Message::DelRoute(message), 0)
        }
        Change::AddRule(rule) => (
            Message::NewRule(message::rule_message(rule)),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Change::DeleteRule(rule) => (Message::DelRule(message::rule_message(rule)), 0),
        Change::AddVxlan(vxlan) => (
            Message::NewLink(overlay::vxlan_message(vxlan)),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Change::NoLinkLocal(device) => {
            let index = index(device).ok_or_else(no_device)?;
            (Message::SetLink(overlay::no_link_local(index)), 0)
        }
        Change::PutFdb(fdb) => {
            let index = index(&fdb.device).ok_or_else(no_device)?;
            (
                Message::NewNeighbour(overlay::fdb_message(fdb, index)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
        }
        Change::DeleteFdb(fdb) => {
            let Some(index) = index(&fdb.device) else {
                return Ok(None);
            };
            (Message::DelNeighbour(overlay::fdb_message(fdb, index)), 0)
        }
        Change::PutNeighbour(neighbour) => {
            let index = index(&neighbour.device).ok_or_else(no_device)?;
            (
                Message::NewNeighbour(overlay::neighbour_message(neighbour, index)),
                NLM_F_CREATE | NLM_F_REPLACE,
            )
        }
        Change::DeleteNeighbour(neighbour) => {
            let Some(index) = index(&neighbour.device) else {
                return Ok(None);
            };
            let message = overlay::neighbour_message(neighbour, index);
            (Message::DelNeighbour(message), 0)
        }
        // They go by a socket of their own.
        Change::PutNextHop(_) | Change::PutGroup(_) | Change::DeleteNextHop(_) => return Ok(None),
    };
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    Ok(Some(message))
}

fn link_message(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// Refusals that mean that what was asked for is so already.
pub(super) fn forgiven(change: &Change, code: i32) -> bool {
    match change {
        Change::AddAddress(_) | Change::AddRule(_) | Change::PutRoute(_) => code == libc::EEXIST,
        Change::DeleteRoute(_) | Change::DeleteRule(_) => {
            code == libc::ESRCH || code == libc::ENOENT
        }
        Change::DeleteAddress(_)
        | Change::DeleteLink(_)
        | Change::DeleteFdb(_)
        | Change::DeleteNeighbour(_) => {
            code == libc::EADDRNOTAVAIL || code == libc::ENODEV || code == libc::ENOENT
        }
        // A kernel without IPv6 gives no such address either.
        Change::NoLinkLocal(_) => code == libc::EAFNOSUPPORT,
        Change::LinkUp(_)
        | Change::SetMtu(..)
        | Change::AddVxlan(_)
        | Change::PutFdb(_)
        | Change::PutNeighbour(_)
        | Change::PutNextHop(_)
        | Change::PutGroup(_)
        | Change::DeleteNextHop(_) => false,
    }
}
