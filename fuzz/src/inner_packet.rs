//! Any bytes as an inner packet: no panic, and never a length beyond the bytes.

use subsea::tunnel::userspace::inner;

/// Runs it.
pub fn run(bytes: &[u8]) {
    if let Some(packet) = inner::parse(bytes) {
        assert!(packet.len <= bytes.len());
        assert_eq!(packet.source.is_ipv4(), bytes[0] >> 4 == 4);
        assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
        // Padding changes nothing.
        assert_eq!(inner::parse(&bytes[..packet.len]), Some(packet));
    }
}
