//! Which packets are of one train, read from their headers, and the header of all. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

use std::ops::Range;

use super::super::checksum::{finish, fold, sum, word};
use super::super::vnet::{Checksum, Gso, Kind, Vnet};
use super::Allowed;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DF: u8 = 0x40;

/// UDP tunnels whose packets must not be coalesced: kernels before 6.8.5 drop what comes out of them. VXLAN, the
/// same of the first implementations, GENEVE, and ours.
pub(super) const TUNNEL_PORTS: [u16; 4] = [4789, 8472, 6081, 4851];

/// Packets that came one behind the other; with one, it can still get others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train {
    pub(super) shape: Shape,
    /// Payload of each packet but the last.
    pub(super) size: usize,
    pub(super) count: u16,
    /// A shorter packet or PSH ended it.
    pub(super) closed: bool,
    /// The last packet had PSH.
    pub(super) pushes: bool,
    /// Whether the checksums of the first packet were looked at.
    pub(super) verified: bool,
}

/// Where things stand in a packet that can be coalesced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) transport: usize,
    /// All headers.
    pub(super) headers: usize,
    protocol: u8,
}

impl Shape {
    /// Reads where things stand in `packet`; `None` when it is of no kind that is coalesced.
    pub(super) fn read(packet: &[u8], allowed: Allowed) -> Option<Self> {
        let field = |at| Some(usize::from(u16::from_be_bytes(bytes(packet, at)?)));
        let (transport, len, protocol) = match packet.first()? {
            // No options.
            0x45 => {
                let [flags, low] = bytes::<2>(packet, 6)?;
                // No fragments.
                if flags & !DF != 0 || low != 0 {
                    return None;
                }
                (20, field(2)?, *packet.get(9)?)
            }
            first if first >> 4 == 6 => (40, field(4)? + 40, *packet.get(6)?),
            _ => return None,
        };
        // The length is written anew: one that lies must not become right by that.
        if len != packet.len() {
            return None;
        }
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
                if ports.iter().any(|port| TUNNEL_PORTS.contains(port))
                    || field(transport + 4)? + transport != len
                {
                    return None;
                }
                transport + 8
            }
            _ => return None,
        };
        (headers < len).then_some(Self {
            transport,
            headers,
            protocol,
        })
    }

    fn is_v4(&self) -> bool {
        self.transport == 20
    }

    /// Whether a TCP packet has PSH, after which none may follow in the same train.
    pub(super) fn pushes(&self, packet: &[u8]) -> bool {
        self.protocol == TCP
            && packet
                .get(self.transport + 13)
                .is_none_or(|flags| flags & PSH != 0)
    }

    /// Whether the checksums of a packet are right, which is given as its `headers` and the sum of its payload; those
    /// are written anew, and none that was wrong may become right. A UDP packet without a checksum is not.
    pub(super) fn is_verified(&self, headers: &[u8], len: usize, payload: u64) -> Option<bool> {
        let (network, transport) = headers.split_at_checked(self.transport)?;
        if self.is_v4() && fold(sum(network)) != 0xffff
            || self.protocol == UDP && bytes::<2>(transport, 6)? == [0, 0]
        {
            return Some(false);
        }
        // The length of all headers is even.
        let len = u16::try_from(len.checked_sub(self.transport)?).ok()?;
        let pseudo = addresses(headers)? + word(self.protocol.into()) + word(len);
        Some(fold(pseudo + sum(transport) + payload) == 0xffff)
    }
}

impl Train {
    /// Whether the headers of `next` continue the train, which began with the headers `first`.
    pub(super) fn continues(&self, first: &[u8], next: &[u8]) -> bool {
        let same = |range: Range<usize>| {
            first
                .get(range.clone())
                .is_some_and(|bytes| Some(bytes) == next.get(range))
        };
        let Shape {
            transport,
            headers,
            protocol,
        } = self.shape;
        let network = if self.shape.is_v4() {
            // Version, TOS; flags, TTL, protocol; addresses.
            same(0..2) && same(6..10) && same(12..20) && id_grows(first, next, self.count)
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
        let sent = u32::try_from(self.size).unwrap_or_default() * u32::from(self.count);
        let follows = sequence(first).map(|first| first.wrapping_add(sent)) == sequence(next);
        // Acknowledgement and length; window; urgent pointer and options. Flags are ACK and perhaps PSH, as in `Shape`.
        follows && same(at(8)..at(13)) && same(at(14)..at(16)) && same(at(18)..headers)
    }

    /// Completes the headers of several packets in one.
    pub(super) fn seal(&self, packet: &mut [u8]) -> Option<Vnet> {
        let Shape {
            transport,
            headers,
            protocol,
        } = self.shape;
        let total = u16::try_from(packet.len()).ok()?;
        let addresses = addresses(packet)?;
        let is_v4 = self.shape.is_v4();
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
            if self.pushes {
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
                size: u16::try_from(self.size).ok()?,
            }),
            header: u16::try_from(headers).ok()?,
        })
    }
}

/// Whether the IPv4 identification is what the kernel will make of it. With DF it has no meaning (RFC 6864).
fn id_grows(first: &[u8], next: &[u8], count: u16) -> bool {
    let id = |packet| bytes(packet, 4).map(u16::from_be_bytes);
    let df = first.get(6).is_some_and(|flags| flags & DF != 0);
    df || id(first).map(|id| id.wrapping_add(count)) == id(next)
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
