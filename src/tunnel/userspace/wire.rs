//! Datagrams from the underlay: which of the four WireGuard messages, and for whom. PURE.
//!
//! Nothing is authentic yet here; this decides only who is asked.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

/// A counter from which on a session must not be used (whitepaper, section 6.1, Reject-After-Messages). It also
/// keeps the arithmetic of the replay window, `counter + 1024`, from overflowing: a peer chooses its counters.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// What a datagram looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The first message of a handshake: whose is known only after a Diffie-Hellman.
    Initiation,
    /// The second message of a handshake that we began.
    Response {
        /// Our index of the handshake.
        receiver: u32,
    },
    /// A cookie for our next handshake message.
    Cookie {
        /// Our index of the handshake.
        receiver: u32,
    },
    /// A packet in a session.
    Data {
        /// Our index of the session.
        receiver: u32,
    },
}

/// Reads type, length and receiver of a datagram; `None` when it is no WireGuard message.
pub fn classify(datagram: &[u8]) -> Option<Message> {
    let word = |at: usize| {
        Some(u32::from_le_bytes(
            datagram.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    // The type and the three reserved zero bytes are one little-endian word.
    match (word(0)?, datagram.len()) {
        (1, 148) => Some(Message::Initiation),
        (2, 92) => Some(Message::Response { receiver: word(8)? }),
        (3, 64) => Some(Message::Cookie { receiver: word(4)? }),
        (4, 32..) => {
            let counter = u64::from_le_bytes(datagram.get(8..16)?.try_into().ok()?);
            (counter < REJECT_AFTER_MESSAGES).then_some(Message::Data { receiver: word(4)? })
        }
        _ => None,
    }
}

/// The peer part of an index: boringtun counts sessions in the low 8 bits.
pub fn peer_index(receiver: u32) -> u32 {
    receiver >> 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u32, len: usize, receiver_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[receiver_at..receiver_at + 4].copy_from_slice(&0x0012_3405_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn the_four_messages_are_known_by_type_and_length() {
        let receiver = 0x0012_3405;
        assert_eq!(classify(&message(1, 148, 8)), Some(Message::Initiation));
        assert_eq!(
            classify(&message(2, 92, 8)),
            Some(Message::Response { receiver })
        );
        assert_eq!(
            classify(&message(3, 64, 4)),
            Some(Message::Cookie { receiver })
        );
        assert_eq!(
            classify(&message(4, 32, 4)),
            Some(Message::Data { receiver })
        );
        assert_eq!(
            classify(&message(4, 1500, 4)),
            Some(Message::Data { receiver })
        );
        assert_eq!(peer_index(receiver), 0x1234);
        for (kind, len) in [
            (0, 148),
            (1, 147),
            (1, 149),
            (2, 91),
            (3, 65),
            (4, 31),
            (5, 148),
            (0x101, 148),
        ] {
            assert_eq!(
                classify(&message(kind, len, 8)),
                None,
                "type {kind}, {len} bytes"
            );
        }
        assert_eq!(classify(&[]), None);
    }

    #[test]
    fn counters_beyond_the_end_of_a_session_are_refused() {
        let with = |counter: u64| {
            let mut bytes = message(4, 32, 4);
            bytes[8..16].copy_from_slice(&counter.to_le_bytes());
            classify(&bytes)
        };
        assert!(with(0).is_some());
        assert!(with(REJECT_AFTER_MESSAGES - 1).is_some());
        assert!(with(REJECT_AFTER_MESSAGES).is_none());
        assert!(with(u64::MAX).is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_known_here_is_known_to_boringtun(
            kind in 0_u32..6, len in prop_oneof![Just(148), Just(92), Just(64), 0_usize..200], fill: u8,
        ) {
            let mut bytes = vec![fill; len];
            if let Some(head) = bytes.get_mut(..4) {
                head.copy_from_slice(&kind.to_le_bytes());
            }
            // 0xff everywhere is the one counter that is refused here alone.
            prop_assume!(fill != 0xff);
            let theirs = boringtun::noise::Tunn::parse_incoming_packet(&bytes).is_ok();
            prop_assert_eq!(classify(&bytes).is_some(), theirs);
        }
    }
}
