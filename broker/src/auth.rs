//! Who may do what: token hashes, certificate holders and proofs of possession. PURE.

pub mod service_account;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use subsea_api::member::proof_message;
use subsea_api::{ClusterId, FleetName, NodeName, PublicKey, Role, Token, UnixMillis};
use subtle::ConstantTimeEq as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// SHA-256 of something public, in hexadecimal: of a certificate's public key, or of a certificate request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(digest::digest(&digest::SHA256, bytes).as_ref()))
    }

    /// Its hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a token's secret: all that is stored of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(String);

impl TokenHash {
    /// The hash of the token's secret.
    pub fn of(token: &Token) -> Self {
        Self(hex(digest::digest(&digest::SHA256, token.secret()).as_ref()))
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// What a burnt token remembers of the credential that came with it: no hash of the secret itself.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(redacted)")
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A node of a member.
    Node {
        /// Its cluster.
        cluster: ClusterId,
        /// What it may do.
        role: Role,
        /// Its name.
        node: NodeName,
    },
    /// An operator.
    Admin(NodeName),
}

impl Holder {
    /// The SPIFFE id of this holder in `fleet`.
    pub fn uri(&self, fleet: &FleetName) -> String {
        format!("spiffe://{fleet}/{self}")
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node {
                cluster,
                role,
                node,
            } => write!(f, "cluster/{cluster}/{role}/{node}"),
            Self::Admin(name) => write!(f, "admin/{name}"),
        }
    }
}

/// A client certificate, as far as the broker looks at it. Its chain was checked by the TLS layer.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// The fleet it names.
    pub fleet: FleetName,
    /// Whom it names.
    pub holder: Holder,
    /// Of its public key.
    pub key: Fingerprint,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: UnixMillis,
}

impl ClientCertificate {
    /// Reads a DER certificate; `None` when it names no holder of ours.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let names = cert.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| {
            let GeneralName::URI(uri) = name else {
                return None;
            };
            Some(*uri)
        });
        let (fleet, holder) = parse_uri(uris.next()?)?;
        // Two names would make it a matter of taste whom the certificate names.
        if uris.next().is_some() {
            return None;
        }
        let seconds = u64::try_from(cert.validity().not_after.timestamp()).ok()?;
        Some(Self {
            fleet,
            holder,
            key: Fingerprint::of(cert.public_key().raw),
            serial: hex(cert.raw_serial()),
            not_after: UnixMillis(seconds.saturating_mul(1000)),
        })
    }
}

/// Reads `spiffe://<fleet>/cluster/<id>/<role>/<node>` or `spiffe://<fleet>/admin/<name>`.
fn parse_uri(uri: &str) -> Option<(FleetName, Holder)> {
    let (fleet, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    let parts: Vec<&str> = path.split('/').collect();
    let holder = match parts.as_slice() {
        ["cluster", cluster, role, node] => Holder::Node {
            cluster: cluster.parse().ok()?,
            role: Role::from_str(role).ok().filter(|r| *r != Role::Admin)?,
            node: node.parse().ok()?,
        },
        ["admin", name] => Holder::Admin(name.parse().ok()?),
        _ => return None,
    };
    Some((fleet.parse().ok()?, holder))
}

/// How long a challenge can be answered, in milliseconds.
const CHALLENGE_LIFE: u64 = 60_000;

/// Makes and checks challenges without remembering them: the nonce is authenticated, names its holder and
/// its time, and dies with the process.
pub struct Challenger {
    nonce_key: hmac::Key,
    secret: x25519_dalek::StaticSecret,
}

impl fmt::Debug for Challenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenger(redacted)")
    }
}

impl Challenger {
    /// Takes the secrets of one process, from a secure random source.
    pub fn new(nonce_key: &[u8; 32], secret: [u8; 32]) -> Self {
        Self {
            nonce_key: hmac::Key::new(hmac::HMAC_SHA256, nonce_key),
            secret: x25519_dalek::StaticSecret::from(secret),
        }
    }

    /// The public key that proofs are made with.
    pub fn public_key(&self) -> Option<PublicKey> {
        PublicKey::from_bytes(*x25519_dalek::PublicKey::from(&self.secret).as_bytes()).ok()
    }

    /// A nonce for `holder`; `salt` from a secure random source.
    pub fn nonce(&self, holder: &Holder, salt: [u8; 16], now: UnixMillis) -> String {
        let mut bytes = now.0.to_be_bytes().to_vec();
        bytes.extend_from_slice(&salt);
        let tag = hmac::sign(&self.nonce_key, &Self::nonce_text(&bytes, holder));
        bytes.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn nonce_text(head: &[u8], holder: &Holder) -> Vec<u8> {
        [head, holder.to_string().as_bytes()].concat()
    }

    /// Whether `nonce` was given to `holder` less than a minute ago.
    pub fn is_fresh(&self, nonce: &str, holder: &Holder, now: UnixMillis) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(nonce) else {
            return false;
        };
        let Some((head, tag)) = bytes.split_at_checked(24) else {
            return false;
        };
        let Ok(at) = <[u8; 8]>::try_from(&head[..8]) else {
            return false;
        };
        let at = u64::from_be_bytes(at);
        hmac::verify(&self.nonce_key, &Self::nonce_text(head, holder), tag).is_ok()
            && at <= now.0
            && now.0 - at <= CHALLENGE_LIFE
    }

    /// Whether `proof` shows that its maker holds the private key of `key`. Constant time.
    pub fn is_proof(
        &self,
        fleet: &FleetName,
        cluster: &ClusterId,
        node: &NodeName,
        key: &PublicKey,
        nonce: &str,
        proof: &str,
    ) -> bool {
        let Ok(tag) = STANDARD.decode(proof) else {
            return false;
        };
        let shared = self
            .secret
            .diffie_hellman(&x25519_dalek::PublicKey::from(*key.as_bytes()));
        if !shared.was_contributory() {
            return false;
        }
        let mac = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
        hmac::verify(&mac, &proof_message(fleet, cluster, node, key, nonce), &tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(node: &str) -> Holder {
        Holder::Node {
            cluster: "east".parse().unwrap(),
            role: Role::Member,
            node: node.parse().unwrap(),
        }
    }

    #[test]
    fn a_holder_survives_its_uri() {
        let fleet: FleetName = "f1".parse().unwrap();
        for h in [
            holder("gw-1.example"),
            Holder::Admin("admin".parse().unwrap()),
        ] {
            assert_eq!(parse_uri(&h.uri(&fleet)), Some((fleet.clone(), h)));
        }
    }

    #[test]
    fn uris_that_name_nobody_are_refused() {
        for bad in [
            "https://f1/cluster/east/member/gw",
            "spiffe://f1/cluster/east/admin/gw",
            "spiffe://f1/cluster/east/member",
            "spiffe://f1/cluster/east/member/gw/x",
            "spiffe://f1/cluster/East/member/gw",
            "spiffe:///admin/a",
            "spiffe://f1/admin/",
        ] {
            assert_eq!(parse_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_nonce_is_for_one_holder_and_one_minute() {
        let challenger = Challenger::new(&[1; 32], [2; 32]);
        let given = challenger.nonce(&holder("a"), [3; 16], UnixMillis(1_000_000));
        let fresh = |h: &str, at| challenger.is_fresh(&given, &holder(h), UnixMillis(at));
        assert!(fresh("a", 1_000_000) && fresh("a", 1_060_000));
        assert!(!fresh("b", 1_000_000), "of another holder");
        assert!(!fresh("a", 1_060_001), "too old");
        assert!(!fresh("a", 999_999), "from the future");
        assert!(!challenger.is_fresh("", &holder("a"), UnixMillis(0)));
        let other = Challenger::new(&[9; 32], [2; 32]);
        assert!(!other.is_fresh(&given, &holder("a"), UnixMillis(1_000_000)));
    }

    #[test]
    fn a_proof_needs_the_private_key_and_fits_one_text() {
        let challenger = Challenger::new(&[1; 32], [2; 32]);
        let (fleet, cluster, node) = (
            "f1".parse().unwrap(),
            "east".parse().unwrap(),
            "a".parse().unwrap(),
        );
        let secret = x25519_dalek::StaticSecret::from([7; 32]);
        let public = x25519_dalek::PublicKey::from(&secret);
        let key = PublicKey::from_bytes(*public.as_bytes()).unwrap();
        let broker = x25519_dalek::PublicKey::from(*challenger.public_key().unwrap().as_bytes());
        let mac = hmac::Key::new(hmac::HMAC_SHA256, secret.diffie_hellman(&broker).as_bytes());
        let proof = STANDARD.encode(hmac::sign(
            &mac,
            &proof_message(&fleet, &cluster, &node, &key, "n"),
        ));
        let check = |nonce: &str, proof: &str| {
            challenger.is_proof(&fleet, &cluster, &node, &key, nonce, proof)
        };
        assert!(check("n", &proof));
        assert!(!check("m", &proof));
        assert!(!check("n", "AAAA") && !check("n", "*"));
    }

    #[test]
    fn token_hashes_match_by_secret_and_hide() {
        let a = TokenHash::of(&Token::from_parts(1, [1; 32]));
        assert!(a.matches(&TokenHash::of(&Token::from_parts(2, [1; 32]))));
        assert!(!a.matches(&TokenHash::of(&Token::from_parts(1, [2; 32]))));
        assert_eq!(format!("{a:?}"), "TokenHash(redacted)");
    }
}
