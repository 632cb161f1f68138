//! What the benchmarks of the data plane work on: trains as the kernel hands them over, and two ends of a session.

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use subsea::tunnel::userspace::offload::checksum::{finish, fold, sum, word};
use subsea::tunnel::userspace::offload::split::Split;
use subsea::tunnel::userspace::offload::vnet::{Checksum, Gso, Kind, Vnet};

/// The payload of a TCP packet with a timestamp that fits in the 1,420 bytes of the device.
const SEGMENT: u16 = 1_368;
/// What WireGuard adds to a packet.
pub(crate) const OVERHEAD: usize = 32;

/// A train of TCP of `packets` full packets, as the kernel hands it over.
pub(crate) fn train(v6: bool, packets: u16) -> (Vnet, Vec<u8>) {
    let size = if v6 { SEGMENT - 20 } else { SEGMENT };
    let len = 32 + packets * size;
    let mut bytes = if v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header.extend([0xfd; 16]);
        header.extend([0xfe; 16]);
        header
    } else {
        let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0];
        header.extend([10, 1, 0, 9, 10, 2, 0, 8]);
        header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
        let checksum = finish(sum(&header));
        header[10..12].copy_from_slice(&checksum);
        header
    };
    let start = u16::try_from(bytes.len()).expect("a short header");
    let addresses = sum(&bytes[if v6 { 8..40 } else { 12..20 }]);
    let seed = fold(addresses + word(6) + word(len)).to_ne_bytes();
    bytes.extend([0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 7, 0, 0, 0, 9]);
    bytes.extend([0x80, 0x10, 1, 0, seed[0], seed[1], 0, 0]);
    bytes.extend([1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4]);
    let payload = usize::from(packets) * usize::from(size);
    bytes.extend((0..payload).map(|n| (n * 31 + n / 251).to_le_bytes()[0]));
    let kind = if v6 { Kind::TcpV6 } else { Kind::TcpV4 };
    let vnet = Vnet {
        checksum: Checksum::Partial { start, offset: 16 },
        gso: Some(Gso { kind, size }),
        header: start + 32,
    };
    (vnet, bytes)
}

/// The packets of the wire that it stands for.
pub(crate) fn cut(vnet: &Vnet, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut split = Split::new(vnet, &mut packet).expect("a train");
    std::iter::from_fn(|| split.next(&mut packet).map(|range| packet[range].to_vec())).collect()
}

/// Two ends that have shaken hands.
pub(crate) fn session() -> (Tunn, Tunn) {
    let (near, far) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let keys = (PublicKey::from(&near), PublicKey::from(&far));
    let mut near = Tunn::new(near, keys.1, None, None, 1, None);
    let mut far = Tunn::new(far, keys.0, None, None, 2, None);
    let mut room = [0; 256];
    let initiation = sent(&near.format_handshake_initiation(&mut room, false));
    let response = sent(&far.decapsulate(None, &initiation, &mut room));
    // It confirms the session: before it, the other end may not send.
    let keepalive = sent(&near.decapsulate(None, &response, &mut room));
    far.decapsulate(None, &keepalive, &mut room);
    (near, far)
}

fn sent(result: &TunnResult<'_>) -> Vec<u8> {
    let TunnResult::WriteToNetwork(message) = result else {
        panic!("no message: {result:?}");
    };
    message.to_vec()
}
