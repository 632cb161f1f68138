//! Echo between agents is authentic: a tag of HMAC-SHA-256 (RFC 2104), under keys that both ends of a TLS session derive
//! from it (RFC 8446, section 7.5). PURE.

use std::fmt;

use ring::hmac;

/// The length of a tag: half of the hash, as RFC 2104, section 5 allows.
pub const TAG: usize = 16;
/// The length of what a session exports: a key for each direction.
pub const MATERIAL: usize = 64;
/// What a session exports it for (RFC 5705).
pub const LABEL: &[u8] = b"EXPERIMENTAL subsea node echo 1";

/// The keys of one session, as one of its ends uses them.
#[derive(Clone)]
pub struct Seal {
    ours: hmac::Key,
    theirs: hmac::Key,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(redacted)")
    }
}

/// Which end of the session we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Server,
}

impl Seal {
    /// Splits what a session exported.
    pub fn new(material: &[u8; MATERIAL], end: End) -> Self {
        let (client, server) = material.split_at(MATERIAL / 2);
        let key = |bytes| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let (ours, theirs) = match end {
            End::Client => (client, server),
            End::Server => (server, client),
        };
        Self {
            ours: key(ours),
            theirs: key(theirs),
        }
    }

    /// `packet` with our tag behind it.
    pub fn close(&self, packet: &[u8]) -> Vec<u8> {
        let tag = hmac::sign(&self.ours, packet);
        [packet, tag.as_ref().get(..TAG).unwrap_or_default()].concat()
    }

    /// What the other end closed; none when it did not.
    pub fn open<'p>(&self, sealed: &'p [u8]) -> Option<&'p [u8]> {
        let (packet, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG)?)?;
        let right = hmac::sign(&self.theirs, packet);
        let right = right.as_ref().get(..TAG)?;
        // In constant time: nobody shall find a tag byte by byte.
        let same: bool = subtle::ConstantTimeEq::ct_eq(right, tag).into();
        same.then_some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Seal, Seal) {
        let mut material = [7; MATERIAL];
        material[MATERIAL / 2..].fill(8);
        (
            Seal::new(&material, End::Client),
            Seal::new(&material, End::Server),
        )
    }

    #[test]
    fn each_end_opens_what_the_other_closed_and_nothing_else() {
        let (client, server) = both();
        let sealed = client.close(b"hello");
        assert_eq!(sealed.len(), 5 + TAG);
        assert_eq!(server.open(&sealed), Some(&b"hello"[..]));
        assert_eq!(client.open(&server.close(b"x")), Some(&b"x"[..]));
        assert_eq!(client.open(&sealed), None, "our own word sent back");
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(server.open(&bad), None, "byte {at}");
        }
        for len in 0..TAG {
            assert_eq!(server.open(&sealed[..len]), None);
        }
        assert_eq!(format!("{client:?}"), "Seal(redacted)");
    }
}
