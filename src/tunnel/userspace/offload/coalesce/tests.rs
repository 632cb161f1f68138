use proptest::prelude::*;

use super::train::TUNNEL_PORTS;
use super::*;
use crate::tunnel::userspace::offload::split::Split;
use crate::tunnel::userspace::offload::tests::{super_packet, verify};
use crate::tunnel::userspace::offload::vnet::Vnet;

const ALL: Allowed = Allowed {
    tcp: true,
    udp: true,
};

/// The packets of the wire that a train stands for.
fn cut(vnet: &Vnet, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut split = Split::new(vnet, &mut packet).unwrap();
    std::iter::from_fn(|| split.next(&mut packet).map(|range| packet[range].to_vec())).collect()
}

/// Hands packets over as the driver does, with what decryption leaves behind each, and gives what is written.
fn feed(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>)> {
    let mut written = Vec::new();
    let mut write = |bytes: &mut [u8]| {
        let vnet = Vnet::read(bytes.first_chunk().unwrap()).unwrap();
        written.push((vnet, bytes[vnet::LEN..].to_vec()));
    };
    for packet in packets {
        let room = coalescer.room();
        room[..packet.len()].copy_from_slice(packet);
        room[packet.len()..packet.len() + 16].fill(0xee);
        assert_eq!(coalescer.candidate(packet.len()), packet);
        if coalescer.offer(packet.len()) == Offered::FlushFirst {
            coalescer.begin(packet.len(), &mut write);
        }
    }
    coalescer.finish(&mut write);
    written
}

/// The packets of the wire that were written.
fn apart(written: &[(Vnet, Vec<u8>)]) -> Vec<Vec<u8>> {
    written
        .iter()
        .flat_map(|(vnet, packet)| cut(vnet, packet))
        .collect()
}

#[test]
fn a_train_comes_out_as_it_went_in() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let (vnet, packet) = super_packet(v6, tcp, 40_000, 1_300, 77);
        let written = feed(&mut Coalescer::new(ALL), &cut(&vnet, &packet));
        assert_eq!(written, [(vnet, packet)], "IPv6 {v6}, TCP {tcp}");
    }
}

#[test]
fn what_is_not_allowed_stays_apart() {
    let nothing = Allowed {
        tcp: false,
        udp: false,
    };
    let (vnet, packet) = super_packet(false, true, 4_000, 1_300, 1);
    let packets = cut(&vnet, &packet);
    let written = feed(&mut Coalescer::new(nothing), &packets);
    assert_eq!(written.len(), packets.len());
    assert!(written.iter().all(|(vnet, _)| *vnet == Vnet::default()));
    assert_eq!(apart(&written), packets);
}

#[test]
fn a_changed_field_or_a_wrong_checksum_is_never_joined() {
    let (vnet, packet) = super_packet(false, true, 2_600, 1_300, 1);
    let fresh = cut(&vnet, &packet);
    // TOS, more fragments, TTL, source, destination, ports, sequence, acknowledgement, options' length, FIN, window,
    // urgent pointer, option, payload.
    for at in [1, 6, 8, 15, 19, 21, 23, 27, 31, 32, 33, 35, 39, 51, 60] {
        for which in [0, 1] {
            let mut packets = fresh.clone();
            packets[which][at] ^= 0x21;
            let written = feed(&mut Coalescer::new(ALL), &packets);
            let all: Vec<Vec<u8>> = written.iter().map(|(_, packet)| packet.clone()).collect();
            assert_eq!(all, packets, "byte {at} of packet {which}");
        }
    }
}

#[test]
fn tunnels_in_the_tunnel_and_packets_without_checksum_stay_apart() {
    let (vnet, packet) = super_packet(false, false, 2_600, 1_300, 1);
    for port in TUNNEL_PORTS {
        let mut packet = packet.clone();
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        assert_eq!(
            feed(&mut Coalescer::new(ALL), &cut(&vnet, &packet)).len(),
            2
        );
    }
    let mut packets = cut(&vnet, &packet);
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(feed(&mut Coalescer::new(ALL), &packets).len(), 2);
}

#[test]
fn a_rejected_packet_leaves_no_trace() {
    let (vnet, packet) = super_packet(false, true, 2_600, 1_300, 1);
    let packets = cut(&vnet, &packet);
    let mut coalescer = Coalescer::new(ALL);
    let mut written = Vec::new();
    for one in &packets {
        coalescer.room()[..one.len()].copy_from_slice(one);
        assert_eq!(coalescer.offer(one.len()), Offered::Joined);
        coalescer.room()[..200].fill(0xbb);
        coalescer.reject();
    }
    coalescer.finish(|bytes| written.push(bytes[vnet::LEN..].to_vec()));
    assert_eq!(written, [packet]);
}

/// A flow of the property test: family, protocol, payload of each packet, PSH here and there.
#[derive(Debug, Clone)]
struct Flow {
    v6: bool,
    tcp: bool,
    size: u16,
    payload: usize,
}

fn flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1_u16..1_400, 1_usize..20_000).prop_map(
        |(v6, tcp, size, payload)| Flow {
            v6,
            tcp,
            // Of packets shorter than their headers nothing is joined.
            size: size.max(60).max(u16::try_from(payload / 60).unwrap()),
            payload,
        },
    )
}

proptest! {
    #[test]
    fn to_cut_and_to_join_is_the_identity(flow in flow()) {
        let (vnet, packet) = super_packet(flow.v6, flow.tcp, flow.payload, flow.size, 3);
        let packets = cut(&vnet, &packet);
        let written = feed(&mut Coalescer::new(ALL), &packets);
        if packets.len() > 1 {
            prop_assert_eq!(written, vec![(vnet, packet)]);
        } else {
            prop_assert_eq!(apart(&written), packets);
        }
    }

    #[test]
    fn whatever_comes_in_whatever_order_comes_out_packet_by_packet(
        flows in proptest::collection::vec(flow(), 1..4),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 1..80),
        noise in proptest::collection::vec((0_usize..80, proptest::collection::vec(any::<u8>(), 1..200)), 0..6),
    ) {
        let trains: Vec<Vec<Vec<u8>>> = flows
            .iter()
            .map(|flow| {
                let (vnet, packet) = super_packet(flow.v6, flow.tcp, flow.payload, flow.size, 3);
                cut(&vnet, &packet)
            })
            .collect();
        let all: Vec<&Vec<u8>> = trains.iter().flatten().collect();
        let mut packets: Vec<Vec<u8>> = order.iter().map(|index| (*index.get(&all)).clone()).collect();
        for (at, bytes) in noise {
            packets.insert(at.min(packets.len()), bytes);
        }
        let written = feed(&mut Coalescer::new(ALL), &packets);
        prop_assert_eq!(apart(&written), packets);
        for (vnet, packet) in &written {
            prop_assert!(packet.len() <= MAX_PACKET);
            if vnet.gso.is_some() {
                for one in cut(vnet, packet) {
                    prop_assert_eq!(verify(&one), Ok(()));
                }
            }
        }
    }
}
