//! Datagrams on their way out, side by side in one buffer, so that the kernel takes many of one peer at once. Shell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::peer::Peer;
use crate::net::sys::udp::MESSAGES;
use crate::net::udp::{Fault, Train, Udp};
use crate::tunnel::Drop;

/// What the kernel takes in one train (linux/udp.h, `UDP_MAX_SEGMENTS` of older kernels; a UDP datagram with headers).
const SEGMENTS: usize = 64;
const TRAIN: usize = 65_000;
/// What is collected at most: what one large packet of the device becomes, with room for small ones before it.
const ROOM: usize = 4 * TRAIN;
/// What is sent without waiting for more.
const FULL: usize = 120_000;
/// The largest datagram: the largest packet with what WireGuard adds.
const DATAGRAM: usize = 65_535 + 32;

/// Datagrams that send themselves when there are enough.
pub(super) struct Outbox {
    udp: Arc<Udp>,
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    faults: Vec<Fault>,
    /// What is added now goes whole or not at all.
    whole: bool,
}

/// Datagrams of one peer that go as one.
struct Run {
    to: SocketAddr,
    /// `None` for a stranger.
    owner: Option<Arc<Peer>>,
    start: usize,
    end: usize,
    segment: usize,
    count: usize,
    whole: bool,
    /// A shorter datagram was the last.
    closed: bool,
}

impl Outbox {
    pub(super) fn new(udp: Arc<Udp>) -> Self {
        Self {
            udp,
            buffer: vec![0; ROOM + DATAGRAM].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(MESSAGES),
            faults: Vec::new(),
            whole: false,
        }
    }

    /// The buffer for the next datagram: always room for the largest one.
    pub(super) fn slot(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.used < DATAGRAM || self.runs.len() >= MESSAGES {
            self.flush();
        }
        self.buffer.get_mut(self.used..).unwrap_or_default()
    }

    /// Makes the buffer of [`Self::slot`] a datagram.
    pub(super) fn commit(&mut self, len: usize, to: SocketAddr, owner: &Arc<Peer>) {
        self.push(len, to, Some(owner));
    }

    fn push(&mut self, len: usize, to: SocketAddr, owner: Option<&Arc<Peer>>) {
        let (start, whole) = (self.used, self.whole);
        self.used += len;
        let alike = |run: &&mut Run| {
            let same = match (&run.owner, owner) {
                (Some(of_run), Some(owner)) => Arc::ptr_eq(of_run, owner),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            same && run.to == to
                && run.whole == whole
                && !run.closed
                && len <= run.segment
                && run.count < SEGMENTS
                && run.end - run.start + len <= TRAIN
        };
        if let Some(run) = self.runs.last_mut().filter(alike) {
            run.end += len;
            run.count += 1;
            run.closed = len < run.segment;
            return;
        }
        self.runs.push(Run {
            to,
            owner: owner.cloned(),
            start,
            end: start + len,
            segment: len,
            count: 1,
            whole,
            closed: false,
        });
    }

    /// Adds a datagram that is for no peer: nobody cares for its fate.
    pub(super) fn send_stranger(&mut self, bytes: &[u8], to: SocketAddr) {
        if let Some(room) = self.slot().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.push(bytes.len(), to, None);
        }
    }

    /// How many datagrams wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// Whether none waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What comes from now on goes `whole` or not at all, until this is said again.
    pub(super) fn set_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Sends what waits, if that is much.
    pub(super) fn flush_if_full(&mut self) {
        if self.used >= FULL {
            self.flush();
        }
    }

    /// Sends what waits; counts what the kernel refused.
    pub(super) fn flush(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let nothing = Train {
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            bytes: &[],
            segment: 0,
            whole: false,
        };
        let mut trains = [nothing; MESSAGES];
        for (train, run) in trains.iter_mut().zip(&self.runs) {
            *train = Train {
                to: run.to,
                bytes: self.buffer.get(run.start..run.end).unwrap_or_default(),
                segment: run.segment,
                whole: run.whole,
            };
        }
        let trains = trains.get(..self.runs.len()).unwrap_or_default();
        self.udp.send(trains, &mut self.faults);
        for fault in self.faults.drain(..) {
            let owner = |train: usize| self.runs.get(train).and_then(|run| run.owner.as_ref());
            match fault {
                Fault::TooBig { train } => {
                    if let Some(peer) = owner(train) {
                        peer.too_big.store(true, Ordering::Relaxed);
                    }
                }
                Fault::Refused {
                    train,
                    datagrams,
                    error,
                } => {
                    if let Some(peer) = owner(train) {
                        peer.drops.add(Drop::Kernel, datagrams);
                        tracing::trace!(peer = %peer.key, %error, "the kernel refused datagrams");
                    }
                }
            }
        }
        self.runs.clear();
        self.used = 0;
    }
}
