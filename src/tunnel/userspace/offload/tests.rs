//! What the tests of the offloads share: trains as the kernel makes them, and a plain check of checksums.

pub(super) mod plain;

use super::checksum::{fold, sum, word};
use super::vnet::{Checksum, Gso, Kind, Vnet};

/// A train of `payload` bytes as the kernel hands it over: TCP with a timestamp option, sequence 7, PSH; or UDP.
pub(in crate::tunnel::userspace) fn super_packet(
    v6: bool,
    tcp: bool,
    payload: usize,
    size: u16,
    id: u16,
) -> (Vnet, Vec<u8>) {
    let protocol = if tcp { 6_u8 } else { 17 };
    let transport = if tcp { 32 } else { 8 };
    let len = u16::try_from(transport + payload).unwrap();
    let mut bytes = if v6 {
        let mut header = vec![0x60, 1, 2, 3, 0, 0, protocol, 61];
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header.extend([0xfd; 16]);
        header.extend([0xfe; 16]);
        header
    } else {
        let mut header = vec![
            0x45, 0, 0, 0, 0, 0, 0, 0, 61, protocol, 0, 0, 10, 1, 0, 9, 10, 2, 0, 8,
        ];
        header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
        header[4..6].copy_from_slice(&id.to_be_bytes());
        let checksum = super::checksum::finish(sum(&header));
        header[10..12].copy_from_slice(&checksum);
        header
    };
    let start = bytes.len();
    let addresses = if v6 {
        sum(&bytes[8..40])
    } else {
        sum(&bytes[12..20])
    };
    let pseudo = fold(addresses + word(protocol.into()) + word(len)).to_ne_bytes();
    bytes.extend([0x9c, 0x40, 0x14, 0x51]);
    let offset = if tcp {
        bytes.extend([
            0, 0, 0, 7, 0, 0, 0, 9, 0x80, 0x18, 1, 0, pseudo[0], pseudo[1], 0, 0,
        ]);
        bytes.extend([1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4]);
        16
    } else {
        bytes.extend(len.to_be_bytes());
        bytes.extend(pseudo);
        6
    };
    bytes.extend((0..payload).map(|n| (n * 31 + n / 251).to_le_bytes()[0]));
    let kind = match (tcp, v6) {
        (true, false) => Kind::TcpV4,
        (true, true) => Kind::TcpV6,
        (false, _) => Kind::Udp,
    };
    let vnet = Vnet {
        checksum: Checksum::Partial {
            start: u16::try_from(start).unwrap(),
            offset,
        },
        gso: Some(Gso { kind, size }),
        header: u16::try_from(start + transport).unwrap(),
    };
    (vnet, bytes)
}

/// Checks lengths and checksums of a packet of the wire.
pub(super) fn verify(packet: &[u8]) -> Result<(), String> {
    let v6 = packet[0] >> 4 == 6;
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (start, protocol, addresses) = if v6 {
        (40, packet[6], &packet[8..40])
    } else {
        if fold(sum(&packet[..20])) != 0xffff {
            return Err("the checksum of the IPv4 header".to_owned());
        }
        (20, packet[9], &packet[12..20])
    };
    let says = if v6 { field(4) + 40 } else { field(2) };
    if says != packet.len() {
        return Err(format!("a length of {says} in {} bytes", packet.len()));
    }
    let body = &packet[start..];
    if protocol == 17 && field(start + 4) != body.len() {
        return Err("the length of UDP".to_owned());
    }
    let len = u16::try_from(body.len()).unwrap();
    let total = sum(addresses) + word(protocol.into()) + word(len) + sum(body);
    if fold(total) == 0xffff {
        Ok(())
    } else {
        Err("the checksum of the transport".to_owned())
    }
}
