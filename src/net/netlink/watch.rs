//! Hears of changes that others make to what is ours. Shell; what is relevant is decided by [`Interest`].
//!
//! The notifications themselves are thrown away: they only say that the kernel must be read again. So nothing
//! needs to be queued, and a lost one (`ENOBUFS`) counts as a change.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::attribute::{attribute, messages, string};
use super::{NetlinkError, nexthop};
use crate::net::wireguard::Names;

/// Enough for any single datagram of notifications.
const DATAGRAM: usize = 65_536;

/// Multicast groups of `NETLINK_ROUTE` (`RTNLGRP_*`).
const ROUTE_GROUPS: [u32; 8] = [
    1,  // links
    5,  // IPv4 addresses
    7,  // IPv4 routes
    8,  // IPv4 rules
    9,  // IPv6 addresses
    11, // IPv6 routes
    19, // IPv6 rules
    32, // next hops
];
/// `RTNLGRP_NEIGH`: neighbours and forwarding tables. A busy node has many, so only who needs them hears them.
const NEIGHBOUR_GROUP: u32 = 3;
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;

/// What belongs to us.
#[derive(Debug, Clone)]
pub struct Interest {
    /// Our tunnel devices, if there may be some.
    pub devices: Option<Names>,
    /// Further devices that matter to us.
    pub others: BTreeSet<String>,
    /// Our routing tables.
    pub tables: BTreeSet<u32>,
    /// The numbers of our next hops.
    pub next_hops: Range<u32>,
    /// The index of the device whose neighbours and forwarding table are ours.
    pub neighbours_of: Option<u32>,
    /// The name of our nftables table.
    pub nft_table: &'static str,
}

/// Sockets that hear notifications.
pub struct Watch {
    interest: Interest,
    route: TokioSocket,
    nftables: TokioSocket,
    route_buffer: Vec<u8>,
    nftables_buffer: Vec<u8>,
    /// When to tell of what was heard. Kept over a cancelled [`Watch::changed`].
    due: Option<Instant>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("interest", &self.interest)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Subscribes; inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open(interest: Interest) -> Result<Self, NetlinkError> {
        let route = subscribe(NETLINK_ROUTE, &ROUTE_GROUPS)
            .map_err(|source| NetlinkError::Open { source })?;
        let nftables = subscribe(NETLINK_NETFILTER, &[NFTABLES_GROUP])
            .map_err(|source| NetlinkError::Open { source })?;
        let buffer = || Vec::with_capacity(DATAGRAM);
        Ok(Self {
            interest,
            route,
            nftables,
            route_buffer: buffer(),
            nftables_buffer: buffer(),
            due: None,
        })
    }

    /// What belongs to us, to be changed.
    pub fn interest(&mut self) -> &mut Interest {
        &mut self.interest
    }

    /// Hears of neighbours of a device, too, and of its forwarding table.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when the kernel does not let us.
    pub fn neighbours_of(&mut self, index: Option<u32>) -> Result<(), NetlinkError> {
        let socket = self.route.socket_ref();
        match (self.interest.neighbours_of, index) {
            (None, Some(_)) => socket.add_membership(NEIGHBOUR_GROUP),
            (Some(_), None) => socket.drop_membership(NEIGHBOUR_GROUP),
            (Some(_), Some(_)) | (None, None) => Ok(()),
        }
        .map_err(|source| NetlinkError::Open { source })?;
        self.interest.neighbours_of = index;
        Ok(())
    }

    /// Resolves when something of ours may have changed, `settle` after it was first heard: one change brings
    /// others. Safe to cancel and to call again: nothing is lost, and the moment stays the same.
    pub async fn changed(&mut self, settle: Duration) {
        let due = loop {
            if let Some(due) = self.due {
                break due;
            }
            if self.hear().await {
                self.due = Some(Instant::now() + settle);
            }
        };
        tokio::time::sleep_until(due).await;
        // Others' bursts end here, and so do the echoes of our own changes.
        self.drain();
    }

    /// Throws away what was heard so far: the caller is about to read the kernel.
    pub fn drain(&mut self) {
        for socket in [&self.route, &self.nftables] {
            loop {
                self.route_buffer.clear();
                // An overflow, too, is answered by reading on.
                match socket
                    .socket_ref()
                    .recv(&mut self.route_buffer, libc::MSG_DONTWAIT)
                {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(_) => break,
                }
            }
        }
        self.due = None;
    }

    async fn hear(&mut self) -> bool {
        self.route_buffer.clear();
        self.nftables_buffer.clear();
        tokio::select! {
            outcome = self.route.recv(&mut self.route_buffer) => {
                // An error means that some were lost: only reading the kernel anew can tell.
                outcome.is_err() || self.interest.concerns_route(&self.route_buffer)
            }
            outcome = self.nftables.recv(&mut self.nftables_buffer) => {
                outcome.is_err() || self.interest.concerns_nftables(&self.nftables_buffer)
            }
        }
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_ref().add_membership(*group)?;
    }
    Ok(socket)
}

impl Interest {
    /// Whether a datagram of `NETLINK_ROUTE` tells of our device, an address, our table or a rule.
    pub fn concerns_route(&self, datagram: &[u8]) -> bool {
        messages(datagram).any(|(kind, body)| match kind {
            // RTM_NEWLINK, RTM_DELLINK; struct ifinfomsg, IFLA_IFNAME. The kernel hangs IPv6 backstops on the
            // loopback device and drops them in silence when that goes down.
            16 | 17 => string(body, 16, 3).is_some_and(|name| {
                let ours = |name| {
                    let devices = self.devices.as_ref();
                    devices.is_some_and(|d| d.slot(name).is_some()) || self.others.contains(name)
                };
                name == b"lo" || std::str::from_utf8(name).is_ok_and(ours)
            }),
            // RTM_NEWADDR, RTM_DELADDR: our preferred source may be on any device; RTM_NEWRULE, RTM_DELRULE
            20 | 21 | 32 | 33 => true,
            // RTM_NEWROUTE, RTM_DELROUTE; struct rtmsg, RTA_TABLE
            24 | 25 => {
                let long = attribute(body, 12, 15)
                    .and_then(|v| v.try_into().ok())
                    .map(u32::from_ne_bytes);
                let table = long.or_else(|| body.get(4).map(|t| u32::from(*t)));
                table.is_some_and(|table| self.tables.contains(&table))
            }
            // RTM_NEWNEIGH, RTM_DELNEIGH; struct ndmsg
            28 | 29 => {
                let index = body.get(4..8).and_then(|v| v.try_into().ok());
                index.is_some() && index.map(u32::from_ne_bytes) == self.neighbours_of
            }
            104 | 105 => nexthop::tells_of(kind, body, &self.next_hops),
            _ => false,
        })
    }

    /// Whether a datagram of `NETLINK_NETFILTER` tells of our table. In every message about tables, chains,
    /// rules, sets and elements the first attribute is the name of the table.
    pub fn concerns_nftables(&self, datagram: &[u8]) -> bool {
        const NFPROTO_INET: u8 = 1;
        messages(datagram).any(|(_, body)| {
            body.first() == Some(&NFPROTO_INET)
                && string(body, 4, 1) == Some(self.nft_table.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attribute::HEADER;
    use super::*;

    fn interest() -> Interest {
        Interest {
            devices: Some(Names::new("subsea0")),
            others: BTreeSet::from(["subsea-vx".into()]),
            tables: BTreeSet::from([583, 590]),
            next_hops: 10..20,
            neighbours_of: Some(7),
            nft_table: "subsea",
        }
    }

    fn message(kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = fixed.to_vec();
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(HEADER + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        message.extend(kind.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    #[test]
    fn only_our_device_table_and_nftables_table_wake_us() {
        let ours = message(
            25,
            &[0; 12],
            &[(1, &[10, 64, 0, 0]), (15, &583_u32.to_ne_bytes())],
        );
        let main = message(
            24,
            &[2, 16, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[(15, &254_u32.to_ne_bytes())],
        );
        assert!(interest().concerns_route(&ours));
        assert!(!interest().concerns_route(&main));
        assert!(interest().concerns_route(&[main, ours].concat()));
        assert!(interest().concerns_route(&message(17, &[0; 16], &[(3, b"subsea0\0")])));
        assert!(!interest().concerns_route(&message(17, &[0; 16], &[(3, b"subsea01\0")])));
        assert!(interest().concerns_route(&message(16, &[0; 16], &[(3, b"subsea-vx\0")])));
        let further = message(25, &[0; 12], &[(15, &590_u32.to_ne_bytes())]);
        assert!(interest().concerns_route(&further));
        let neighbour = |index: u8| message(28, &[10, 0, 0, 0, index, 0, 0, 0, 0, 0, 0, 0], &[]);
        assert!(interest().concerns_route(&neighbour(7)));
        assert!(!interest().concerns_route(&neighbour(8)));
        let next_hop = |id: u32| message(105, &[0; 8], &[(1, &id.to_ne_bytes())]);
        assert!(interest().concerns_route(&next_hop(19)));
        assert!(!interest().concerns_route(&next_hop(20)));
        assert!(interest().concerns_nftables(&message(0xa01, &[1, 0, 0, 0], &[(1, b"subsea\0")])));
        assert!(!interest().concerns_nftables(&message(0xa01, &[2, 0, 0, 0], &[(1, b"subsea\0")])));
        assert!(!interest().concerns_nftables(&message(0xa01, &[1, 0, 0, 0], &[(1, b"filter\0")])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            interest().concerns_route(&bytes);
            interest().concerns_nftables(&bytes);
        }
    }
}
