//! Inner packets: version, length and addresses, read strictly. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const UDP: u8 = 17;

/// What routing and the checks need of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// How long it is, header included: what follows is padding.
    pub len: usize,
}

/// Reads the header of an IPv4 or IPv6 packet that may be followed by padding; `None` when it is neither, or
/// shorter than it says.
pub fn parse(packet: &[u8]) -> Option<Inner> {
    let inner = match packet.first()? >> 4 {
        4 => parse_v4(packet)?,
        6 => parse_v6(packet)?,
        _ => return None,
    };
    (inner.len <= packet.len()).then_some(inner)
}

/// Whether it is UDP to this port; false for what has extension headers or is a later fragment.
pub fn is_udp_to(packet: &[u8], port: u16) -> bool {
    let byte = |at: usize| packet.get(at).copied().unwrap_or_default();
    let offset = u16::from_be_bytes([byte(6) & 0x1f, byte(7)]);
    let (protocol, header) = match byte(0) >> 4 {
        4 if offset == 0 => (byte(9), usize::from(byte(0) & 0x0f) * 4),
        6 => (byte(6), 40),
        _ => return false,
    };
    protocol == UDP && field(packet, header + 2) == Some(port.to_be_bytes())
}

fn parse_v4(packet: &[u8]) -> Option<Inner> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes(field(packet, 2)?));
    if header < 20 || len < header {
        return None;
    }
    let address = |at| Some(IpAddr::V4(Ipv4Addr::from(field::<4>(packet, at)?)));
    Some(Inner {
        source: address(12)?,
        destination: address(16)?,
        len,
    })
}

fn parse_v6(packet: &[u8]) -> Option<Inner> {
    let len = usize::from(u16::from_be_bytes(field(packet, 4)?)) + 40;
    let address = |at| Some(IpAddr::V6(Ipv6Addr::from(field::<16>(packet, at)?)));
    Some(Inner {
        source: address(8)?,
        destination: address(24)?,
        len,
    })
}

fn field<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet of `payload`, with the checksum that the kernel wants.
    pub(in crate::tunnel::userspace) fn packet(
        source: &str,
        destination: &str,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut bytes = match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
                header.extend(source.octets());
                header.extend(destination.octets());
                let total = u16::try_from(header.len() + payload.len()).unwrap();
                header[2..4].copy_from_slice(&total.to_be_bytes());
                let words = header
                    .chunks_exact(2)
                    .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
                let sum: u32 = words.sum();
                let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                header[10..12].copy_from_slice(&(!folded).to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
                header[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
                header.extend(source.octets());
                header.extend(destination.octets());
                header
            }
            _ => panic!("mixed families"),
        };
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn both_families_are_read_and_padding_is_seen() {
        for (source, destination, header) in
            [("10.1.0.1", "10.2.0.2", 20), ("fd00:1::1", "fd00:2::2", 40)]
        {
            let mut bytes = packet(source, destination, b"payload");
            let want = Inner {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                len: header + 7,
            };
            assert_eq!(parse(&bytes), Some(want));
            bytes.extend([0; 9]);
            assert_eq!(parse(&bytes), Some(want));
            bytes.truncate(want.len - 1);
            assert_eq!(parse(&bytes), None, "shorter than it says");
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        assert_eq!(parse(&[]), None);
        let good = packet("10.1.0.1", "10.2.0.2", &[0; 100]);
        for (at, value) in [(0, 0x44), (0, 0x4f), (0, 0x55), (0, 0x05), (0, 0x75)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            if value == 0x4f {
                bytes[2..4].copy_from_slice(&59_u16.to_be_bytes());
            }
            assert_eq!(parse(&bytes), None, "{value:#x}");
        }
        let mut short = good;
        short[2..4].copy_from_slice(&19_u16.to_be_bytes());
        assert_eq!(parse(&short), None, "total length within the header");
    }

    #[test]
    fn the_port_of_udp_is_found_where_there_is_one() {
        let payload = [&[1, 2, 2, 0x47][..], &[0; 8]].concat();
        for (source, destination) in [("10.1.0.1", "10.2.0.1"), ("fd00:1::1", "fd00:2::1")] {
            let whole = packet(source, destination, &payload);
            assert!(is_udp_to(&whole, 583));
            assert!(!is_udp_to(&whole, 582));
            assert!(
                !is_udp_to(&packet(source, destination, &[1, 2, 2]), 583),
                "cut short"
            );
            let mut tcp = whole.clone();
            tcp[if source.contains(':') { 6 } else { 9 }] = 6;
            assert!(!is_udp_to(&tcp, 583));
        }
        let mut later = packet("10.1.0.1", "10.2.0.1", &payload);
        later[7] = 1;
        assert!(!is_udp_to(&later, 583), "a later fragment");
        assert!(!is_udp_to(&[], 583));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_no_length_exceeds_them(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0_u8..16) {
            if let Some(first) = bytes.first_mut() {
                *first = (*first & 0x0f) | (version << 4);
            }
            if let Some(inner) = parse(&bytes) {
                prop_assert!(inner.len <= bytes.len());
                prop_assert_eq!(inner.source.is_ipv4(), version == 4);
                prop_assert_eq!(inner.destination.is_ipv4(), version == 4);
            }
        }
    }
}
