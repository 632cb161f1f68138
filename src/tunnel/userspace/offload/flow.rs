//! Which flow a packet belongs to, and which the answers to it. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A flow in one direction: its two ends, and the protocol. Packets of a flow have the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    source: u64,
    destination: u64,
    protocol: u8,
}

impl Flow {
    /// Reads addresses, protocol and, for TCP and UDP that is not fragmented, ports; so all fragments of a packet are of
    /// one flow. What is no IP packet is of the default flow. Who does not know `key` cannot well choose flows that fall
    /// together; with the same key they are the same everywhere.
    pub fn of(packet: &[u8], key: u64) -> Self {
        let first = packet.first().copied().unwrap_or_default();
        let (protocol, ports, source, destination) = match first >> 4 {
            4 => {
                let protocol = byte(packet, 9);
                let ports = if is_whole(packet) {
                    ports(packet, protocol, header_v4(packet))
                } else {
                    0
                };
                (protocol, ports, word(packet, 12), word(packet, 16))
            }
            6 => {
                let address = |at: usize| {
                    let half = |at: usize| (word(packet, at) << 32) | word(packet, at + 4);
                    mix(mix(half(at) ^ key) ^ half(at + 8))
                };
                let protocol = byte(packet, 6);
                let ports = ports(packet, protocol, 40);
                (protocol, ports, address(8), address(24))
            }
            _ => return Self::default(),
        };
        // An IPv4 address has room for the port beside it; a folded one of IPv6 is as good with it as without.
        Self {
            source: source.rotate_left(16) ^ (ports >> 16) ^ key,
            destination: destination.rotate_left(16) ^ (ports & 0xffff) ^ key,
            protocol,
        }
    }

    /// The flow whose road a packet takes: its own, but for an ICMP error that of the packet that it goes back to.
    pub fn of_road(packet: &[u8], key: u64) -> Self {
        match quoted(packet) {
            Some(quoted) => Self::of(quoted, key).reversed(),
            None => Self::of(packet, key),
        }
    }

    /// The flow of the answers.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }

    /// It as a number. It is no secret and no defence, but for the key.
    pub fn hash(self) -> u64 {
        mix(mix(self.source ^ (u64::from(self.protocol) << 56)) ^ self.destination.rotate_left(8))
    }
}

/// A hash of the flow of a packet, without a key: who wants two flows to fall together can make it so, and only shares a
/// queue then.
pub fn hash(packet: &[u8]) -> u64 {
    Flow::of(packet, 0).hash()
}

/// What an ICMP error has of the packet that it is about (RFC 792, RFC 4443).
fn quoted(packet: &[u8]) -> Option<&[u8]> {
    let (at, is_error) = match (byte(packet, 0) >> 4, byte(packet, 9), byte(packet, 6)) {
        (4, ICMP, _) if is_whole(packet) => {
            let at = header_v4(packet);
            (at, matches!(byte(packet, at), 3 | 4 | 11 | 12))
        }
        (6, _, ICMPV6) => (40, matches!(byte(packet, 40), 1..=127)),
        _ => return None,
    };
    packet.get(at + 8..).filter(|_| is_error)
}

fn header_v4(packet: &[u8]) -> usize {
    usize::from(byte(packet, 0) & 0x0f) * 4
}

/// Whether an IPv4 packet is no fragment: else there are more, or it has an offset, and ports stand in the first only.
fn is_whole(packet: &[u8]) -> bool {
    byte(packet, 6).trailing_zeros() >= 6 && byte(packet, 7) == 0
}

fn ports(packet: &[u8], protocol: u8, at: usize) -> u64 {
    if matches!(protocol, TCP | UDP) {
        word(packet, at)
    } else {
        0
    }
}

fn byte(packet: &[u8], at: usize) -> u8 {
    packet.get(at).copied().unwrap_or_default()
}

/// Four bytes as a number, 0 where they are not all there.
fn word(packet: &[u8], at: usize) -> u64 {
    let bytes = packet.get(at..at + 4);
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    u64::from(u32::from_be_bytes(bytes.unwrap_or_default()))
}

/// The finaliser of `SplitMix64`: each bit of the argument moves about half of the bits of the result.
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tunnel::userspace::inner::tests::packet;

    #[test]
    fn flows_differ_and_packets_of_a_flow_do_not() {
        for (source, destination, ports) in
            [("10.1.0.1", "10.2.0.2", 20), ("fd00:1::1", "fd00:2::2", 40)]
        {
            let with = |port: u16, payload: &[u8]| {
                let mut bytes = packet(source, destination, &[&[0; 8], payload].concat());
                bytes[ports..ports + 2].copy_from_slice(&port.to_be_bytes());
                hash(&bytes)
            };
            let hashes: std::collections::BTreeSet<_> =
                (0..1_000).map(|port| with(port, b"x")).collect();
            assert_eq!(hashes.len(), 1_000, "ports tell flows apart");
            assert_eq!(with(7, b"one"), with(7, b"another"));
            let buckets: std::collections::BTreeSet<_> =
                hashes.iter().map(|hash| hash % 256).collect();
            assert!(buckets.len() > 240, "{}", buckets.len());
        }
    }

    #[test]
    fn all_fragments_of_a_packet_are_of_one_flow() {
        let fragment = |offset: u8, ports: u8| {
            let mut bytes = packet("10.1.0.1", "10.2.0.2", &[ports; 16]);
            bytes[6] = 0x20;
            bytes[7] = offset;
            hash(&bytes)
        };
        assert_eq!(fragment(0, 1), fragment(2, 9));
    }

    /// A packet of a protocol, with ports where it has some.
    fn of_protocol(ends: (&str, &str), protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let payload = [&ports.map(u16::to_be_bytes).concat()[..], &[0; 16]].concat();
        let mut bytes = packet(ends.0, ends.1, &payload);
        bytes[if ends.0.contains(':') { 6 } else { 9 }] = protocol;
        bytes
    }

    /// An ICMP error of a type to `to`, about a packet.
    fn error(ends: (&str, &str), kind: u8, about: &[u8]) -> Vec<u8> {
        let quote = &about[..about.len().min(48)];
        let mut bytes = packet(
            ends.0,
            ends.1,
            &[&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat(),
        );
        let (at, protocol) = if ends.0.contains(':') {
            (6, 58)
        } else {
            (9, 1)
        };
        bytes[at] = protocol;
        bytes
    }

    const ENDS: [(&str, &str); 2] = [("10.1.0.1", "10.2.0.2"), ("fd00:1::1", "fd00:2::2")];

    #[test]
    fn the_answers_of_a_flow_are_its_reverse() {
        for (source, destination) in ENDS {
            for (protocol, key) in [(TCP, 0), (UDP, 7), (ICMP, 7), (ICMPV6, 9), (47, 1 << 63)] {
                let there = of_protocol((source, destination), protocol, [4_000, 80]);
                let back = of_protocol((destination, source), protocol, [80, 4_000]);
                let (there, back) = (Flow::of(&there, key), Flow::of(&back, key));
                assert_eq!(there.reversed(), back);
                assert_eq!(back.reversed().hash(), there.hash());
                assert_ne!(there.hash(), back.hash());
            }
        }
    }

    #[test]
    fn protocols_and_keys_tell_flows_apart() {
        for ends in ENDS {
            let hash =
                |protocol, ports, key| Flow::of(&of_protocol(ends, protocol, ports), key).hash();
            let all = [
                hash(TCP, [1, 2], 0),
                hash(UDP, [1, 2], 0),
                hash(TCP, [2, 1], 0),
                hash(TCP, [1, 2], 1),
                hash(ICMP, [1, 2], 0),
            ];
            let distinct: std::collections::BTreeSet<_> = all.into_iter().collect();
            assert_eq!(distinct.len(), all.len());
            assert_eq!(
                hash(ICMP, [1, 2], 0),
                hash(ICMP, [3, 4], 0),
                "no ports there"
            );
        }
    }

    #[test]
    fn an_icmp_error_takes_the_road_back_of_what_it_is_about() {
        for ((source, destination), router, kind) in
            [(ENDS[0], "10.2.0.9", 3), (ENDS[1], "fd00:2::9", 2)]
        {
            // A pod of theirs sent something to ours; a router on our side says that it is too big.
            let sent = of_protocol((source, destination), TCP, [4_000, 80]);
            let told = error((router, source), kind, &sent);
            let answer = of_protocol((destination, source), TCP, [80, 4_000]);
            assert_eq!(Flow::of_road(&told, 5), Flow::of(&answer, 5));
            assert_ne!(Flow::of(&told, 5), Flow::of(&answer, 5));
            // What quotes nothing is a flow of its own.
            for kind in [0, 8, 128, 129, 135] {
                let other = error((router, source), kind, &sent);
                if (kind < 128) == source.contains('.') {
                    assert_eq!(Flow::of_road(&other, 5), Flow::of(&other, 5), "{kind}");
                }
            }
            assert_eq!(Flow::of_road(&answer, 5), Flow::of(&answer, 5));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            first in prop_oneof![0x40_u8..0x50, 0x60_u8..0x62, any::<u8>()],
            protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(44), Just(58), any::<u8>()],
            key in any::<u64>(),
        ) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            for at in [6, 9] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if at == 6 && first < 0x60 { 0 } else { protocol };
                }
            }
            hash(&bytes);
            let flow = Flow::of_road(&bytes, key);
            prop_assert_eq!(flow.reversed().reversed(), flow);
        }
    }
}
