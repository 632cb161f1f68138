//! Hears of datagrams that were refused where they went to, because no process has the port there. Shell.
//!
//! The sockets that send would have to take these errors out of the way of datagrams (`IP_RECVERR`), for one peer that is
//! dead at the cost of all others. A raw socket beside them costs them nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::refused::{self, Refused};
use crate::net::sys::option;

/// Messages that are read at once; the kernel keeps no more than fit into the socket's buffer.
const MESSAGES: usize = 64;
/// More than is looked at of a message.
const ROOM: usize = 256;
/// `ICMP_FILTER` at level `SOL_RAW` (linux/icmp.h), and `ICMPV6_FILTER` at level `IPPROTO_ICMPV6` (linux/icmpv6.h): types
/// whose bits are set are not received.
const ICMP_FILTER: i32 = 1;
const SOL_RAW: i32 = 255;
/// "Destination unreachable" alone, of IPv4 and of IPv6.
const ONLY_V4: [i32; 1] = [!(1 << 3)];
const ONLY_V6: [i32; 8] = [!(1 << 1), -1, -1, -1, -1, -1, -1, -1];

/// The sockets that hear of it: of each family one, where it can be had.
#[derive(Debug)]
pub struct Refusals {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Refusals {
    /// Opens what can be had. Without one, what is refused is not heard of, and nothing else is amiss.
    pub fn open() -> Self {
        let one = |v4| match open(v4) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::info!(v4, %error, "no raw ICMP socket: refused datagrams are not heard of");
                None
            }
        };
        Self {
            v4: one(true),
            v6: one(false),
        }
    }

    /// The sockets, to wait for.
    pub fn sockets(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.v4, &self.v6].map(|socket| socket.as_ref().map(AsFd::as_fd))
    }

    /// Takes what waits, not too much at a time.
    pub fn take(&self) -> BTreeSet<Refused> {
        let mut found = BTreeSet::new();
        for (socket, v4) in [(&self.v4, true), (&self.v6, false)] {
            let Some(socket) = socket else { continue };
            let mut room = [0; ROOM];
            for _ in 0..MESSAGES {
                let Ok(len) = socket.recv(&mut room) else {
                    break;
                };
                found.extend(refused::read(room.get(..len).unwrap_or_default(), v4));
            }
        }
        found
    }
}

fn open(v4: bool) -> io::Result<UdpSocket> {
    let (domain, protocol, level, filter) = if v4 {
        (Domain::IPV4, Protocol::ICMPV4, SOL_RAW, &ONLY_V4[..])
    } else {
        (
            Domain::IPV6,
            Protocol::ICMPV6,
            libc::IPPROTO_ICMPV6,
            &ONLY_V6[..],
        )
    };
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(protocol))?;
    option::set_all(socket.as_fd(), level, ICMP_FILTER, filter)?;
    Ok(socket.into())
}
