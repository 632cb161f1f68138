//! Any bytes as a datagram from the underlay: no panic, and a type only for the lengths that it has.

use subsea::tunnel::userspace::wire::{Message, classify, peer_index};

/// Runs it.
pub fn run(bytes: &[u8]) {
    match classify(bytes) {
        None => {}
        Some(Message::Initiation) => assert_eq!(bytes.len(), 148),
        Some(Message::Response { receiver }) => {
            assert_eq!(bytes.len(), 92);
            assert!(peer_index(receiver) < 1 << 24);
        }
        Some(Message::Cookie { .. }) => assert_eq!(bytes.len(), 64),
        Some(Message::Data { .. }) => assert!(bytes.len() >= 32),
    }
}
