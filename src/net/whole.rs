//! Datagrams that must get there whole: what a path through the underlay takes, for a driver that sends without DF. Shell.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::sys::option;

/// How each of them begins: no message of WireGuard does, so every implementation of it drops them.
pub const MAGIC: [u8; 12] = *b"\0\0\0\0subsea\0\x01";

/// A datagram on its way. Nobody answers; a router that it is too big for says so, if it says anything.
#[derive(Debug)]
pub struct Probe {
    socket: Socket,
    v4: bool,
}

impl Probe {
    /// Sends an IP packet of `size` bytes with DF. One that is too big for our own link is not sent, and known to be.
    ///
    /// # Errors
    /// When there is no way to `to`, or the mark is refused.
    pub fn send(to: SocketAddr, mark: u32, size: u32) -> io::Result<Self> {
        let v4 = to.is_ipv4();
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
        socket.set_mark(mark)?;
        // With DF, whatever the kernel knows of the path (linux/in.h, linux/in6.h).
        let (level, name) = if v4 {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        option::set(socket.as_fd(), level, name, libc::IP_PMTUDISC_PROBE)?;
        socket.connect(&to.into())?;
        let headers = if v4 { 20 + 8 } else { 40 + 8 };
        let size = usize::try_from(size.saturating_sub(headers)).map_err(io::Error::other)?;
        let mut datagram = vec![0; size.max(MAGIC.len())];
        datagram.splice(..MAGIC.len(), MAGIC);
        match socket.send(&datagram) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { socket, v4 })
    }

    /// The largest packet that the path takes whole as far as the kernel knows: what a router said lately, or else the MTU
    /// of the link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn known(&self) -> io::Result<u32> {
        let (level, name) = if self.v4 {
            (libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        let mtu = option::get(self.socket.as_fd(), level, name)?;
        u32::try_from(mtu).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn it_has_the_size_that_was_asked_for() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(any) else {
                continue;
            };
            let to = peer.local_addr().unwrap();
            let Ok(probe) = Probe::send(to, 0, 1500) else {
                // Without CAP_NET_ADMIN there are no marks.
                assert_ne!(rustix::process::geteuid().as_raw(), 0);
                return;
            };
            let mut buffer = [0; 2_000];
            let length = peer.recv(&mut buffer).unwrap();
            let headers = if to.is_ipv4() { 28 } else { 48 };
            assert_eq!(length, 1500 - headers);
            assert_eq!(buffer[..12], MAGIC);
            assert!(probe.known().unwrap() >= 1500);
            let larger = Probe::send(to, 0, 65_600).unwrap();
            assert!(larger.known().unwrap() <= 65_536, "the link says it");
        }
    }
}
