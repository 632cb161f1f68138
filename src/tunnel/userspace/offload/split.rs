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
        let Checksum::Partial { start, .. } = vnet.checksum else {
            return None;
        };
        split.transport = start.into();
        let version = packet.first()? >> 4;
        let tcp = match (gso.kind, version) {
            (Kind::TcpV4, 4) | (Kind::TcpV6, 6) => true,
            (Kind::Udp, 4 | 6) => false,
            (Kind::TcpV4 | Kind::TcpV6 | Kind::Udp, _) => return None,
        };
        let addresses = if version == 4 {
            if usize::from(packet.first()? & 0x0f) * 4 != split.transport || split.transport < 20 {
                return None;
            }
            packet.get(12..20)?
        } else {
            if split.transport < 40 {
                return None;
            }
            packet.get(8..40)?
        };
        split.pseudo = sum(addresses) + word(u16::from(if tcp { TCP } else { UDP }));
        let transport = if tcp {
            split.protocol = Protocol::Tcp;
            let offset = usize::from(packet.get(split.transport + 12)? >> 4) * 4;
            (offset >= 20).then_some(offset)?
        } else {
            split.protocol = Protocol::Udp;
            8
        };
        split.len = split.transport + transport;
        let headers = packet.get(..split.len)?;
        split.headers.get_mut(..split.len)?.copy_from_slice(headers);
        split.at = split.len;
        split.size = gso.size.into();
        // A packet without payload is no train.
        (split.at < split.end).then_some(split)
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
        let total = u16::try_from(segment.len()).ok()?;
        let (ip, transport) = segment.split_at_mut_checked(self.transport)?;
        if ip.first()? >> 4 == 4 {
            put(ip, 2, total.to_be_bytes())?;
            let id = u16::from_be_bytes(take(ip, 4)?).wrapping_add(self.count);
            put(ip, 4, id.to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            let checksum = finish(sum(ip));
            put(ip, 10, checksum)?;
        } else {
            put(ip, 4, total.checked_sub(40)?.to_be_bytes())?;
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

/// Whether the checksum of a TCP or UDP packet, whose transport header begins at `transport`, is right. `None` when
/// the packet is too short. A UDP packet without a checksum is not.
pub fn is_verified(packet: &[u8], transport: usize, protocol: u8) -> Option<bool> {
    let addresses = if packet.first()? >> 4 == 4 {
        packet.get(12..20)?
    } else {
        packet.get(8..40)?
    };
    let body = packet.get(transport..)?;
    if protocol == UDP && take(body, 6)? == [0, 0] {
        return Some(false);
    }
    let len = u16::try_from(body.len()).ok()?;
    Some(fold(sum(addresses) + word(protocol.into()) + word(len) + sum(body)) == 0xffff)
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
mod tests;
