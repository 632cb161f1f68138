//! Against packets written down field by field, and against headers that lie.

use proptest::prelude::*;

use super::*;
use crate::tunnel::userspace::offload::tests::plain::{ACK, Between, CWR, FIN, PSH, Plain, plain};
use crate::tunnel::userspace::offload::vnet::Gso;

fn cut(vnet: &Vnet, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut packet = packet.to_vec();
    let mut split = Split::new(vnet, &mut packet)?;
    let next = || split.next(&mut packet).map(|range| packet[range].to_vec());
    Some(std::iter::from_fn(next).collect())
}

/// Compares with what should be, the first packet that differs only.
fn check(plain: &Plain, size: u16) -> Result<(), TestCaseError> {
    let (vnet, packet) = plain.train(size);
    let (got, want) = (
        cut(&vnet, &packet).unwrap_or_default(),
        plain.segments(size),
    );
    prop_assert_eq!(got.len(), want.len());
    for (n, (got, want)) in got.iter().zip(&want).enumerate() {
        prop_assert_eq!(got, want, "packet {}", n);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn packets_are_cut_as_they_would_have_been_written(plain in plain(4_000), size in 1_u16..3_000) {
        check(&plain, size)?;
    }

    #[test]
    fn a_lone_packet_is_completed_as_it_would_have_been_written(plain in plain(400)) {
        let (vnet, packet) = plain.train(9);
        let alone = Vnet { gso: None, ..vnet };
        prop_assert_eq!(cut(&alone, &packet), Some(vec![plain.packet()]));
    }
}

#[test]
fn flags_of_the_end_and_of_the_beginning_stand_there_only() {
    let mut plain = Plain::new(false, true, 3_000);
    plain.flags = ACK | PSH | FIN | CWR;
    let (vnet, packet) = plain.train(1_001);
    let flags: Vec<u8> = cut(&vnet, &packet).unwrap().iter().map(|p| p[33]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    let (vnet, packet) = plain.train(3_000);
    assert_eq!(
        cut(&vnet, &packet).unwrap()[0][33],
        plain.flags,
        "one has all"
    );
}

#[test]
fn numbers_wrap_with_and_without_df() {
    for dont_fragment in [false, true] {
        let mut plain = Plain::new(false, true, 5_000);
        (plain.dont_fragment, plain.id, plain.sequence) = (dont_fragment, 0xfffe, u32::MAX - 1_500);
        check(&plain, 1_000).unwrap();
    }
}

#[test]
fn a_checksum_of_zero_is_not_that_of_a_udp_packet_without_one() {
    for (v6, tcp) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut plain = Plain::new(v6, tcp, 64);
        plain.payload[..2].fill(0);
        let at = plain.packet().len() - 64 - if tcp { 16 } else { 2 };
        // What is added to the payload is taken away from the checksum.
        let zero: [u8; 2] = plain.packet()[at..at + 2].try_into().unwrap();
        plain.payload[..2].copy_from_slice(&zero);
        let want = if tcp { [0, 0] } else { [0xff, 0xff] };
        assert_eq!(plain.packet()[at..at + 2], want, "IPv6 {v6}, TCP {tcp}");
        check(&plain, 64).unwrap();
        let (vnet, packet) = plain.train(64);
        let alone = Vnet { gso: None, ..vnet };
        assert_eq!(cut(&alone, &packet), Some(vec![plain.packet()]));
    }
}

#[test]
fn the_last_destination_counts_for_the_checksum() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut plain = Plain::new(v6, tcp, 2_000);
        plain.between = Between::Route;
        check(&plain, 999).unwrap();
    }
}

#[test]
fn the_largest_packets_are_cut() {
    for (v6, tcp, payload) in [
        (false, true, 65_535 - 52),
        (true, true, 65_535 - 32),
        (false, false, 65_535 - 28),
        (true, false, 65_535 - 8),
    ] {
        for size in [1_400, 32_767, u16::MAX] {
            check(&Plain::new(v6, tcp, payload), size).unwrap();
        }
    }
    let (vnet, packet) = Plain::new(false, true, 65_535 - 52).train(1);
    let mut packet = packet.clone();
    let mut split = Split::new(&vnet, &mut packet).unwrap();
    let count = std::iter::from_fn(|| split.next(&mut packet)).count();
    assert_eq!(count, 65_483);
}

#[test]
fn a_packet_longer_than_its_segments_may_be_is_refused_at_once() {
    let (vnet, mut packet) = Plain::new(false, true, 60_000).train(1_400);
    packet.resize(70_000, 0);
    let large = Vnet {
        gso: vnet.gso.map(|gso| Gso {
            size: u16::MAX,
            ..gso
        }),
        ..vnet
    };
    assert!(Split::new(&large, &mut packet).is_none());
    let endless = Vnet {
        gso: vnet.gso.map(|gso| Gso { size: 0, ..gso }),
        ..vnet
    };
    assert!(Split::new(&endless, &mut packet).is_none());
}

/// Cards that put packets together themselves leave the checksum as it was: the kernel says that it was verified, and
/// not where it is.
#[test]
fn a_large_packet_that_was_verified_is_cut() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let plain = Plain::new(v6, tcp, 3_000);
        let (vnet, _) = plain.train(1_400);
        let verified = Vnet {
            checksum: Checksum::Verified,
            ..vnet
        };
        let got = cut(&verified, &plain.packet());
        assert_eq!(got, Some(plain.segments(1_400)), "IPv6 {v6}, TCP {tcp}");
    }
    // Where the transport begins is then not known.
    let mut plain = Plain::new(true, true, 3_000);
    plain.between = Between::Options(1);
    let (vnet, packet) = plain.train(1_400);
    let verified = Vnet {
        checksum: Checksum::Verified,
        ..vnet
    };
    assert_eq!(cut(&verified, &packet), None);
}

#[test]
fn a_packet_that_is_shorter_than_its_ip_header_says_is_cut_by_what_is_there() {
    for v6 in [false, true] {
        let (vnet, packet) = Plain::new(v6, true, 3_000).train(1_400);
        let headers = usize::from(vnet.header);
        for len in 0..packet.len() {
            let got = cut(&vnet, &packet[..len]);
            assert_eq!(got.is_some(), len > headers, "{len}");
            for one in got.unwrap_or_default() {
                let says = if v6 { one.get(4..6) } else { one.get(2..4) };
                let says = u16::from_be_bytes(says.unwrap().try_into().unwrap());
                assert_eq!(usize::from(says) + if v6 { 40 } else { 0 }, one.len());
            }
        }
    }
}

/// Every combination of values at the edges: nothing panics, every byte of payload comes out once, in its place.
#[test]
fn no_combination_of_lengths_reaches_beyond_the_packet() {
    let mut cut_well = 0;
    let template: Vec<u8> = (0..300_usize).map(|n| n.to_le_bytes()[0]).collect();
    for version in [0x45_u8, 0x46, 0x4f, 0x40, 0x60, 0x6f, 0x55] {
        for protocol in [6, 17, 43] {
            for data_offset in [0_u8, 0x40, 0x50, 0x80, 0xf0] {
                for len in [0, 1, 20, 39, 40, 41, 53, 60, 61, 81, 121, 300] {
                    for start in [0_u16, 19, 20, 24, 40, 48, 60, 236, 255, 288, u16::MAX] {
                        let mut packet = template[..len].to_vec();
                        let transport = usize::from(start);
                        for (at, value) in [
                            (0, version),
                            (6, protocol),
                            (9, protocol),
                            (transport.saturating_add(12), data_offset),
                        ] {
                            packet
                                .get_mut(at)
                                .into_iter()
                                .for_each(|byte| *byte = value);
                        }
                        cut_well += with_all_headers(&packet, start);
                    }
                }
            }
        }
    }
    assert!(cut_well > 1_000, "only {cut_well} were cut");
}

fn with_all_headers(packet: &[u8], start: u16) -> u32 {
    let mut cut_well = 0;
    for kind in [1_u8, 4, 5] {
        for (flags, offset) in [(0_u8, 0_u8), (2, 0), (1, 6), (1, 16), (1, 255)] {
            for size in [1_u16, 7, u16::MAX] {
                let [s0, s1] = size.to_ne_bytes();
                let [c0, c1] = start.to_ne_bytes();
                let [o0, o1] = u16::from(offset).to_ne_bytes();
                let vnet = Vnet::read(&[flags, kind, 0, 0, s0, s1, c0, c1, o0, o1]).unwrap();
                let mut bytes = packet.to_vec();
                let Some(mut split) = Split::new(&vnet, &mut bytes) else {
                    continue;
                };
                cut_well += 1;
                let mut at = split.len;
                while let Some(range) = split.next(&mut bytes) {
                    let until = packet.len().min(at + usize::from(size));
                    assert_eq!(range, at - split.len..until);
                    assert_eq!(bytes[at..until], packet[at..until]);
                    at = until;
                }
                assert_eq!(at, packet.len(), "{vnet:?} {packet:?}");
            }
        }
    }
    cut_well
}
