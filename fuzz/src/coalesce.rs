//! Packets of some flows, damaged ones, any bytes, what is rejected, and flushes, in any order: what comes out, cut
//! again, is what went in.

use subsea::tunnel::userspace::offload::coalesce::{Allowed, Coalescer, Offered};
use subsea::tunnel::userspace::offload::split::Split;
use subsea::tunnel::userspace::offload::vnet::{self, Vnet};

use super::input::Input;
use super::packet::{Flow, checksum, complete};

const FLOWS: usize = 4;
const STEPS: usize = 400;

/// Runs it.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let mut coalescer = Coalescer::new(Allowed {
        tcp: choice % 8 != 0,
        udp: choice % 5 != 0,
    });
    let mut flows: Vec<(Flow, usize)> = (0..FLOWS)
        .map(|n| flow(u8::try_from(n).unwrap_or_default(), &mut input))
        .collect();
    let (mut taken, mut written) = (Vec::new(), Vec::new());
    let mut write = |bytes: &mut [u8]| {
        written.extend(cut(bytes));
        // As when a train is written packet by packet.
        bytes.fill(0xdd);
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        match step {
            0..=7 => {
                let len = usize::from(input.number()) % 4_000;
                coalescer.room()[..len].fill(step);
                coalescer.reject();
                continue;
            }
            8..=15 => {
                coalescer.finish(&mut write);
                assert!(coalescer.is_empty());
                continue;
            }
            16..=255 => {}
        }
        let count = match step {
            0..=31 => 1,
            // More than are joined.
            255 => 66,
            _ => 1 + usize::from(step >> 2) % 4,
        };
        for _ in 0..count {
            let packet = if step < 32 {
                let len = usize::from(input.byte()).max(1);
                input.take(len).to_vec()
            } else {
                let (flow, size) = &mut flows[usize::from(step) % FLOWS];
                // Nothing ends a long train but its length.
                let choices = if count > 4 {
                    &mut Input(&[32])
                } else {
                    &mut input
                };
                next(flow, *size, choices)
            };
            if packet.is_empty() {
                continue;
            }
            offer(&mut coalescer, &packet, &mut write);
            taken.push(packet);
        }
    }
    coalescer.finish(&mut write);
    assert_eq!(written.len(), taken.len());
    for (written, taken) in written.into_iter().zip(taken) {
        assert_eq!(meaning(written), meaning(taken));
    }
}

/// As the driver does, with what decryption leaves behind the packet.
fn offer(coalescer: &mut Coalescer, packet: &[u8], write: impl FnOnce(&mut [u8])) {
    let room = coalescer.room();
    room[..packet.len()].copy_from_slice(packet);
    room[packet.len()..packet.len() + 16].fill(0xee);
    assert_eq!(coalescer.candidate(packet.len()), packet);
    if coalescer.offer(packet.len()) == Offered::FlushFirst {
        coalescer.begin(packet.len(), write);
    }
}

fn flow(port: u8, input: &mut Input<'_>) -> (Flow, usize) {
    let choice = input.byte();
    let flow = Flow {
        port,
        sequence: u32::MAX - 2_000,
        id: 0xfff0,
        ..Flow::of_kind(choice)
    };
    // Short ones, whose header lies over all of the packet before, and long ones.
    let size = usize::from(input.byte());
    let size = if choice & 8 != 0 { size * 12 } else { size / 2 };
    (flow, size.max(1))
}

/// The next packet of a flow: mostly a full one, sometimes a shorter one, with a flag, or damaged.
fn next(flow: &mut Flow, size: usize, input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.byte();
    let (flags, damage) = match choice {
        0..16 => (0x18, false),
        16..24 => (input.byte(), false),
        24..32 => (0x10, true),
        32..=255 => (0x10, false),
    };
    let len = if choice % 13 == 1 {
        usize::from(input.byte()).min(size)
    } else {
        size
    };
    let payload: Vec<u8> = (0..len).map(|n| choice ^ n.to_le_bytes()[0]).collect();
    let mut packet = flow.packet(flags, &payload);
    complete(&mut packet, *flow, true);
    let sent = u32::try_from(len).unwrap_or_default();
    flow.sequence = flow.sequence.wrapping_add(sent);
    // Without a meaning it may also stay as it is.
    if !flow.dont_fragment || flow.port > 1 {
        flow.id = flow.id.wrapping_add(1);
    }
    if damage {
        let (at, with) = (usize::from(input.byte()), input.byte());
        // In the IP header as often as elsewhere.
        let at = if at % 2 == 0 {
            at / 2 % 20
        } else {
            at % packet.len()
        };
        packet[at] ^= with;
    }
    packet
}

/// The packets of the wire that the kernel makes of what is written.
fn cut(bytes: &[u8]) -> Vec<Vec<u8>> {
    let header = bytes.first_chunk().expect("a header");
    let vnet = Vnet::read(header).expect("a header that can be read");
    let mut packet = bytes[vnet::LEN..].to_vec();
    let is_train = vnet.gso.is_some();
    assert!(!is_train || packet.len() <= 65_535);
    let mut split = Split::new(&vnet, &mut packet).expect("a packet that can be cut");
    let next = || split.next(&mut packet).map(|range| packet[range].to_vec());
    let all: Vec<_> = std::iter::from_fn(next).collect();
    assert!(!is_train || (2..=64).contains(&all.len()));
    all
}

/// A packet without what may differ: the identification of an IPv4 packet that is not to be fragmented (RFC 6864),
/// and with it the checksum, if that is right; and zero as a checksum of TCP, which can be written in two ways.
fn meaning(mut packet: Vec<u8>) -> Vec<u8> {
    let v4 = packet.len() >= 20 && packet[0] == 0x45 && checksum(&packet[..20]) == [0, 0];
    if v4 {
        packet[10..12].fill(0);
        if packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
        }
    }
    let v6 = packet.len() >= 40 && packet[0] >> 4 == 6;
    if v4 && packet[9] == 6 || v6 && packet[6] == 6 {
        let at = if v4 { 36 } else { 56 };
        if let Some(sum) = packet.get_mut(at..at + 2).filter(|sum| **sum == [0xff; 2]) {
            sum.fill(0);
        }
    }
    packet
}
