//! The echo between gateways, as it stands on the wire. PURE.
//!
//! UDP between inner addresses, port 583, so that it takes the tunnel as any packet does. A probe is answered
//! at once by a reply that repeats its sequence, its time and its length. All numbers are big-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `SBEC` |
//! | 4 | 1 | version, 2 |
//! | 5 | 1 | 1 probe, 2 reply |
//! | 6 | 2 | flags: bit 0 draining, bit 1 inward-dead; others are not looked at |
//! | 8 | 8 | sequence of the probe |
//! | 16 | 8 | when the probe was sent, by the prober's own clock; nobody else reads it |
//! | 24 | 4 | milliseconds since the sender last heard the receiver; all ones: never |
//! | 28 | 2 | length of the whole, [`LEN`] to [`MAX`] |
//! | 30 | 2 | zero |
//! | 32 | 8 | the revision that the sender acts on; 0 without a snapshot |
//! | 40 | 8 | [`digest`] of the clusters that the sender reaches |
//! | 48 | | zeros up to the length: padding, to try which packets are too big for the path |

use std::collections::BTreeSet;
use std::time::Duration;

use subsea_api::ClusterId;

/// The UDP port, on inner addresses only.
pub const PORT: u16 = crate::tunnel::ECHO_PORT;
/// The length of a packet without padding.
pub const LEN: usize = 48;
/// The longest packet, for links of 9,216 bytes.
pub const MAX: usize = 9_216;

const MAGIC: [u8; 4] = *b"SBEC";
const VERSION: u8 = 2;
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
    pub own: Own,
    /// The number of the probe.
    pub sequence: u64,
    /// When the probe was sent, in microseconds of the prober's own clock.
    pub sent: u64,
    /// How long ago the sender last heard the receiver.
    pub heard: Option<Duration>,
    /// The length in bytes, padding included: [`LEN`] to [`MAX`].
    pub length: u16,
}

/// Question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To be answered at once.
    Probe,
    /// The answer.
    Reply,
}

/// What a gateway says of itself in every packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// Whether others should use it.
    pub flags: Flags,
    /// The revision that it acts on; 0 without a snapshot.
    pub revision: u64,
    /// [`digest`] of the clusters that it reaches.
    pub reached: u64,
}

/// Whether a gateway wants to be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// It is about to stop: send new flows elsewhere.
    pub draining: bool,
    /// It does not reach its own cluster.
    pub inward_dead: bool,
}

/// The bytes are no echo packet of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an echo packet of version 2")]
pub struct Malformed;

/// A number for a set of clusters: alike for the same set, and very likely another one for another set (FNV-1a, 64
/// bits, over the names in order, each ended by a zero byte).
pub fn digest(clusters: &BTreeSet<ClusterId>) -> u64 {
    let bytes = clusters
        .iter()
        .flat_map(|id| id.as_str().bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A length as it stands in a packet; what is out of bounds is brought into them.
pub fn length(bytes: u32) -> u16 {
    let bytes = usize::try_from(bytes).unwrap_or(MAX).clamp(LEN, MAX);
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

impl Echo {
    /// The packet's bytes: as many as [`Self::length`] says, within [`LEN`] and [`MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        if self.own.flags.draining {
            flags |= DRAINING;
        }
        if self.own.flags.inward_dead {
            flags |= INWARD_DEAD;
        }
        let heard = self.heard.map_or(NEVER, |age| {
            u32::try_from(age.as_millis())
                .unwrap_or(NEVER)
                .min(NEVER - 1)
        });
        let length = length(self.length.into());
        let mut bytes = Vec::with_capacity(length.into());
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.push(match self.kind {
            Kind::Probe => PROBE,
            Kind::Reply => REPLY,
        });
        bytes.extend(u16::to_be_bytes(flags));
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.sent.to_be_bytes());
        bytes.extend(heard.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.own.revision.to_be_bytes());
        bytes.extend(self.own.reached.to_be_bytes());
        bytes.resize(length.into(), 0);
        bytes
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`Malformed`] for another magic, version, kind, a length that is not that of the bytes or out of bounds, or a
    /// byte that must be zero and is not.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (head, padding) = bytes.split_first_chunk::<LEN>().ok_or(Malformed)?;
        if head[0..4] != MAGIC || head[4] != VERSION || head[30..32] != [0; 2] {
            return Err(Malformed);
        }
        let length = u16::from_be_bytes([head[28], head[29]]);
        if usize::from(length) != bytes.len() || bytes.len() > MAX {
            return Err(Malformed);
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(Malformed);
        }
        let kind = match head[5] {
            PROBE => Kind::Probe,
            REPLY => Kind::Reply,
            _ => return Err(Malformed),
        };
        let flags = u16::from_be_bytes([head[6], head[7]]);
        let heard = u32::from_be_bytes([head[24], head[25], head[26], head[27]]);
        Ok(Self {
            kind,
            own: Own {
                flags: Flags {
                    draining: flags & DRAINING != 0,
                    inward_dead: flags & INWARD_DEAD != 0,
                },
                revision: u64_at(head, 32),
                reached: u64_at(head, 40),
            },
            sequence: u64_at(head, 8),
            sent: u64_at(head, 16),
            heard: (heard != NEVER).then(|| Duration::from_millis(heard.into())),
            length,
        })
    }

    /// Whether it is longer than it must be.
    pub fn is_padded(&self) -> bool {
        usize::from(self.length) > LEN
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
            own: Own {
                flags: Flags {
                    draining: true,
                    inward_dead: false,
                },
                revision: 7,
                reached: 0x1122_3344_5566_7788,
            },
            sequence: 0x0102_0304_0506_0708,
            sent: 9,
            heard: Some(Duration::from_millis(250)),
            length: 50,
        }
    }

    #[test]
    fn the_bytes_are_fixed() {
        let bytes = [
            &b"SBEC\x02\x01\x00\x01"[..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 0, 0, 0, 0, 9],
            &[0, 0, 0, 250, 0, 50, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 7],
            &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88],
            &[0, 0],
        ];
        assert_eq!(example().encode(), bytes.concat());
    }

    #[test]
    fn other_packets_are_refused() {
        let good = example().encode();
        for (at, value) in [
            (0, b'X'),
            (4, 1),
            (4, 3),
            (5, 0),
            (5, 3),
            (29, 49),
            (29, 51),
            (30, 1),
            (31, 1),
            (48, 1),
            (49, 1),
        ] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Echo::decode(&bad), Err(Malformed), "byte {at} = {value}");
        }
        assert_eq!(Echo::decode(&good[..good.len() - 1]), Err(Malformed));
        assert_eq!(Echo::decode(&[&good[..], &[0]].concat()), Err(Malformed));
        assert_eq!(Echo::decode(&[]), Err(Malformed));
        let mut long = good;
        long.resize(MAX + 1, 0);
        long[28..30].copy_from_slice(&u16::try_from(MAX + 1).unwrap().to_be_bytes());
        assert_eq!(Echo::decode(&long), Err(Malformed));
    }

    #[test]
    fn an_age_beyond_the_field_is_not_never() {
        let old = Echo {
            heard: Some(Duration::from_secs(u64::MAX)),
            ..example()
        };
        assert!(Echo::decode(&old.encode()).unwrap().heard.is_some());
    }

    #[test]
    fn a_digest_tells_sets_apart() {
        let set = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect();
        assert_eq!(digest(&set(&["a", "b"])), digest(&set(&["b", "a"])));
        let all = [&[][..], &["a"], &["ab"], &["a", "b"], &["b"]];
        let digests: BTreeSet<u64> = all.iter().map(|ids| digest(&set(ids))).collect();
        assert_eq!(digests.len(), all.len());
    }

    proptest! {
        #[test]
        fn a_packet_survives_its_bytes(
            probe: bool, draining: bool, inward_dead: bool, sequence: u64, sent: u64, reached: u64,
            heard in proptest::option::of(0_u64..u64::from(NEVER)), revision: u64, length in 48_u16..=9_216,
        ) {
            let echo = Echo {
                kind: if probe { Kind::Probe } else { Kind::Reply },
                own: Own { flags: Flags { draining, inward_dead }, revision, reached },
                sequence,
                sent,
                heard: heard.map(Duration::from_millis),
                length,
            };
            let bytes = echo.encode();
            prop_assert_eq!(bytes.len(), usize::from(length));
            prop_assert_eq!(Echo::decode(&bytes), Ok(echo));
        }

        /// What is read is what would be written: no two packets mean the same, but for flags of later versions.
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64), like_ours: bool, kind in 0_u8..4, flags in 0_u8..4,
        ) {
            if like_ours && bytes.len() >= LEN {
                bytes[..8].copy_from_slice(&[b'S', b'B', b'E', b'C', 2, kind, 0, flags]);
                let length = u16::try_from(bytes.len()).unwrap();
                bytes[28..30].copy_from_slice(&length.to_be_bytes());
                bytes[30..32].fill(0);
                bytes[LEN..].fill(0);
            }
            if let Ok(echo) = Echo::decode(&bytes) {
                if like_ours {
                    prop_assert_eq!(echo.encode(), bytes);
                }
            } else {
                prop_assert!(!like_ours || bytes.len() < LEN || kind == 0 || kind == 3);
            }
        }
    }
}
