//! One-time join tokens, as a type that cannot be printed by accident. PURE.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A join token: a public id by which it is listed and revoked, and 256 secret bits. Its text form is
/// `<id>.<secret>`, 8 hexadecimal digits and 43 characters of base64url.
///
/// Serialisation gives the whole secret, because that is how it travels in the join file and the
/// join request. `Debug` shows the id only, and there is no `Display`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Token {
    id: u32,
    secret: [u8; 32],
}

/// The text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is not well formed: was the join file cut or edited? Create a new one with `subsea-broker token create`"
)]
pub struct TokenError;

impl Token {
    /// Makes a token of its parts; both must come from a secure random source.
    pub fn from_parts(id: u32, secret: [u8; 32]) -> Self {
        Self { id, secret }
    }

    /// The public half, as `token list` shows it: 8 hexadecimal digits.
    pub fn id(&self) -> String {
        format!("{:08x}", self.id)
    }

    /// The secret half. Only its SHA-256 is ever stored.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text form, with the secret in it.
    pub fn expose(&self) -> String {
        format!("{:08x}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (id, secret) = text.split_once('.').ok_or(TokenError)?;
        if id.len() != 8 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(TokenError);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| TokenError)?;
        let token = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| TokenError)
            .and_then(|secret| {
                Ok(Self {
                    id: u32::from_str_radix(id, 16).map_err(|_| TokenError)?,
                    secret,
                })
            });
        bytes.zeroize();
        token
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:08x}, secret redacted)", self.id)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(self.expose()))
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?)
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form_and_hides_in_debug() {
        let token = Token::from_parts(0x00ab_cdef, [9; 32]);
        let text = token.expose();
        let again: Token = text.parse().unwrap();
        assert_eq!(again.secret(), token.secret());
        assert_eq!(again.id(), "00abcdef");
        assert!(!format!("{token:?}").contains(&text[9..]));
    }

    #[test]
    fn cut_or_edited_tokens_are_refused() {
        let text = Token::from_parts(1, [9; 32]).expose();
        for bad in [
            &text[..text.len() - 1],
            &text[1..],
            "",
            ".",
            "00000001.",
            "0000000g.AAAA",
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
