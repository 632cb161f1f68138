//! Packets written down field by field, with checksums summed word by word: what the offloads are compared with.

use proptest::prelude::*;

use crate::tunnel::userspace::offload::vnet::{Checksum, Gso, Kind, Vnet};

pub(in super::super) const FIN: u8 = 1;
pub(in super::super) const PSH: u8 = 8;
pub(in super::super) const ACK: u8 = 0x10;
pub(in super::super) const CWR: u8 = 0x80;

/// A packet, or what several have in common.
#[derive(Debug, Clone)]
pub(in super::super) struct Plain {
    pub(in super::super) v6: bool,
    pub(in super::super) tcp: bool,
    pub(in super::super) between: Between,
    pub(in super::super) dont_fragment: bool,
    pub(in super::super) id: u16,
    pub(in super::super) port: u16,
    pub(in super::super) sequence: u32,
    pub(in super::super) flags: u8,
    /// Words of TCP options.
    pub(in super::super) options: u8,
    pub(in super::super) payload: Vec<u8>,
}

/// What stands between the IP header and that of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Between {
    Nothing,
    /// Words of IPv4 options, or of IPv6 destination options: twice as long, since those come in 8 bytes.
    Options(u8),
    /// A source route or routing header with the address that is the last destination.
    Route,
}

impl Plain {
    pub(in super::super) fn new(v6: bool, tcp: bool, payload: usize) -> Self {
        Self {
            v6,
            tcp,
            between: Between::Nothing,
            dont_fragment: false,
            id: 3,
            port: 40_000,
            sequence: 7,
            flags: ACK,
            options: 3,
            payload: (0..payload)
                .map(|n| (n * 31 + n / 251).to_le_bytes()[0])
                .collect(),
        }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    /// The IP header, with zeros where length and checksum stand, and the addresses that are summed.
    fn network(&self) -> (Vec<u8>, Vec<u8>) {
        let own = if self.v6 {
            vec![0xfd; 16]
        } else {
            vec![10, 1, 0, 9]
        };
        let next = if self.v6 {
            vec![0xfe; 16]
        } else {
            vec![10, 2, 0, 8]
        };
        let last = if self.v6 {
            vec![0xfc; 16]
        } else {
            vec![10, 3, 9, 7]
        };
        let route = self.between == Between::Route;
        let [high, low] = self.id.to_be_bytes();
        let mut header = if self.v6 {
            vec![0x60, 1, 2, 3, 0, 0, self.protocol(), 61]
        } else {
            let flags = if self.dont_fragment { 0x40 } else { 0 };
            vec![
                0x45,
                0,
                0,
                0,
                high,
                low,
                flags,
                0,
                61,
                self.protocol(),
                0,
                0,
            ]
        };
        header.extend(own.iter().chain(&next));
        let more: Vec<u8> = match (self.between, self.v6) {
            (Between::Nothing, _) | (Between::Options(0), true) => Vec::new(),
            (Between::Options(words), false) => vec![1; usize::from(words) * 4],
            (Between::Options(words), true) => {
                let len = usize::from(words) * 8;
                let mut more = vec![
                    self.protocol(),
                    words - 1,
                    1,
                    u8::try_from(len - 4).unwrap(),
                ];
                more.resize(len, 0);
                header[6] = 60;
                more
            }
            (Between::Route, false) => [&[0x83, 7, 4], &last[..], &[0]].concat(),
            (Between::Route, true) => {
                header[6] = 43;
                [&[self.protocol(), 2, 2, 1, 0, 0, 0, 0], &last[..]].concat()
            }
        };
        if !self.v6 {
            header[0] += u8::try_from(more.len() / 4).unwrap();
        }
        header.extend(more);
        (header, [own, if route { last } else { next }].concat())
    }

    fn transport(&self) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let mut header = vec![high, low, 0x14, 0x51];
        if self.tcp {
            header.extend(self.sequence.to_be_bytes());
            header.extend([
                0,
                0,
                0,
                9,
                (5 + self.options) << 4,
                self.flags,
                1,
                0,
                0,
                0,
                0,
                0,
            ]);
            header.extend(vec![1; usize::from(self.options) * 4]);
        } else {
            header.extend([0; 4]);
        }
        header
    }

    /// The packet with the sum of its pseudo-header, or with its checksum, and where the transport begins.
    fn write(&self, complete: bool) -> (Vec<u8>, usize) {
        let (mut bytes, addresses) = self.network();
        let start = bytes.len();
        bytes.extend(self.transport());
        bytes.extend(&self.payload);
        let total = bytes.len();
        let len = u16::try_from(total - start).unwrap().to_be_bytes();
        if !self.tcp {
            bytes[start + 4..start + 6].copy_from_slice(&len);
        }
        let at = start + if self.tcp { 16 } else { 6 };
        let mut summed = [&addresses[..], &[0, self.protocol()], &len].concat();
        if complete {
            summed.extend(&bytes[start..]);
            let sum = match checksum(&summed) {
                [0, 0] if !self.tcp => [0xff, 0xff],
                sum => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum);
        } else {
            let [high, low] = checksum(&summed);
            bytes[at..at + 2].copy_from_slice(&[!high, !low]);
        }
        if self.v6 {
            bytes[4..6].copy_from_slice(&u16::try_from(total - 40).unwrap().to_be_bytes());
        } else {
            bytes[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
            let sum = checksum(&bytes[..start]);
            bytes[10..12].copy_from_slice(&sum);
        }
        (bytes, start)
    }

    /// As on the wire.
    pub(in super::super) fn packet(&self) -> Vec<u8> {
        self.write(true).0
    }

    /// As the kernel hands it over to be cut.
    pub(in super::super) fn train(&self, size: u16) -> (Vnet, Vec<u8>) {
        let (bytes, start) = self.write(false);
        let (offset, kind) = match (self.tcp, self.v6) {
            (true, false) => (16, Kind::TcpV4),
            (true, true) => (16, Kind::TcpV6),
            (false, _) => (6, Kind::Udp),
        };
        let header = bytes.len() - self.payload.len();
        let start = u16::try_from(start).unwrap();
        let vnet = Vnet {
            checksum: Checksum::Partial { start, offset },
            gso: Some(Gso { kind, size }),
            header: u16::try_from(header).unwrap(),
        };
        (vnet, bytes)
    }

    /// The packets of the wire that it is to become.
    pub(in super::super) fn segments(&self, size: u16) -> Vec<Vec<u8>> {
        let chunks = self.payload.chunks(size.into());
        let last = chunks.len() - 1;
        let before = |n: usize| u32::try_from(n).unwrap() * u32::from(size);
        let segment = |(n, payload): (usize, &[u8])| {
            let ends = if n == last { 0 } else { FIN | PSH };
            let begins = if n == 0 { 0 } else { CWR };
            let one = Self {
                id: self.id.wrapping_add(u16::try_from(n).unwrap()),
                sequence: self.sequence.wrapping_add(before(n)),
                flags: self.flags & !ends & !begins,
                payload: payload.to_vec(),
                ..self.clone()
            };
            one.packet()
        };
        chunks.enumerate().map(segment).collect()
    }
}

/// Word by word in network byte order, as RFC 1071 section 4.1 has it.
pub(in super::super) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// Packets of any of these kinds, with up to `payload` bytes.
pub(in super::super) fn plain(payload: usize) -> impl Strategy<Value = Plain> {
    let between = prop_oneof![
        3 => Just(Between::Nothing),
        1 => (0_u8..=10).prop_map(Between::Options),
        1 => Just(Between::Route),
    ];
    let flags = prop_oneof![Just(ACK), Just(ACK | PSH), any::<u8>()];
    (
        (any::<bool>(), any::<bool>(), between, any::<bool>()),
        (any::<u16>(), any::<u16>(), any::<u32>(), flags, 0_u8..=10),
        proptest::collection::vec(any::<u8>(), 1..payload),
    )
        .prop_map(
            |((v6, tcp, between, dont_fragment), (id, port, sequence, flags, options), payload)| {
                Plain {
                    v6,
                    tcp,
                    between,
                    dont_fragment,
                    id,
                    port,
                    sequence,
                    flags,
                    options,
                    payload,
                }
            },
        )
}
