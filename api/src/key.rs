//! WireGuard public keys. PURE.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A Curve25519 public key, shown as base64 as `wg` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// Why a public key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes of standard base64.
    #[error("a WireGuard public key is 44 characters of base64, as `wg pubkey` prints it")]
    Encoding,
    /// A point of low order: every private key gives the same shared secret with it.
    #[error("the public key is a point of low order, which gives no secrecy: make a new key pair")]
    LowOrder,
}

impl PublicKey {
    /// Takes the 32 bytes of a key.
    ///
    /// # Errors
    /// [`KeyError::LowOrder`] for the points of small order (RFC 7748, section 6.1, and their
    /// non-canonical encodings).
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        // The top bit is ignored by X25519, so it must not hide a low-order point.
        let mut masked = bytes;
        masked[31] &= 0x7f;
        if LOW_ORDER.contains(&masked) {
            Err(KeyError::LowOrder)
        } else {
            Ok(Self(bytes))
        }
    }

    /// The key's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Encoding)?;
        Self::from_bytes(bytes.try_into().map_err(|_| KeyError::Encoding)?)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const fn edge(first: u8, last: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

const fn small(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = first;
    bytes
}

/// The encodings of the points of order 1, 2, 4 and 8 on Curve25519 and its twist, top bit clear.
const LOW_ORDER: [[u8; 32]; 7] = [
    small(0),
    small(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    edge(0xec, 0x7f),
    edge(0xed, 0x7f),
    edge(0xee, 0x7f),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form() {
        let key = PublicKey::from_bytes([7; 32]).unwrap();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        assert_eq!(key.to_string().len(), 44);
    }

    #[test]
    fn low_order_points_are_refused_also_with_the_top_bit_set() {
        for mut point in LOW_ORDER {
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder));
            point[31] |= 0x80;
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder));
        }
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for bad in [
            "",
            "abc",
            "AAAA",
            &"A".repeat(45),
            "not base64 at all, but forty-four characters",
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::Encoding), "{bad}");
        }
    }
}
