//! A header and a packet: what is cut lies in the packet, has every byte of payload once, and is right when the
//! packet was.

use subsea::tunnel::userspace::offload::split::Split;
use subsea::tunnel::userspace::offload::vnet::{Checksum, Gso, Kind, LEN, Vnet};

use super::input::Input;
use super::packet::{Flow, complete, verify};

/// Runs it.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    if input.byte() % 2 == 0 {
        let header = input.take(LEN).first_chunk::<LEN>();
        if let Some(vnet) = header.and_then(Vnet::read) {
            cut(&vnet, input.0);
        }
    } else {
        well_formed(&mut input);
    }
}

/// Gives the packets of the wire, and what is payload of each.
fn cut(vnet: &Vnet, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buffer = packet.to_vec();
    let mut split = Split::new(vnet, &mut buffer)?;
    let mut segments = Vec::new();
    let mut at = None;
    while let Some(range) = split.next(&mut buffer) {
        assert!(range.end <= packet.len() && !range.is_empty());
        // All headers stand before the first payload, so the first segment tells how long they are.
        let from = at.unwrap_or(range.start);
        if at.is_some() {
            assert_eq!(buffer[from..range.end], packet[from..range.end]);
        }
        at = Some(range.end);
        segments.push(buffer[range].to_vec());
        assert!(segments.len() <= packet.len());
    }
    assert_eq!(at.unwrap_or_default(), packet.len(), "it ends half-way");
    Some(segments)
}

fn well_formed(input: &mut Input<'_>) {
    let choice = input.byte();
    let flow = Flow {
        sequence: u32::from(input.number()) << 16 | 0xff00,
        id: input.number(),
        ..Flow::of_kind(choice)
    };
    let (flags, size) = (input.byte(), input.number());
    let verified = choice & 8 != 0;
    let payload = input.0;
    if payload.is_empty() || size == 0 {
        return;
    }
    let mut packet = flow.packet(flags, payload);
    let headers = packet.len() - payload.len();
    complete(&mut packet, flow, verified);
    let (kind, offset) = match (flow.tcp, flow.v6) {
        (true, false) => (Kind::TcpV4, 16),
        (true, true) => (Kind::TcpV6, 16),
        (false, _) => (Kind::Udp, 6),
    };
    let vnet = Vnet {
        checksum: if verified {
            Checksum::Verified
        } else {
            Checksum::Partial {
                start: if flow.v6 { 40 } else { 20 },
                offset,
            }
        },
        gso: Some(Gso { kind, size }),
        header: 0,
    };
    let segments = cut(&vnet, &packet).expect("it is a train");
    assert_eq!(segments.len(), payload.len().div_ceil(size.into()));
    let mut joined: Vec<u8> = Vec::new();
    for (n, segment) in (0_u16..).zip(&segments) {
        verify(segment);
        joined.extend(&segment[headers..]);
        if !flow.v6 {
            assert_eq!(segment[4..6], flow.id.wrapping_add(n).to_be_bytes());
        }
        if flow.tcp {
            let at = flow.transport();
            let sent = u32::from(n) * u32::from(size);
            assert_eq!(
                segment[at + 4..at + 8],
                flow.sequence.wrapping_add(sent).to_be_bytes()
            );
            let last = usize::from(n) + 1 == segments.len();
            let ends = if last { 0 } else { 0x09 };
            let begins = if n == 0 { 0 } else { 0x80 };
            assert_eq!(segment[at + 13], flags & !ends & !begins);
        }
    }
    assert_eq!(joined, payload);
}
