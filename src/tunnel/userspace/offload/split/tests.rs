use proptest::prelude::*;

use super::*;
use crate::tunnel::userspace::offload::tests::{super_packet, verify};
use crate::tunnel::userspace::offload::vnet::Gso;

#[test]
fn a_train_of_tcp_is_cut_into_packets_that_are_right() {
    for v6 in [false, true] {
        let (vnet, mut packet) = super_packet(v6, true, 3_000, 1_400, 0x1234);
        let original = packet.clone();
        let mut split = Split::new(&vnet, &mut packet).unwrap();
        let headers = if v6 { 72 } else { 52 };
        let mut payload: Vec<u8> = Vec::new();
        let mut seen = Vec::new();
        while let Some(range) = split.next(&mut packet) {
            let segment = &packet[range];
            verify(segment).unwrap();
            let transport = if v6 { 40 } else { 20 };
            let sequence =
                u32::from_be_bytes(segment[transport + 4..transport + 8].try_into().unwrap());
            seen.push((segment.len() - headers, sequence, segment[transport + 13]));
            payload.extend(&segment[headers..]);
        }
        assert_eq!(
            seen,
            [(1_400, 7, 0x10), (1_400, 1_407, 0x10), (200, 2_807, 0x18)]
        );
        assert_eq!(payload, original[headers..]);
    }
}

#[test]
fn a_lone_packet_gets_its_checksum() {
    for v6 in [false, true] {
        let (vnet, mut packet) = super_packet(v6, false, 500, 500, 9);
        let alone = Vnet { gso: None, ..vnet };
        let mut split = Split::new(&alone, &mut packet).unwrap();
        let range = split.next(&mut packet).unwrap();
        assert_eq!(range, 0..packet.len());
        verify(&packet).unwrap();
        assert_eq!(split.next(&mut packet), None);
    }
}

proptest! {
    #[test]
    fn no_header_and_no_bytes_panic_or_reach_beyond(
        header: [u8; 10],
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        start in prop_oneof![Just(20_u8), Just(40), any::<u8>()],
        gso in prop_oneof![Just(0_u8), Just(1), Just(4), Just(5)],
    ) {
        let mut header = header;
        header[..2].copy_from_slice(&[1, gso]);
        header[6..8].copy_from_slice(&[start, 0]);
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if let Some(vnet) = Vnet::read(&header)
            && let Some(mut split) = Split::new(&vnet, &mut bytes)
        {
            let mut count = 0;
            while let Some(range) = split.next(&mut bytes) {
                prop_assert!(range.end <= bytes.len());
                count += 1;
            }
            prop_assert!(count <= 400);
        }
    }

    #[test]
    fn every_segment_is_right(v6: bool, tcp: bool, payload in 1_usize..9_000, size in 1_u16..2_000, id: u16) {
        let (vnet, mut packet) = super_packet(v6, tcp, payload, size, id);
        let mut split = Split::new(&vnet, &mut packet).unwrap();
        let mut total = 0;
        while let Some(range) = split.next(&mut packet) {
            let segment = &packet[range];
            prop_assert_eq!(verify(segment), Ok(()));
            let headers = if v6 { 40 } else { 20 } + if tcp { 32 } else { 8 };
            prop_assert!(segment.len() - headers <= usize::from(size));
            total += segment.len() - headers;
        }
        prop_assert_eq!(total, payload);
    }
}

#[test]
fn headers_that_contradict_the_packet_are_refused() {
    let (vnet, packet) = super_packet(false, true, 3_000, 1_400, 1);
    let refused = |vnet: Vnet, change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = packet.clone();
        change(&mut packet);
        Split::new(&vnet, &mut packet).is_none()
    };
    let kind = |kind| Vnet {
        gso: Some(Gso { kind, size: 1_400 }),
        ..vnet
    };
    assert!(!refused(vnet, &|_| {}));
    assert!(refused(kind(Kind::TcpV6), &|_| {}));
    assert!(refused(
        Vnet {
            checksum: Checksum::Complete,
            ..vnet
        },
        &|_| {}
    ));
    assert!(refused(vnet, &|packet| packet[0] = 0x46));
    assert!(refused(vnet, &|packet| packet[32] = 0x40));
    assert!(refused(vnet, &|packet| packet.truncate(52)));
    assert!(refused(vnet, &|packet| packet.truncate(10)));
}
