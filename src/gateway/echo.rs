//! The echo between gateways, as it stands on the wire. PURE.
//!
//! UDP between inner addresses, port 583, so that it takes the tunnel as any packet does. A probe is answered
//! at once by a reply that repeats its sequence and time. All numbers are big-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `SBEC` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | 1 probe, 2 reply |
//! | 6 | 2 | flags: bit 0 draining, bit 1 inward-dead; others are not looked at |
//! | 8 | 8 | sequence of the probe |
//! | 16 | 8 | when the probe was sent, by the prober's own clock; nobody else reads it |
//! | 24 | 4 | milliseconds since the sender last heard the receiver; all ones: never |
//! | 28 | 4 | zero |
//! | 32 | 8 | the revision that the sender acts on; 0 without a snapshot |

use std::time::Duration;

/// The UDP port, on inner addresses only.
pub const PORT: u16 = crate::tunnel::ECHO_PORT;
/// The length of a packet.
pub const LEN: usize = 40;

const MAGIC: [u8; 4] = *b"SBEC";
const VERSION: u8 = 1;
const PROBE: u8 = 1;
const REPLY: u8 = 2;
const DRAINING: u16 = 1;
const INWARD_DEAD: u16 = 2;
const NEVER: u32 = u32::MAX;

/// One echo packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Question or answer.
    pub kind: Kind,
    /// What the sender says of itself.
    pub flags: Flags,
    /// The number of the probe.
    pub sequence: u64,
    /// When the probe was sent, by the prober's own clock.
    pub sent: u64,
    /// How long ago the sender last heard the receiver.
    pub heard: Option<Duration>,
    /// The revision that the sender acts on.
    pub revision: u64,
}

/// Question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To be answered at once.
    Probe,
    /// The answer.
    Reply,
}

/// What a gateway says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// It is about to stop: send new flows elsewhere.
    pub draining: bool,
    /// It does not reach its own cluster.
    pub inward_dead: bool,
}

/// The bytes are no echo packet of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an echo packet of version 1")]
pub struct Malformed;

impl Echo {
    /// The packet's bytes.
    pub fn encode(&self) -> [u8; LEN] {
        let mut flags = 0;
        if self.flags.draining {
            flags |= DRAINING;
        }
        if self.flags.inward_dead {
            flags |= INWARD_DEAD;
        }
        let heard = self.heard.map_or(NEVER, |age| {
            u32::try_from(age.as_millis())
                .unwrap_or(NEVER)
                .min(NEVER - 1)
        });
        let mut bytes = [0; LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = match self.kind {
            Kind::Probe => PROBE,
            Kind::Reply => REPLY,
        };
        bytes[6..8].copy_from_slice(&u16::to_be_bytes(flags));
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.sent.to_be_bytes());
        bytes[24..28].copy_from_slice(&heard.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.revision.to_be_bytes());
        bytes
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`Malformed`] for another length, magic, version, kind, or a field that must be zero and is not.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| Malformed)?;
        if bytes[0..4] != MAGIC || bytes[4] != VERSION || bytes[28..32] != [0; 4] {
            return Err(Malformed);
        }
        let kind = match bytes[5] {
            PROBE => Kind::Probe,
            REPLY => Kind::Reply,
            _ => return Err(Malformed),
        };
        let flags = u16::from_be_bytes([bytes[6], bytes[7]]);
        let heard = u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
        Ok(Self {
            kind,
            flags: Flags {
                draining: flags & DRAINING != 0,
                inward_dead: flags & INWARD_DEAD != 0,
            },
            sequence: u64_at(bytes, 8),
            sent: u64_at(bytes, 16),
            heard: (heard != NEVER).then(|| Duration::from_millis(heard.into())),
            revision: u64_at(bytes, 32),
        })
    }
}

/// The number at `offset`; every caller's offset lies inside the packet.
fn u64_at(bytes: &[u8; LEN], offset: usize) -> u64 {
    bytes
        .iter()
        .skip(offset)
        .take(8)
        .fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Echo {
        Echo {
            kind: Kind::Probe,
            flags: Flags {
                draining: true,
                inward_dead: false,
            },
            sequence: 0x0102_0304_0506_0708,
            sent: 9,
            heard: Some(Duration::from_millis(250)),
            revision: 7,
        }
    }

    #[test]
    fn the_bytes_are_fixed() {
        let bytes = [
            &b"SBEC\x01\x01\x00\x01"[..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 250, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 7],
        ];
        assert_eq!(example().encode()[..], bytes.concat());
    }

    #[test]
    fn other_packets_are_refused() {
        let good = example().encode();
        for (at, value) in [(0, b'X'), (4, 2), (5, 0), (5, 3), (28, 1), (31, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Echo::decode(&bad), Err(Malformed), "byte {at} = {value}");
        }
        assert_eq!(Echo::decode(&good[..LEN - 1]), Err(Malformed));
        assert_eq!(Echo::decode(&[&good[..], &[0]].concat()), Err(Malformed));
        assert_eq!(Echo::decode(&[]), Err(Malformed));
    }

    #[test]
    fn an_age_beyond_the_field_is_not_never() {
        let old = Echo {
            heard: Some(Duration::from_secs(u64::MAX)),
            ..example()
        };
        assert!(Echo::decode(&old.encode()).unwrap().heard.is_some());
    }

    proptest! {
        #[test]
        fn a_packet_survives_its_bytes(
            probe: bool, draining: bool, inward_dead: bool, sequence: u64, sent: u64,
            heard in proptest::option::of(0_u64..u64::from(NEVER)), revision: u64,
        ) {
            let echo = Echo {
                kind: if probe { Kind::Probe } else { Kind::Reply },
                flags: Flags { draining, inward_dead },
                sequence,
                sent,
                heard: heard.map(Duration::from_millis),
                revision,
            };
            prop_assert_eq!(Echo::decode(&echo.encode()), Ok(echo));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Echo::decode(&bytes);
        }
    }
}
