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

use super::checksum::{finish, fold, sum, word};
use super::split::is_verified;
use super::vnet::{self, Checksum, Gso, Kind, Vnet};

/// The longest IP packet.
const MAX_PACKET: usize = 65_535;
/// The longest headers of a packet that is coalesced: IPv6, and TCP with all options.
const MAX_HEADERS: usize = 100;
/// Most packets in one (`UDP_MAX_SEGMENTS` of older kernels).
const MAX_COUNT: u16 = 64;
/// What decryption needs beyond the packet: the tag, and a padding that a peer may add.
const SPARE: usize = 64;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DF: u8 = 0x40;

/// UDP tunnels whose packets must not be coalesced: kernels before 6.8.5 drop what comes out of them. VXLAN, the
/// same of the first implementations, GENEVE, and ours.
const TUNNEL_PORTS: [u16; 4] = [4789, 8472, 6081, 4851];

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
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    /// How long it is.
    len: usize,
    /// What the next packet must match to be joined; `None` when nothing can be.
    train: Option<Train>,
}

#[derive(Debug, Clone, Copy)]
struct Train {
    shape: Shape,
    /// Payload of each packet but the last.
    size: usize,
    count: u16,
    /// A shorter packet or PSH ended it.
    closed: bool,
    /// The last packet had PSH.
    pushes: bool,
    /// Whether the checksum of the first packet was looked at.
    verified: bool,
}

/// Where things stand in a packet that can be coalesced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    transport: usize,
    /// All headers.
    headers: usize,
    protocol: u8,
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
        let at = self.next_at();
        self.buffer.get(at..at + len).unwrap_or_default()
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
            .and_then(|train| seal(packet, &train));
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
    fn alone(&self, len: usize) -> Pending {
        let packet = self
            .buffer
            .get(vnet::LEN..vnet::LEN + len)
            .unwrap_or_default();
        let train = shape(packet, self.allowed).map(|shape| Train {
            shape,
            size: len - shape.headers,
            count: 1,
            closed: pushes(packet, &shape),
            pushes: pushes(packet, &shape),
            verified: false,
        });
        Pending { len, train }
    }

    /// The pending packet with the one of `len` bytes behind it, if that continues it.
    fn joined(&self, len: usize) -> Option<Pending> {
        let pending = self.pending?;
        let mut train = pending.train.filter(|train| !train.closed)?;
        let next = self.candidate(len);
        let shape = shape(next, self.allowed).filter(|shape| *shape == train.shape)?;
        let payload = len - shape.headers;
        let total = pending.len + payload;
        if payload > train.size || total > MAX_PACKET || train.count >= MAX_COUNT {
            return None;
        }
        let first = self
            .buffer
            .get(vnet::LEN..vnet::LEN + shape.headers.min(pending.len))?;
        if !continues(first, next, &train) || !is_verified(next, shape.transport, shape.protocol)? {
            return None;
        }
        if !train.verified {
            train.verified = self.first_is_verified(&pending, &train)?;
            if !train.verified {
                return None;
            }
        }
        train.count += 1;
        train.pushes = pushes(next, &shape);
        train.closed = payload < train.size || train.pushes;
        Some(Pending {
            len: total,
            train: Some(train),
        })
    }

    /// Whether the checksum of the pending packet, still alone, is right: the end of it may lie aside.
    fn first_is_verified(&self, pending: &Pending, train: &Train) -> Option<bool> {
        let kept = self.kept();
        let packet = self.buffer.get(vnet::LEN..vnet::LEN + pending.len)?;
        let (front, _) = packet.split_at_checked(pending.len.checked_sub(kept)?)?;
        let aside = self.aside.get(..kept)?;
        let Shape {
            transport,
            protocol,
            ..
        } = train.shape;
        let addresses = addresses(packet)?;
        // Of a packet so short that its own headers lie aside, nothing is claimed.
        let body = front.get(transport..)?;
        let no_checksum = protocol == UDP && bytes::<2>(front, transport + 6)? == [0, 0];
        if no_checksum || front.len() < train.shape.headers {
            return Some(false);
        }
        // Behind an odd number of bytes, high and low change places (RFC 1071, section 2, B).
        let aside = if body.len() % 2 == 0 {
            sum(aside)
        } else {
            u64::from(fold(sum(aside)).swap_bytes())
        };
        let len = u16::try_from(pending.len - transport).ok()?;
        let total = addresses + word(protocol.into()) + word(len) + sum(body) + aside;
        Some(fold(total) == 0xffff)
    }
}

/// Reads where things stand in `packet`; `None` when it is of no kind that is coalesced.
fn shape(packet: &[u8], allowed: Allowed) -> Option<Shape> {
    let (transport, protocol) = match packet.first()? {
        // No options.
        0x45 => {
            let [flags, low] = bytes::<2>(packet, 6)?;
            // No fragments.
            if flags & !DF != 0 || low != 0 {
                return None;
            }
            (20, *packet.get(9)?)
        }
        first if first >> 4 == 6 => (40, *packet.get(6)?),
        _ => return None,
    };
    let headers = match protocol {
        TCP if allowed.tcp => {
            let [offset, flags] = bytes::<2>(packet, transport + 12)?;
            if flags & !PSH != ACK {
                return None;
            }
            transport + Some(usize::from(offset >> 4) * 4).filter(|len| *len >= 20)?
        }
        UDP if allowed.udp => {
            let port = |at| Some(u16::from_be_bytes(bytes(packet, at)?));
            let ports = [port(transport)?, port(transport + 2)?];
            let len = u16::from_be_bytes(bytes(packet, transport + 4)?);
            if ports.iter().any(|port| TUNNEL_PORTS.contains(port))
                || usize::from(len) != packet.len() - transport
            {
                return None;
            }
            transport + 8
        }
        _ => return None,
    };
    (headers < packet.len()).then_some(Shape {
        transport,
        headers,
        protocol,
    })
}

/// Whether a TCP packet has PSH, after which none may follow in the same train.
fn pushes(packet: &[u8], shape: &Shape) -> bool {
    shape.protocol == TCP
        && packet
            .get(shape.transport + 13)
            .is_none_or(|flags| flags & PSH != 0)
}

/// Whether the headers of `next` continue a train that began with the headers `first`.
fn continues(first: &[u8], next: &[u8], train: &Train) -> bool {
    let same = |range: std::ops::Range<usize>| {
        first
            .get(range.clone())
            .is_some_and(|bytes| Some(bytes) == next.get(range))
    };
    let Shape {
        transport,
        headers,
        protocol,
    } = train.shape;
    let network = if transport == 20 {
        // Version, TOS; flags, TTL, protocol; addresses.
        same(0..2) && same(6..10) && same(12..20) && id_grows(first, next, train.count)
    } else {
        // Version, class, label; next header, hop limit, addresses.
        same(0..4) && same(6..40)
    };
    let at = |offset: usize| transport + offset;
    // Ports.
    if !network || !same(at(0)..at(4)) {
        return false;
    }
    if protocol == UDP {
        return true;
    }
    let sequence = |packet| bytes(packet, at(4)).map(u32::from_be_bytes);
    let sent = u32::try_from(train.size).unwrap_or_default() * u32::from(train.count);
    let follows = sequence(first).map(|first| first.wrapping_add(sent)) == sequence(next);
    // Acknowledgement and length; window; urgent pointer and options. Flags are ACK and perhaps PSH, as `shape` saw.
    follows && same(at(8)..at(13)) && same(at(14)..at(16)) && same(at(18)..headers)
}

/// Whether the IPv4 identification is what the kernel will make of it. With DF it has no meaning (RFC 6864).
fn id_grows(first: &[u8], next: &[u8], count: u16) -> bool {
    let id = |packet| bytes(packet, 4).map(u16::from_be_bytes);
    let df = first.get(6).is_some_and(|flags| flags & DF != 0);
    df || id(first).map(|id| id.wrapping_add(count)) == id(next)
}

/// Completes the headers of several packets in one.
fn seal(packet: &mut [u8], train: &Train) -> Option<Vnet> {
    let Shape {
        transport,
        headers,
        protocol,
    } = train.shape;
    let total = u16::try_from(packet.len()).ok()?;
    let addresses = addresses(packet)?;
    let is_v4 = transport == 20;
    if is_v4 {
        put(packet, 2, total.to_be_bytes())?;
        put(packet, 10, [0, 0])?;
        let checksum = finish(sum(packet.get(..20)?));
        put(packet, 10, checksum)?;
    } else {
        put(packet, 4, (total - 40).to_be_bytes())?;
    }
    let len = total - u16::try_from(transport).ok()?;
    let (offset, kind) = if protocol == TCP {
        if train.pushes {
            *packet.get_mut(transport + 13)? |= PSH;
        }
        (16, if is_v4 { Kind::TcpV4 } else { Kind::TcpV6 })
    } else {
        put(packet, transport + 4, len.to_be_bytes())?;
        (6, Kind::Udp)
    };
    let pseudo = fold(addresses + word(protocol.into()) + word(len));
    put(
        packet,
        transport + usize::from(offset),
        pseudo.to_ne_bytes(),
    )?;
    Some(Vnet {
        checksum: Checksum::Partial {
            start: u16::try_from(transport).ok()?,
            offset,
        },
        gso: Some(Gso {
            kind,
            size: u16::try_from(train.size).ok()?,
        }),
        header: u16::try_from(headers).ok()?,
    })
}

fn addresses(packet: &[u8]) -> Option<u64> {
    let range = if packet.first()? >> 4 == 4 {
        12..20
    } else {
        8..40
    };
    packet.get(range).map(sum)
}

fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn put<const N: usize>(packet: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    packet
        .get_mut(at..at.checked_add(N)?)?
        .copy_from_slice(&value);
    Some(())
}

#[cfg(test)]
mod tests;
