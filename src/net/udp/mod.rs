//! The underlay sockets of the tunnel: one for each family on the same port, with the offloads that the kernel has. Shell.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::holder::{self, Holder};
use crate::net::offload::{Offloads, Switch};
use crate::net::sys::option;

mod arrivals;
mod refusals;
mod refused;
mod send;
#[cfg(test)]
mod tests;

pub use self::arrivals::Arrivals;
pub use self::refusals::Refusals;
pub use self::refused::Refused;
pub use self::send::{Fault, Train};

/// How long a busy port or device is tried again: a daemon that is being replaced needs a moment to go.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(2);
/// How often meanwhile.
pub(crate) const BUSY_RETRY: Duration = Duration::from_millis(50);
/// Room for bursts; what the kernel does not give is done without.
const BUFFER: usize = 8 << 20;
/// How long a full send buffer is waited for before the rest of a batch is given up.
const SEND_WAIT: Duration = Duration::from_millis(100);

/// The bits of a packet mark that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Their value.
    pub value: u32,
    /// Which bits; the others stay as they are.
    pub mask: u32,
}

impl Mark {
    /// `old` with our bits set to our value.
    pub fn apply(self, old: u32) -> u32 {
        (old & !self.mask) | (self.value & self.mask)
    }
}

/// What the sockets should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpSettings {
    /// The port; 0 takes a free one.
    pub listen_port: u16,
    /// The mark by which our packets pass our own rule.
    pub mark: Option<Mark>,
    /// What the kernel may be asked to do.
    pub offloads: Offloads,
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Somebody has the port.
    #[error(
        "UDP port {port} is in use by {holder}; stop it, or choose another port with `--listen-port`"
    )]
    Busy {
        /// The port.
        port: u16,
        /// Who has it.
        holder: Holder,
    },
    /// The mark was refused.
    #[error(
        "could not set the mark of the UDP sockets: {0}; the CAP_NET_ADMIN capability is needed"
    )]
    Mark(#[source] io::Error),
    /// Anything else.
    #[error("could not open UDP port {port}: {source}")]
    Open {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Both sockets. IPv6 is optional: some hosts are booted without it.
#[derive(Debug)]
pub struct Udp {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
    mark: Option<Mark>,
    /// Held while fragments are sent.
    fragmenting: Mutex<()>,
    /// Nanoseconds.
    waited: AtomicU64,
    /// Trains go to the kernel whole.
    pub gso: Switch,
    /// Trains come from the kernel whole.
    pub gro: Switch,
}

impl Udp {
    /// Opens the sockets. A busy port is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`UdpError`]; a busy port is named with its holder.
    pub fn bind(settings: UdpSettings) -> Result<Self, UdpError> {
        let UdpSettings {
            listen_port: port, ..
        } = settings;
        let start = Instant::now();
        loop {
            match Self::try_bind(settings) {
                Err(UdpError::Open { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                    if start.elapsed() >= BUSY_FOR {
                        return Err(UdpError::Busy {
                            port,
                            holder: holder::of_udp_port(port),
                        });
                    }
                }
                done => return done,
            }
            thread::sleep(BUSY_RETRY);
        }
    }

    fn try_bind(settings: UdpSettings) -> Result<Self, UdpError> {
        let UdpSettings {
            listen_port: port,
            mark,
            offloads,
        } = settings;
        let failed = |source| UdpError::Open { port, source };
        let v4 = open(
            Domain::IPV4,
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        )
        .map_err(failed)?;
        let bound = v4
            .local_addr()
            .map_err(failed)?
            .as_socket()
            .map_or(port, |addr| addr.port());
        let v6 = match open(
            Domain::IPV6,
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), bound),
        ) {
            Ok(socket) => Some(socket),
            Err(error) if is_without_ipv6(&error) => {
                tracing::info!(%error, "this host has no IPv6: the tunnel uses IPv4 alone");
                None
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(mark) = mark {
            for socket in [Some(&v4), v6.as_ref()].into_iter().flatten() {
                set_mark(socket, mark).map_err(UdpError::Mark)?;
            }
        }
        let udp = Self {
            v4,
            v6,
            port: bound,
            mark,
            fragmenting: Mutex::new(()),
            waited: AtomicU64::new(0),
            gso: Switch::allowed(offloads.udp_gso),
            gro: Switch::allowed(offloads.udp_gro),
        };
        udp.negotiate();
        Ok(udp)
    }

    /// Asks the kernel for what is allowed.
    fn negotiate(&self) {
        for socket in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            let refused = |error| format!("the kernel refused it: {error}");
            if self.gso.is_on()
                && let Err(error) = option::get(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT)
            {
                self.gso.turn_off(refused(error));
            }
            if self.gro.is_on()
                && let Err(error) = option::set(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
            {
                self.gro.turn_off(refused(error));
            }
        }
    }

    /// The port that was bound.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The sockets, to wait for: IPv4, and IPv6 where there is one.
    pub fn sockets(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.v4.as_fd(), self.v6.as_ref().map(AsFd::as_fd))
    }

    /// The largest IP packet that the kernel would send whole to `to`: the MTU of the link, or what an ICMP "too big"
    /// said lately.
    ///
    /// # Errors
    /// What the kernel says, for example that there is no route.
    pub fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        let domain = if to.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        if let Some(mark) = self.mark {
            set_mark(&socket, mark)?;
        }
        set_discovery(&socket, to.is_ipv4(), libc::IP_PMTUDISC_DO)?;
        socket.connect(&to.into())?;
        let mtu = if to.is_ipv4() {
            option::get(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU)?
        } else {
            option::get(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU)?
        };
        u32::try_from(mtu).map_err(io::Error::other)
    }

    /// How long it was waited for room in all.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }
}

fn set_mark(socket: &Socket, mark: Mark) -> io::Result<()> {
    let old = socket.mark()?;
    socket.set_mark(mark.apply(old))
}

/// Path MTU discovery: with `IP_PMTUDISC_DO` every packet has DF, and one that is too big is an error. The values of
/// both families are alike (linux/in.h, linux/in6.h).
fn set_discovery(socket: &Socket, v4: bool, value: i32) -> io::Result<()> {
    if v4 {
        option::set(
            socket.as_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            value,
        )
    } else {
        option::set(
            socket.as_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            value,
        )
    }
}

fn open(domain: Domain, addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        domain,
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    set_discovery(&socket, domain == Domain::IPV4, libc::IP_PMTUDISC_DO)?;
    // No address reuse: of two daemons on one port each would get a part of the packets.
    socket.bind(&addr.into())?;
    let grown = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER))
        .and_then(|()| {
            sockopt::set_socket_send_buffer_size_force(&socket, BUFFER)
                .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, BUFFER))
        });
    if let Err(error) = grown {
        tracing::debug!(%error, "the UDP buffers keep their size");
    }
    Ok(socket)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
