//! Cuts what the kernel hands over as one packet into the packets that go on the wire. PURE.
//!
//! Nothing is copied: the header of each segment is written into the bytes just before its payload, which belong to
//! the segment before and have been used by then. Checksums are completed on the way, as a network card would
//! (`linux/virtio_net.h`; for the fields of TCP see `tcp_gso_segment` of Linux: flags of the end stand on the last
//! segment, CWR on the first, sequence and IPv4 identification grow).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

use std::ops::Range;

use super::checksum::{finish, fold, sum, word};
use super::vnet::{Checksum, Kind, Vnet};

/// The longest headers that are read: IPv4 with options and TCP with options are 120 bytes, IPv6 may have extensions.
const MAX_HEADERS: usize = 256;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A packet that is being cut.
#[derive(Debug)]
pub struct Split {
    headers: [u8; MAX_HEADERS],
    /// How much of `headers` is used.
    len: usize,
    /// Where the transport header begins.
    transport: usize,
    protocol: Protocol,
    /// Payload of each segment.
    size: usize,
    /// Where the next segment's payload begins, and where all ends.
    at: usize,
    end: usize,
    /// How many segments there were.
    count: u16,
    /// The sum of the addresses and the protocol, the constant part of each pseudo-header.
    pseudo: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// One packet, ready.
    Whole,
    Tcp,
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Whole => 0,
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }

    /// Where in its header the checksum stands.
    fn checksum(self) -> usize {
        if self == Self::Udp { 6 } else { 16 }
    }
}

impl Split {
    /// Begins with `packet`, the IP packet behind `vnet`; a lone packet gets its checksum. `None` when header and
    /// packet contradict each other.
    pub fn new(vnet: &Vnet, packet: &mut [u8]) -> Option<Self> {
        let mut split = Self {
            headers: [0; MAX_HEADERS],
            len: 0,
            transport: 0,
            protocol: Protocol::Whole,
            size: 0,
            at: 0,
            end: packet.len(),
            count: 0,
            pseudo: 0,
        };
        let Some(gso) = vnet.gso else {
            if let Checksum::Partial { start, offset } = vnet.checksum {
                complete(packet, start.into(), offset.into())?;
            }
            return Some(split);
        };
        let is_v4 = match (gso.kind, packet.first()? >> 4) {
            (Kind::TcpV4 | Kind::Udp, 4) => true,
            (Kind::TcpV6 | Kind::Udp, 6) => false,
            (Kind::TcpV4 | Kind::TcpV6 | Kind::Udp, _) => return None,
        };
        split.protocol = match gso.kind {
            Kind::TcpV4 | Kind::TcpV6 => Protocol::Tcp,
            Kind::Udp => Protocol::Udp,
        };
        split.transport = network(packet, is_v4, vnet.checksum, split.protocol)?;
        split.pseudo = pseudo(packet, is_v4, vnet.checksum, &split)?;
        split.len = split.transport
            + match split.protocol {
                Protocol::Whole => return None,
                Protocol::Tcp => {
                    let offset = usize::from(packet.get(split.transport + 12)? >> 4) * 4;
                    (offset >= 20).then_some(offset)?
                }
                Protocol::Udp => 8,
            };
        let headers = packet.get(..split.len)?;
        split.headers.get_mut(..split.len)?.copy_from_slice(headers);
        split.at = split.len;
        split.size = gso.size.into();
        // What every segment needs is seen to here, so that cutting does not end half-way: a payload in each, and a
        // length that its IP header can hold.
        let longest = split.end.min(split.len + split.size);
        let counted = if is_v4 { longest } else { longest - 40 };
        let is_train = split.size > 0 && split.at < split.end;
        (is_train && u16::try_from(counted).is_ok()).then_some(split)
    }

    /// Makes the next segment and says where in `packet`, the same buffer as in [`Self::new`], it stands. What stood
    /// there before is lost: the segment must be used before the next one is made.
    pub fn next(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        if self.at >= self.end {
            return None;
        }
        if self.protocol == Protocol::Whole {
            self.at = self.end;
            return Some(0..self.end);
        }
        let until = self.end.min(self.at + self.size);
        let range = self.at.checked_sub(self.len)?..until;
        let segment = packet.get_mut(range.clone())?;
        segment
            .get_mut(..self.len)?
            .copy_from_slice(self.headers.get(..self.len)?);
        self.fix(segment, until == self.end)?;
        self.at = until;
        self.count = self.count.wrapping_add(1);
        Some(range)
    }

    /// Writes the fields that differ from segment to segment.
    fn fix(&self, segment: &mut [u8], last: bool) -> Option<()> {
        let total = segment.len();
        let (ip, transport) = segment.split_at_mut_checked(self.transport)?;
        if ip.first()? >> 4 == 4 {
            put(ip, 2, u16::try_from(total).ok()?.to_be_bytes())?;
            let id = u16::from_be_bytes(take(ip, 4)?).wrapping_add(self.count);
            put(ip, 4, id.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            let checksum = finish(sum(ip));
            put(ip, 10, checksum)?;
        } else {
            let payload = u16::try_from(total.checked_sub(40)?).ok()?;
            put(ip, 4, payload.to_be_bytes())?;
        }
        let len = u16::try_from(transport.len()).ok()?;
        let at = match self.protocol {
            Protocol::Whole => return None,
            Protocol::Tcp => {
                let before = u32::from(self.count).wrapping_mul(u32::try_from(self.size).ok()?);
                let sequence = u32::from_be_bytes(take(transport, 4)?).wrapping_add(before);
                put(transport, 4, sequence.to_be_bytes())?;
                let flags = transport.get_mut(13)?;
                if !last {
                    *flags &= !FIN_PSH;
                }
                if self.count > 0 {
                    *flags &= !CWR;
                }
                16
            }
            Protocol::Udp => {
                put(transport, 4, len.to_be_bytes())?;
                6
            }
        };
        put(transport, at, [0, 0])?;
        let mut checksum = finish(self.pseudo + word(len) + sum(transport));
        if self.protocol == Protocol::Udp && checksum == [0, 0] {
            checksum = [0xff, 0xff];
        }
        put(transport, at, checksum)
    }
}

/// Where the transport header begins. The kernel says so where the checksum is to be completed; else it follows the
/// IP header.
fn network(packet: &[u8], is_v4: bool, checksum: Checksum, protocol: Protocol) -> Option<usize> {
    let (own, says) = if is_v4 {
        let own = usize::from(packet.first()? & 0x0f) * 4;
        (Some(own).filter(|own| *own >= 20)?, *packet.get(9)?)
    } else {
        (40, *packet.get(6)?)
    };
    let start = match checksum {
        Checksum::Partial { start, .. } => start.into(),
        Checksum::Verified => own,
        Checksum::Complete => return None,
    };
    // IPv6 may have extensions in between.
    let follows = start == own && says == protocol.number();
    (follows || !is_v4 && start > own && matches!(checksum, Checksum::Partial { .. }))
        .then_some(start)
}

/// The part of the pseudo-header's sum that is the same in each segment.
///
/// Where the checksum is to be completed, the kernel wrote the sum with the length of all. It knows what the header
/// does not say: with a routing header or a source route the last destination counts. A large packet that was
/// verified, as cards make that put packets together themselves, has nothing of use there.
fn pseudo(packet: &[u8], is_v4: bool, checksum: Checksum, split: &Split) -> Option<u64> {
    let (transport, protocol) = (split.transport, split.protocol);
    if let Checksum::Partial { offset, .. } = checksum {
        let at = transport + Some(usize::from(offset)).filter(|at| *at == protocol.checksum())?;
        let len = u16::try_from(packet.len().checked_sub(transport)?).ok()?;
        let seed = u16::from_ne_bytes(take(packet, at)?);
        return Some(u64::from(seed) + u64::from(!fold(word(len))));
    }
    let addresses = if is_v4 { 12..20 } else { 8..40 };
    Some(sum(packet.get(addresses)?) + word(protocol.number().into()))
}

/// Completes the checksum of a lone packet, which holds the sum of the pseudo-header.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let covered = packet.get_mut(start..)?;
    let mut checksum = finish(sum(covered));
    // Zero says "none" in UDP, where the checksum stands at 6; both forms of zero are alike in TCP.
    if checksum == [0, 0] && offset == 6 {
        checksum = [0xff, 0xff];
    }
    put(covered, offset, checksum)
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    bytes
        .get_mut(at..at.checked_add(N)?)?
        .copy_from_slice(&value);
    Some(())
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
