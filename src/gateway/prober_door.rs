//! The sockets of the echo: one for each family and tunnel device. Shell.
//!
//! Each is bound to our inner address and to the device: what does not come out of the tunnel is not heard. It carries no
//! mark, so that it takes the road that all traffic takes. It sends with DF and does not heed what the kernel thinks of
//! the path: a padded packet is to get there whole or not at all.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::echo::{Echo, PORT};
use crate::membership::clock::Clock;
use crate::net::sys::option;

/// How soon a socket that could not be opened is tried again.
pub(super) const REOPEN: Duration = Duration::from_millis(500);

/// By device, and whether it is for IPv4.
pub(super) type Doors = BTreeMap<(String, bool), Door>;

/// A socket, or when to try for one again.
pub(super) struct Door {
    addr: IpAddr,
    pub(super) socket: Option<UdpSocket>,
    retry: Duration,
}

impl Door {
    /// To be opened soon.
    pub(super) fn closed(addr: IpAddr) -> Self {
        Self {
            addr,
            socket: None,
            retry: Duration::ZERO,
        }
    }

    /// When to open it; `None` while it is open.
    pub(super) fn due(&self) -> Option<Duration> {
        self.socket.is_none().then_some(self.retry)
    }

    pub(super) fn open(&mut self, device: &str, now: Duration) {
        if self.socket.is_some() || now < self.retry {
            return;
        }
        let addr = self.addr;
        match bind(addr, device) {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => {
                tracing::debug!(%addr, device, %error, "echo socket not opened");
                self.retry = now + REOPEN;
            }
        }
    }

    pub(super) fn send(&self, to: IpAddr, echo: &Echo) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.try_send_to(&echo.encode(), SocketAddr::new(to, PORT)) {
            tracing::trace!(%to, %error, "echo not sent");
        }
    }
}

/// Waits until one of the sockets has something to read. One that fails is opened anew after a while.
pub(super) async fn readable(doors: &mut Doors, clock: Clock) {
    poll_fn(|context| {
        for (id, door) in doors.iter_mut() {
            let Some(socket) = &door.socket else { continue };
            match socket.poll_recv_ready(context) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(device = id.0, %error, "echo socket");
                    door.socket = None;
                    door.retry = clock.now().mono + REOPEN;
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
    .await;
}

fn bind(addr: IpAddr, device: &str) -> io::Result<UdpSocket> {
    let domain = if addr.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(device.as_bytes()))?;
    // The reconciler may put the address on the device a moment later.
    if addr.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    let whole = if addr.is_ipv4() {
        [(
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        )]
        .to_vec()
    } else {
        [
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            ),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
        ]
        .to_vec()
    };
    for (level, name, value) in whole {
        option::set(socket.as_fd(), level, name, value)?;
    }
    socket.bind(&SocketAddr::new(addr, PORT).into())?;
    UdpSocket::from_std(socket.into())
}
