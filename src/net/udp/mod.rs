//! The underlay sockets of the tunnel: one for each family on the same port, with the offloads that the kernel has. Shell.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::holder::{self, Holder};
use crate::net::offload::{Offloads, Switch};
use crate::net::sys::option;
use crate::net::sys::udp::{self as sys, MESSAGES, RawAddr, Received};
use crate::net::wake::wait_writable;

#[cfg(test)]
mod tests;

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

/// Datagrams for one address.
#[derive(Debug, Clone, Copy)]
pub struct Train<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// The datagrams, one after the other; at most 64 and 65,000 bytes.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
}

/// What went wrong with a train of [`Udp::send`].
#[derive(Debug)]
pub enum Fault {
    /// The kernel did not take some of it.
    Refused {
        /// Which train.
        train: usize,
        /// How many datagrams.
        datagrams: u64,
        /// Why.
        error: io::Error,
    },
    /// It is larger than the path takes, and was sent in fragments.
    TooBig {
        /// Which train.
        train: usize,
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

    fn socket_to(&self, to: SocketAddr) -> Option<&Socket> {
        if to.is_ipv4() {
            Some(&self.v4)
        } else {
            self.v6.as_ref()
        }
    }

    /// Sends trains in order, waiting a little for room. What goes wrong with one does not stop the others.
    pub fn send(&self, trains: &[Train<'_>], faults: &mut Vec<Fault>) {
        let mut rest = trains;
        let mut done = 0;
        while let Some(first) = rest.first() {
            let is_alike = |train: &&Train<'_>| {
                train.to.is_ipv4() == first.to.is_ipv4()
                    && (train.bytes.len() <= train.segment || self.gso.is_on())
            };
            let run = rest.iter().take(MESSAGES).take_while(is_alike).count();
            let Some(socket) = self.socket_to(first.to) else {
                faults.push(refused(
                    done,
                    first,
                    io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
                ));
                (rest, done) = (&rest[1..], done + 1);
                continue;
            };
            if run == 0 {
                // A train, and the kernel takes none.
                self.send_apart(socket, done, first, faults);
                (rest, done) = (&rest[1..], done + 1);
                continue;
            }
            let sent = self.send_run(socket, done, &rest[..run], faults);
            (rest, done) = (&rest[sent..], done + sent);
        }
    }

    /// Sends some of `run`, at least one, and says how many are done with.
    fn send_run(
        &self,
        socket: &Socket,
        number: usize,
        run: &[Train<'_>],
        faults: &mut Vec<Fault>,
    ) -> usize {
        let mut raw = [sys::Train {
            to: RawAddr::EMPTY,
            bytes: IoSlice::new(&[]),
            segment: None,
        }; MESSAGES];
        for (raw, train) in raw.iter_mut().zip(run) {
            raw.to = RawAddr::new(train.to);
            raw.bytes = IoSlice::new(train.bytes);
            let segment = u16::try_from(train.segment).ok();
            raw.segment = segment.filter(|_| train.bytes.len() > train.segment);
        }
        let error = match self.send_waiting(socket, &raw[..run.len()]) {
            Ok(sent) => return sent.max(1),
            Err(error) => error,
        };
        let first = &run[0];
        let is_train = first.bytes.len() > first.segment;
        match error.raw_os_error() {
            // EINVAL is what older kernels say of a segment larger than the path takes.
            Some(libc::EMSGSIZE | libc::EINVAL) if is_train => {
                self.send_apart(socket, number, first, faults)
            }
            // A device that cannot complete checksums (udp(7)); it may not be the only one of this host.
            Some(libc::EIO) if is_train => {
                if self.gso.turn_off(
                    "the kernel refused a train with EIO: a device without checksum offload",
                ) {
                    tracing::warn!(
                        "UDP segmentation offload is switched off: a device on the path of the tunnel has no checksum offload"
                    );
                }
                self.send_apart(socket, number, first, faults);
            }
            Some(libc::EMSGSIZE) => self.send_apart(socket, number, first, faults),
            _ => faults.push(refused(number, first, error)),
        }
        1
    }

    /// Sends the datagrams of a train one by one, in fragments where the path takes no more.
    fn send_apart(
        &self,
        socket: &Socket,
        number: usize,
        train: &Train<'_>,
        faults: &mut Vec<Fault>,
    ) {
        let mut too_big = false;
        let mut lost: Option<(u64, io::Error)> = None;
        for bytes in train.bytes.chunks(train.segment.max(1)) {
            let datagram = [sys::Train {
                to: RawAddr::new(train.to),
                bytes: IoSlice::new(bytes),
                segment: None,
            }];
            let sent = match self.send_waiting(socket, &datagram) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    too_big = true;
                    self.send_fragmented(socket, train.to, &datagram)
                }
                other => other,
            };
            if let Err(error) = sent {
                lost.get_or_insert((0, error)).0 += 1;
            }
        }
        if too_big {
            faults.push(Fault::TooBig { train: number });
        }
        if let Some((datagrams, error)) = lost {
            faults.push(Fault::Refused {
                train: number,
                datagrams,
                error,
            });
        }
    }

    /// Sends a datagram without DF. The option is the socket's, so what another thread sends meanwhile goes without
    /// DF, too; that is harmless, and rare.
    fn send_fragmented(
        &self,
        socket: &Socket,
        to: SocketAddr,
        datagram: &[sys::Train<'_>],
    ) -> io::Result<usize> {
        let _held = self
            .fragmenting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        set_discovery(socket, to.is_ipv4(), libc::IP_PMTUDISC_DONT)?;
        let sent = self.send_waiting(socket, datagram);
        set_discovery(socket, to.is_ipv4(), libc::IP_PMTUDISC_DO)?;
        sent
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

    /// Sends, waiting a little when the buffer is full; gives how many went.
    fn send_waiting(&self, socket: &Socket, trains: &[sys::Train<'_>]) -> io::Result<usize> {
        loop {
            match sys::send_many(socket.as_fd(), trains) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let start = Instant::now();
                    let has_room = wait_writable(socket.as_fd(), SEND_WAIT);
                    let waited = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    self.waited.fetch_add(waited, Ordering::Relaxed);
                    if !has_room {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

fn refused(train: usize, of: &Train<'_>, error: io::Error) -> Fault {
    Fault::Refused {
        train,
        datagrams: of.bytes.len().div_ceil(of.segment.max(1)) as u64,
        error,
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

/// How many buffers one call fills, each with a datagram or a train.
const BUFFERS: usize = 8;
/// Room for the largest train; a distance of an odd number of cache lines keeps the heads of buffers apart in the cache.
const ROOM: usize = 65_536 + 64;

/// What came in one call. Allocated once and used for ever; untouched pages cost nothing.
#[derive(Debug)]
pub struct Arrivals {
    bytes: Box<[u8]>,
    received: [Received; BUFFERS],
    count: usize,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            bytes: vec![0; BUFFERS * ROOM].into_boxed_slice(),
            received: [Received::EMPTY; BUFFERS],
            count: 0,
        }
    }
}

impl Arrivals {
    /// Takes what waits at `socket`, without waiting; gives whether there may be more.
    ///
    /// # Errors
    /// What the kernel says; nothing to read is no error.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        self.count = 0;
        let mut slices = [const { None }; BUFFERS];
        for (slice, room) in slices.iter_mut().zip(self.bytes.chunks_exact_mut(ROOM)) {
            *slice = Some(IoSliceMut::new(room));
        }
        let mut slices = slices.map(|slice| slice.unwrap_or_else(|| IoSliceMut::new(&mut [])));
        match sys::receive_many(socket, &mut slices, &mut self.received) {
            Ok(got) => {
                self.count = got;
                Ok(got == BUFFERS)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The datagrams in order, each with its sender.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let received = self.received.iter().take(self.count);
        received
            .zip(self.bytes.chunks_exact(ROOM))
            .flat_map(|(received, room)| {
                let bytes = room.get(..received.len).unwrap_or_default();
                // Both families always have an address; should the kernel give none, nothing is taken.
                let from = received.from.addr();
                let segment = received.segment.max(1);
                // An empty datagram is one, too.
                let count = bytes.len().div_ceil(segment).max(1);
                (0..count).filter_map(move |n| {
                    let end = bytes.len().min((n + 1) * segment);
                    Some((from?, bytes.get(n * segment..end)?))
                })
            })
    }
}
