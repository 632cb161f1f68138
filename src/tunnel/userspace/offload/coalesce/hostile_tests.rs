//! Flows mixed with noise and with what is rejected, and packets that lie.

use proptest::prelude::*;

use super::*;
use crate::tunnel::userspace::offload::split::Split;
use crate::tunnel::userspace::offload::tests::plain::{ACK, PSH, Plain, checksum, plain};
use crate::tunnel::userspace::offload::vnet::Vnet;

const ALL: Allowed = Allowed {
    tcp: true,
    udp: true,
};

/// What the driver does with one datagram.
#[derive(Debug, Clone)]
enum Step {
    Packet(Vec<u8>),
    /// Decrypted, to so many bytes, and not wanted.
    Reject(usize),
    Flush,
}

/// Gives what is written, with its header.
fn run(steps: &[Step]) -> Vec<(Vnet, Vec<u8>)> {
    let mut coalescer = Coalescer::new(ALL);
    let mut written = Vec::new();
    let mut write = |bytes: &mut [u8]| {
        let vnet = Vnet::read(bytes.first_chunk().unwrap()).unwrap();
        written.push((vnet, bytes[vnet::LEN..].to_vec()));
        // As when the packets of a train are written one by one, over each other.
        bytes.fill(0xdd);
    };
    for step in steps {
        match step {
            Step::Packet(packet) => {
                let room = coalescer.room();
                assert!(room.len() >= MAX_PACKET + 16);
                room[..packet.len()].copy_from_slice(packet);
                room[packet.len()..packet.len() + 16].fill(0xee);
                assert_eq!(coalescer.candidate(packet.len()), packet);
                if coalescer.offer(packet.len()) == Offered::FlushFirst {
                    coalescer.begin(packet.len(), &mut write);
                }
            }
            Step::Reject(len) => {
                coalescer.room()[..*len].fill(0xbb);
                coalescer.reject();
            }
            Step::Flush => {
                coalescer.finish(&mut write);
                assert!(coalescer.is_empty());
            }
        }
    }
    coalescer.finish(&mut write);
    written
}

fn packets(packets: &[Vec<u8>]) -> Vec<(Vnet, Vec<u8>)> {
    let steps: Vec<Step> = packets.iter().cloned().map(Step::Packet).collect();
    run(&steps)
}

/// The packets of the wire that were written.
fn apart(written: &[(Vnet, Vec<u8>)]) -> Vec<Vec<u8>> {
    let cut = |(vnet, packet): &(Vnet, Vec<u8>)| {
        let mut packet = packet.clone();
        let mut split = Split::new(vnet, &mut packet).unwrap();
        let next = || split.next(&mut packet).map(|range| packet[range].to_vec());
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    written.iter().flat_map(cut).collect()
}

/// Joined or not, it comes out as it was.
fn stays_apart(all: &[Vec<u8>]) {
    let written = packets(all);
    assert!(written.iter().all(|(vnet, _)| vnet.gso.is_none()));
    assert_eq!(apart(&written), all);
}

/// Each flow with what becomes of its packets: a number of it at a time, and what comes in between.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flow = (plain(6_000), 1_u16..1_500).prop_map(|(plain, size)| {
        let many = u16::try_from(plain.payload.len() / 100).unwrap();
        plain.segments(size.max(many))
    });
    let noise = prop_oneof![
        8 => Just(None),
        1 => proptest::collection::vec(any::<u8>(), 1..60).prop_map(|bytes| Some(Step::Packet(bytes))),
        1 => (0_usize..3_000).prop_map(|len| Some(Step::Reject(len))),
        1 => Just(Some(Step::Flush)),
    ];
    let turns = proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..6, noise), 1..60);
    (proptest::collection::vec(flow, 1..4), turns).prop_map(|(flows, turns)| {
        let mut flows: Vec<_> = flows.into_iter().map(Vec::into_iter).collect();
        let mut steps = Vec::new();
        for (which, count, noise) in turns {
            let at = which.index(flows.len());
            steps.extend(flows[at].by_ref().take(count).map(Step::Packet));
            steps.extend(noise);
        }
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn flows_in_turns_with_noise_come_out_packet_by_packet(steps in steps()) {
        let written = run(&steps);
        let want: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Packet(packet) => Some(packet.clone()),
                Step::Reject(_) | Step::Flush => None,
            })
            .collect();
        prop_assert_eq!(apart(&written), want);
    }
}

#[test]
fn trains_of_short_packets_are_joined() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        for size in [1, 2, 7, 27, 28, 29, 47, 51, 52, 53, 71, 73] {
            let plain = Plain::new(v6, tcp, usize::from(size) * 5);
            let written = packets(&plain.segments(size));
            assert_eq!(written, [plain.train(size)], "IPv6 {v6}, TCP {tcp}, {size}");
        }
    }
}

#[test]
fn what_was_wrong_does_not_become_right() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let fresh = Plain::new(v6, tcp, 400).segments(200);
        // Lengths and checksums of IP and of the transport, which are written anew.
        let start = if v6 { 40 } else { 20 };
        let mut fields = if v6 { vec![4, 5] } else { vec![2, 3, 10, 11] };
        fields.extend(if tcp {
            vec![start + 16]
        } else {
            vec![start + 4, start + 5, start + 7]
        });
        for at in fields {
            for which in [0, 1] {
                let mut all = fresh.clone();
                all[which][at] ^= 0x11;
                stays_apart(&all);
            }
        }
    }
}

#[test]
fn a_length_that_lies_does_not_become_right() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let fresh = Plain::new(v6, tcp, 400).segments(200);
        for says in [0_u16, 1, 19, 20, 40, 199, u16::MAX] {
            for which in [0, 1] {
                let mut all = fresh.clone();
                let at = if v6 { 4 } else { 2 };
                all[which][at..at + 2].copy_from_slice(&says.to_be_bytes());
                if !v6 {
                    all[which][10..12].fill(0);
                    let sum = checksum(&all[which][..20]);
                    all[which][10..12].copy_from_slice(&sum);
                }
                stays_apart(&all);
            }
        }
    }
}

#[test]
fn identification_must_grow_unless_it_means_nothing() {
    for (dont_fragment, id) in [(false, 3), (false, 0xffff), (true, 3), (true, 0xffff)] {
        let mut plain = Plain::new(false, true, 400);
        (plain.dont_fragment, plain.id) = (dont_fragment, id);
        assert_eq!(packets(&plain.segments(100)).len(), 1, "it grows");
        let mut all = plain.segments(100);
        for one in &mut all {
            one[4..6].copy_from_slice(&id.to_be_bytes());
            one[10..12].fill(0);
            let sum = checksum(&one[..20]);
            one[10..12].copy_from_slice(&sum);
        }
        assert_eq!(packets(&all).len(), if dont_fragment { 1 } else { 4 });
    }
}

#[test]
fn a_push_ends_the_train_and_no_other_flag_is_in_one() {
    let written = |flags: [u8; 3]| {
        let all: Vec<_> = (0_u16..3)
            .zip(flags)
            .map(|(n, flags)| Plain {
                id: 3 + n,
                sequence: 7 + 100 * u32::from(n),
                flags,
                ..Plain::new(false, true, 100)
            })
            .map(|plain| plain.packet())
            .collect();
        let written = packets(&all);
        assert_eq!(apart(&written), all);
        written.len()
    };
    assert_eq!(written([ACK; 3]), 1);
    assert_eq!(written([ACK, ACK, ACK | PSH]), 1);
    assert_eq!(written([ACK, ACK | PSH, ACK]), 2);
    assert_eq!(written([ACK | PSH, ACK, ACK]), 2);
    for flag in [1, 2, 4, 0x20, 0x40, 0x80] {
        assert_eq!(written([ACK, ACK | flag, ACK]), 3, "{flag:#x}");
    }
    assert_eq!(written([PSH, ACK, ACK]), 2, "no acknowledgement");
}

#[test]
fn no_train_is_longer_than_the_kernel_takes() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let many = Plain::new(v6, tcp, 130).segments(1);
        let counts: Vec<usize> = packets(&many)
            .iter()
            .map(|one| apart(std::slice::from_ref(one)).len())
            .collect();
        assert_eq!(counts, [64, 64, 2]);
        // Up to the last byte that an IPv4 header can count, and not beyond.
        let headers = Plain::new(v6, tcp, 0).packet().len();
        for (beyond, trains) in [(0, 1), (1, 2)] {
            let payload = 65_535 - headers + beyond;
            let size = u16::try_from(payload / 60).unwrap();
            let plain = Plain::new(v6, true, 1);
            let mut written = Vec::new();
            let mut plain = Plain {
                tcp,
                payload: vec![5; payload - 1],
                ..plain
            };
            let mut all = plain.segments(size);
            // The train of all is longer than a length of IPv4 can say: its last packet is made apart.
            let n = u16::try_from(all.len() - 1).unwrap();
            let last = all.pop().unwrap().len() - headers + 1;
            plain.id += n;
            plain.sequence += u32::from(n) * u32::from(size);
            plain.payload = vec![6; last];
            all.push(plain.packet());
            written.extend(packets(&all));
            assert_eq!(apart(&written), all);
            assert_eq!(written.len(), trains, "IPv6 {v6}, TCP {tcp}, {beyond}");
        }
    }
}

#[test]
fn a_packet_shorter_than_the_header_in_its_place_begins_anew() {
    for v6 in [false, true] {
        let all = Plain::new(v6, true, 400).segments(200);
        for len in 1..=all[0].len() {
            let short = all[0][..len].to_vec();
            let mixed = [all[0].clone(), short, all[1].clone()];
            assert_eq!(apart(&packets(&mixed)), mixed, "{len}");
        }
    }
}

#[test]
fn an_ipv6_packet_that_says_that_it_is_empty_stays_as_it_is() {
    let mut all = Plain::new(true, true, 400).segments(200);
    for one in &mut all {
        one[4..6].fill(0);
    }
    stays_apart(&all);
}

#[test]
fn a_length_beyond_the_room_is_harmless() {
    let mut coalescer = Coalescer::new(ALL);
    for len in [usize::MAX, 1 << 20, MAX_PACKET * 2, 0] {
        assert!(coalescer.candidate(usize::MAX).is_empty());
        if coalescer.offer(len) == Offered::FlushFirst {
            coalescer.begin(len, |_| {});
        }
        coalescer.room();
        coalescer.reject();
    }
    coalescer.finish(|_| {});
    assert!(coalescer.is_empty());
}
