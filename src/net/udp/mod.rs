//! The underlay sockets of the tunnel: one for each family on the same port, moved in batches. Shell.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::batch::{Batch, CAPACITY};
use crate::net::holder::{self, Holder};
use crate::net::sys::{self, RawAddr, Received};
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

/// Where batches of datagrams come from.
pub trait ReceiveBatch {
    /// Appends what is there to `batch`, without waiting; gives how many.
    ///
    /// # Errors
    /// What the kernel says; nothing to read is no error but 0.
    fn recv_batch(&mut self, batch: &mut Batch<SocketAddr>) -> io::Result<usize>;
}

/// Where batches of datagrams go.
pub trait SendBatch {
    /// Sends all of `batch` in order, waiting a little for room; what the kernel refused is given back by its
    /// position and left out.
    fn send_batch(&mut self, batch: &Batch<SocketAddr>) -> Vec<Refusal>;
}

/// A packet that the kernel did not take.
#[derive(Debug)]
pub struct Refusal {
    /// Which of the batch.
    pub position: usize,
    /// Why.
    pub error: io::Error,
}

/// Both sockets. IPv6 is optional: some hosts are booted without it.
#[derive(Debug)]
pub struct Udp {
    v4: Socket,
    v6: Option<Socket>,
    port: u16,
}

impl Udp {
    /// Opens the sockets. A busy port is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`UdpError`]; a busy port is named with its holder.
    pub fn bind(settings: UdpSettings) -> Result<Self, UdpError> {
        let UdpSettings {
            listen_port: port,
            mark,
        } = settings;
        let start = Instant::now();
        loop {
            match Self::try_bind(port, mark) {
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

    fn try_bind(port: u16, mark: Option<Mark>) -> Result<Self, UdpError> {
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
                let old = socket.mark().map_err(UdpError::Mark)?;
                socket.set_mark(mark.apply(old)).map_err(UdpError::Mark)?;
            }
        }
        Ok(Self {
            v4,
            v6,
            port: bound,
        })
    }

    /// The port that was bound.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The receiving side of the IPv4 socket.
    pub fn receiver_v4(&self) -> UdpReceiver<'_> {
        UdpReceiver { socket: &self.v4 }
    }

    /// The receiving side of the IPv6 socket, where there is one.
    pub fn receiver_v6(&self) -> Option<UdpReceiver<'_>> {
        self.v6.as_ref().map(|socket| UdpReceiver { socket })
    }

    /// A sending side for both; each thread takes its own.
    pub fn sender(&self) -> UdpSender<'_> {
        UdpSender { udp: self }
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

/// The receiving side of one socket.
#[derive(Debug)]
pub struct UdpReceiver<'a> {
    socket: &'a Socket,
}

impl AsFd for UdpReceiver<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ReceiveBatch for UdpReceiver<'_> {
    fn recv_batch(&mut self, batch: &mut Batch<SocketAddr>) -> io::Result<usize> {
        let mut received = [Received::EMPTY; CAPACITY];
        let got = {
            let mut slices: Vec<IoSliceMut<'_>> = Vec::with_capacity(CAPACITY);
            slices.extend(batch.spares().map(IoSliceMut::new));
            match sys::receive_many(self.socket.as_fd(), &mut slices, &mut received) {
                Ok(got) => got,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    0
                }
                Err(error) => return Err(error),
            }
        };
        for entry in &received[..got] {
            // Both families always have an address; should the kernel give none, the datagram is skipped as
            // an empty one, which is no WireGuard message.
            match entry.from.addr() {
                Some(from) => batch.commit(entry.len, from),
                None => batch.commit(0, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
            }
        }
        Ok(got)
    }
}

/// A sending side for both sockets.
#[derive(Debug)]
pub struct UdpSender<'a> {
    udp: &'a Udp,
}

impl SendBatch for UdpSender<'_> {
    fn send_batch(&mut self, batch: &Batch<SocketAddr>) -> Vec<Refusal> {
        let mut refused = Vec::new();
        let datagrams: Vec<(RawAddr, IoSlice<'_>)> = batch
            .iter()
            .map(|(to, bytes)| (RawAddr::new(*to), IoSlice::new(bytes)))
            .collect();
        let families: Vec<bool> = batch.iter().map(|(to, _)| to.is_ipv4()).collect();
        let mut at = 0;
        for run in families.chunk_by(PartialEq::eq) {
            let end = at + run.len();
            let socket = if run.first() == Some(&true) {
                Some(&self.udp.v4)
            } else {
                self.udp.v6.as_ref()
            };
            match socket {
                Some(socket) => send_run(socket, &datagrams[at..end], at, &mut refused),
                None => refused.extend((at..end).map(|position| Refusal {
                    position,
                    error: io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
                })),
            }
            at = end;
        }
        refused
    }
}

fn send_run(
    socket: &Socket,
    run: &[(RawAddr, IoSlice<'_>)],
    offset: usize,
    refused: &mut Vec<Refusal>,
) {
    let mut at = 0;
    while at < run.len() {
        match sys::send_many(socket.as_fd(), &run[at..]) {
            Ok(sent) => at += sent.max(1),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && wait_writable(socket.as_fd(), SEND_WAIT) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let full = || io::Error::from(io::ErrorKind::WouldBlock);
                refused.extend((at..run.len()).map(|i| Refusal {
                    position: offset + i,
                    error: full(),
                }));
                return;
            }
            Err(error) => {
                refused.push(Refusal {
                    position: offset + at,
                    error,
                });
                at += 1;
            }
        }
    }
}
