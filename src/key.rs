//! WireGuard private keys, as a type that cannot be printed by accident. PURE.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use subsea_api::PublicKey;
use subsea_api::key::KeyError;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// A Curve25519 private key. No `Display`, redacted in `Debug`, zeroed on drop; it never leaves the node.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// Makes a key of 32 bytes from a secure random source.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// Reads the base64 form of a key file, surrounding white space allowed.
    ///
    /// # Errors
    /// [`KeyError::Encoding`] when it is not 32 bytes of base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = Zeroizing::new(
            STANDARD
                .decode(text.trim())
                .map_err(|_| KeyError::Encoding)?,
        );
        let bytes: [u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| KeyError::Encoding)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The base64 form, for the key file alone.
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }

    /// The public key.
    ///
    /// # Errors
    /// [`KeyError::LowOrder`] cannot happen for a clamped scalar; it is passed on rather than assumed.
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        PublicKey::from_bytes(*x25519_dalek::PublicKey::from(&self.0).as_bytes())
    }

    /// The key for boringtun's `Tunn`.
    pub fn secret(&self) -> &StaticSecret {
        &self.0
    }

    /// Shows possession to a broker: HMAC-SHA-256 of `message` under the shared secret with `broker_key`, base64
    /// (`docs/security.md`, possession of keys).
    pub fn prove(&self, broker_key: &PublicKey, message: &[u8]) -> String {
        let shared = self
            .0
            .diffie_hellman(&x25519_dalek::PublicKey::from(*broker_key.as_bytes()));
        let key = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
        STANDARD.encode(hmac::sign(&key, message))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_hides_in_debug() {
        let key = PrivateKey::from_bytes([3; 32]);
        let again = PrivateKey::from_base64(&format!("{}\n", *key.expose_base64())).unwrap();
        assert_eq!(key.public_key().unwrap(), again.public_key().unwrap());
        assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
    }
}
