//! Which flow a packet belongs to, as a number. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A hash of addresses, protocol and, for TCP and UDP that is not fragmented, ports. Packets of a flow have the same; it
/// is no secret and no defence: who wants two flows to fall together can make it so, and only shares a queue then.
pub fn hash(packet: &[u8]) -> u64 {
    let word = |at: usize| {
        let bytes = packet
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        u64::from(u32::from_ne_bytes(bytes.unwrap_or_default()))
    };
    let first = packet.first().copied().unwrap_or_default();
    let byte = |at: usize| packet.get(at).copied().unwrap_or_default();
    let (addresses, protocol, ports) = match first >> 4 {
        4 => {
            // More fragments, or an offset: the ports stand in the first one only.
            let whole = byte(6).trailing_zeros() >= 6 && byte(7) == 0;
            let ports = word(usize::from(first & 0x0f) * 4);
            let addresses = (word(12) << 32) | word(16);
            (addresses, byte(9), if whole { ports } else { 0 })
        }
        6 => {
            let fold = |at: usize| mix((word(at) << 32) | word(at + 4));
            let addresses = [8, 16, 24, 32]
                .into_iter()
                .fold(0, |hash: u64, at| mix(hash ^ fold(at)));
            (addresses, byte(6), word(40))
        }
        _ => return 0,
    };
    let ports = if matches!(protocol, TCP | UDP) {
        ports
    } else {
        0
    };
    mix(mix(addresses) ^ (ports << 8) ^ u64::from(protocol))
}

/// The finaliser of `SplitMix64`: each bit of the argument moves about half of the bits of the result.
fn mix(mut value: u64) -> u64 {
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

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            hash(&bytes);
        }
    }
}
