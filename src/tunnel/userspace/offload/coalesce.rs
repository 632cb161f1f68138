//! Puts decrypted packets of one flow together into one for the kernel, as `tcp_gro_receive` and `udp_gro_receive` of
//! Linux would: the kernel then routes, filters and delivers forty packets for the price of one. PURE.
//!
//! A packet is decrypted to where it would have to stand if it continued the pending one: its header over the last
//! bytes of that (which are kept aside), its payload directly behind them. So the common case copies nothing.
//!
//! ```text
//! | vnet | headers | payload 1 | payload 2 |            pending
//!                             | headers | payload 3 | tag |     room()
//! | vnet | headers | payload 1 | payload 2 | payload 3 |        pending, after offer()
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

use super::checksum::{fold, sum};
use super::vnet;
use train::{Shape, Train};

mod train;

/// The longest IP packet.
const MAX_PACKET: usize = 65_535;
/// The longest headers of a packet that is coalesced: IPv6, and TCP with all options.
const MAX_HEADERS: usize = 100;
/// Most packets in one (`UDP_MAX_SEGMENTS` of older kernels).
const MAX_COUNT: u16 = 64;
/// What decryption needs beyond the packet: the tag, and a padding that a peer may add.
const SPARE: usize = 64;

/// What may be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// The packet that is being put together, in a buffer of its own.
#[derive(Debug)]
pub struct Coalescer {
    buffer: Box<[u8]>,
    allowed: Allowed,
    pending: Option<Pending>,
    /// The bytes of the pending packet that the next one's header is written over.
    aside: [u8; MAX_HEADERS],
    /// The headers of the first packet of the train, which may be written over as well when its payload is short.
    first: [u8; MAX_HEADERS],
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    /// How long it is.
    len: usize,
    /// What the next packet must match to be joined; `None` when nothing can be.
    train: Option<Train>,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It was joined to the pending one.
    Joined,
    /// The pending one must go first: take it with [`Coalescer::finish`], then call [`Coalescer::begin`].
    FlushFirst,
}

impl Coalescer {
    /// Nothing pending.
    pub fn new(allowed: Allowed) -> Self {
        Self {
            buffer: vec![0; vnet::LEN + 2 * MAX_PACKET + SPARE].into_boxed_slice(),
            allowed,
            pending: None,
            aside: [0; MAX_HEADERS],
            first: [0; MAX_HEADERS],
        }
    }

    /// Changes what may be put together from now on.
    pub fn allow(&mut self, allowed: Allowed) {
        self.allowed = allowed;
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_none()
    }

    /// Where to decrypt the next packet to; it takes any datagram.
    pub fn room(&mut self) -> &mut [u8] {
        let at = self.next_at();
        let kept = self.kept();
        if let (Some(aside), Some(bytes)) =
            (self.aside.get_mut(..kept), self.buffer.get(at..at + kept))
        {
            aside.copy_from_slice(bytes);
        }
        self.buffer.get_mut(at..).unwrap_or_default()
    }

    /// The packet that was decrypted to [`Self::room`], of `len` bytes.
    pub fn candidate(&self, len: usize) -> &[u8] {
        let room = self.buffer.get(self.next_at()..);
        room.and_then(|room| room.get(..len)).unwrap_or_default()
    }

    /// The packet is not wanted: what it was written over is put back.
    pub fn reject(&mut self) {
        let at = self.next_at();
        let kept = self.kept();
        if let (Some(aside), Some(bytes)) =
            (self.aside.get(..kept), self.buffer.get_mut(at..at + kept))
        {
            bytes.copy_from_slice(aside);
        }
    }

    /// Joins the packet of `len` bytes in [`Self::room`] to the pending one, if it continues it.
    pub fn offer(&mut self, len: usize) -> Offered {
        let len = len.min(self.buffer.len().saturating_sub(self.next_at()));
        if self.pending.is_none() {
            self.pending = Some(self.alone(len));
            return Offered::Joined;
        }
        match self.joined(len) {
            Some(pending) => {
                self.reject();
                self.pending = Some(pending);
                Offered::Joined
            }
            None => Offered::FlushFirst,
        }
    }

    /// Makes the packet of `len` bytes in [`Self::room`], which [`Self::offer`] did not join, the pending one.
    /// `write` gets the one before it.
    pub fn begin(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        let at = self.next_at();
        let kept = self.kept();
        let len = len.min(self.buffer.len().saturating_sub(at));
        let mut head = [0; MAX_HEADERS];
        if let (Some(head), Some(bytes)) = (head.get_mut(..kept), self.buffer.get(at..at + kept)) {
            head.copy_from_slice(bytes);
        }
        self.reject();
        self.finish(write);
        // The new packet's first bytes are in `head`, the others behind the old packet.
        let head = head.get(..kept.min(len)).unwrap_or_default();
        let behind = at + kept..at + len.max(kept);
        self.buffer.copy_within(behind, vnet::LEN + kept);
        if let Some(front) = self.buffer.get_mut(vnet::LEN..vnet::LEN + head.len()) {
            front.copy_from_slice(head);
        }
        self.pending = Some(self.alone(len));
    }

    /// Gives the pending packet to `write`, behind the header that says what it is.
    pub fn finish(&mut self, write: impl FnOnce(&mut [u8])) {
        let Some(Pending { len, train }) = self.pending.take() else {
            return;
        };
        let Some(bytes) = self.buffer.get_mut(..vnet::LEN + len) else {
            return;
        };
        let Some((front, packet)) = bytes.split_at_mut_checked(vnet::LEN) else {
            return;
        };
        let header = train
            .filter(|train| train.count > 1)
            .and_then(|train| train.seal(packet));
        front.copy_from_slice(&header.unwrap_or_default().write());
        write(bytes);
    }

    /// How many bytes of the pending packet the next one's header is written over.
    fn kept(&self) -> usize {
        let train = self.pending.and_then(|pending| pending.train);
        train
            .filter(|train| !train.closed)
            .map_or(0, |train| train.shape.headers)
    }

    fn next_at(&self) -> usize {
        vnet::LEN + self.pending.map_or(0, |pending| pending.len) - self.kept()
    }

    /// The first packet of a train, which may stay alone.
    fn alone(&mut self, len: usize) -> Pending {
        let packet = self.buffer.get(vnet::LEN..vnet::LEN + len);
        let packet = packet.unwrap_or_default();
        let train = Shape::read(packet, self.allowed).map(|shape| Train {
            shape,
            size: len - shape.headers,
            count: 1,
            closed: shape.pushes(packet),
            pushes: shape.pushes(packet),
            verified: false,
        });
        let headers = train.map_or(0, |train| train.shape.headers);
        if let (Some(first), Some(bytes)) = (self.first.get_mut(..headers), packet.get(..headers)) {
            first.copy_from_slice(bytes);
        }
        Pending { len, train }
    }

    /// The pending packet with the one of `len` bytes behind it, if that continues it.
    fn joined(&self, len: usize) -> Option<Pending> {
        let pending = self.pending?;
        let mut train = pending.train.filter(|train| !train.closed)?;
        let next = self.candidate(len);
        let shape = Shape::read(next, self.allowed).filter(|shape| *shape == train.shape)?;
        let (headers, body) = next.split_at_checked(shape.headers)?;
        let total = pending.len + body.len();
        if body.len() > train.size || total > MAX_PACKET || train.count >= MAX_COUNT {
            return None;
        }
        let first = self.first.get(..shape.headers)?;
        if !train.continues(first, headers) || !shape.is_verified(headers, len, sum(body))? {
            return None;
        }
        if !train.verified {
            train.verified = shape.is_verified(first, pending.len, self.sum_of_first(&train)?)?;
            if !train.verified {
                return None;
            }
        }
        train.count += 1;
        train.pushes = shape.pushes(next);
        train.closed = body.len() < train.size || train.pushes;
        Some(Pending {
            len: total,
            train: Some(train),
        })
    }

    /// The sum of the payload of the pending packet, still alone; the end of it, or all of it, lies aside.
    fn sum_of_first(&self, train: &Train) -> Option<u64> {
        let headers = train.shape.headers;
        let aside = self.aside.get(..headers)?;
        let Some(before) = train.size.checked_sub(headers) else {
            return aside.get(headers - train.size..).map(sum);
        };
        let at = vnet::LEN + headers;
        let front = sum(self.buffer.get(at..at + before)?);
        // Behind an odd number of bytes, high and low change places (RFC 1071, section 2, B).
        let aside = if before % 2 == 0 {
            sum(aside)
        } else {
            u64::from(fold(sum(aside)).swap_bytes())
        };
        Some(front + aside)
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
