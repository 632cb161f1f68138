//! What goes to the underlay, many datagrams at once, and what to do when the kernel will not. Shell.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use socket2::Socket;

use super::{SEND_WAIT, Udp, set_discovery};
use crate::net::sys::udp::{self as sys, MESSAGES, RawAddr};
use crate::net::wake::wait_writable;

/// Datagrams for one address.
#[derive(Debug, Clone, Copy)]
pub struct Train<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// The datagrams, one after the other; at most 64 and 65,000 bytes.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
    /// It gets there whole or not at all: it is there to find out.
    pub whole: bool,
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
    /// It is larger than the path takes, and was sent in fragments, or not at all where it had to be whole.
    TooBig {
        /// Which train.
        train: usize,
    },
}

impl Udp {
    fn socket_to(&self, to: SocketAddr) -> Option<&Socket> {
        if to.is_ipv4() {
            Some(&self.v4)
        } else {
            self.v6.as_ref()
        }
    }

    /// Sends trains in order, waiting a little for room. What goes wrong with one does not stop the others.
    pub fn send(&self, trains: &[Train<'_>], faults: &mut Vec<Fault>) {
        // One for all: a socket that takes nothing must not hold up a whole batch train by train.
        let deadline = Instant::now() + SEND_WAIT;
        let mut rest = trains;
        let mut done = 0;
        while let Some(first) = rest.first() {
            let is_alike = |train: &&Train<'_>| {
                train.to.is_ipv4() == first.to.is_ipv4()
                    && train.whole == first.whole
                    && (train.bytes.len() <= train.segment || self.gso.is_on())
            };
            // While another thread sends fragments, nothing gets there whole.
            let _whole = first.whole.then(|| self.lock_discovery());
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
                self.send_apart(socket, (done, first), deadline, faults);
                (rest, done) = (&rest[1..], done + 1);
                continue;
            }
            let sent = self.send_run(socket, (done, &rest[..run]), deadline, faults);
            (rest, done) = (&rest[sent..], done + sent);
        }
    }

    /// Sends some of `run`, at least one, and says how many are done with.
    fn send_run(
        &self,
        socket: &Socket,
        (number, run): (usize, &[Train<'_>]),
        deadline: Instant,
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
        let error = match self.send_waiting(socket, &raw[..run.len()], deadline) {
            Ok(sent) => return sent.max(1),
            Err(error) => error,
        };
        let first = &run[0];
        let is_train = first.bytes.len() > first.segment;
        match error.raw_os_error() {
            // EINVAL is what older kernels say of a segment larger than the path takes.
            Some(libc::EMSGSIZE | libc::EINVAL) if is_train => {
                self.send_apart(socket, (number, first), deadline, faults);
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
                self.send_apart(socket, (number, first), deadline, faults);
            }
            Some(libc::EMSGSIZE) => self.send_apart(socket, (number, first), deadline, faults),
            _ => faults.push(refused(number, first, error)),
        }
        1
    }

    /// Sends the datagrams of a train one by one, in fragments from the first on that the path does not take.
    fn send_apart(
        &self,
        socket: &Socket,
        (number, train): (usize, &Train<'_>),
        deadline: Instant,
        faults: &mut Vec<Fault>,
    ) {
        let to = RawAddr::new(train.to);
        let mut datagrams = train
            .bytes
            .chunks(train.segment.max(1))
            .map(|bytes| sys::Train {
                to,
                bytes: IoSlice::new(bytes),
                segment: None,
            });
        let mut lost: Option<(u64, io::Error)> = None;
        let mut lose = |error| lost.get_or_insert((0, error)).0 += 1;
        let mut too_big = false;
        while let Some(datagram) = datagrams.next() {
            match self.send_waiting(socket, &[datagram], deadline) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    too_big = true;
                    if train.whole {
                        continue;
                    }
                    let rest = [datagram].into_iter().chain(datagrams.by_ref());
                    self.send_fragmented(socket, train.to, rest, deadline, &mut lose);
                }
                Err(error) => lose(error),
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

    /// Nobody else changes what the sockets do about the path MTU while it is held.
    fn lock_discovery(&self) -> MutexGuard<'_, ()> {
        let held = self.fragmenting.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends datagrams without DF. The option is the socket's, so what another thread sends meanwhile goes without DF,
    /// too; that is harmless and rare, but for trains that must be whole, which wait.
    fn send_fragmented<'d>(
        &self,
        socket: &Socket,
        to: SocketAddr,
        datagrams: impl Iterator<Item = sys::Train<'d>>,
        deadline: Instant,
        lose: &mut impl FnMut(io::Error),
    ) {
        let _held = self.lock_discovery();
        if let Err(error) = set_discovery(socket, to.is_ipv4(), libc::IP_PMTUDISC_DONT) {
            tracing::debug!(%error, "datagrams keep DF");
        }
        for datagram in datagrams {
            if let Err(error) = self.send_waiting(socket, &[datagram], deadline) {
                lose(error);
            }
        }
        if let Err(error) = set_discovery(socket, to.is_ipv4(), libc::IP_PMTUDISC_DO) {
            tracing::warn!(%error, "the path MTU is not discovered any more");
        }
    }

    /// Sends, waiting for room until `deadline`; gives how many went.
    fn send_waiting(
        &self,
        socket: &Socket,
        trains: &[sys::Train<'_>],
        deadline: Instant,
    ) -> io::Result<usize> {
        loop {
            match sys::send_many(socket.as_fd(), trains) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let start = Instant::now();
                    let left = deadline.saturating_duration_since(start);
                    let has_room = !left.is_zero() && wait_writable(socket.as_fd(), left);
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
