//! Whether a service account token proves what it says. PURE: the time is an argument.
//!
//! The key decides by what it is checked: the header's algorithm must be the key's, so that `none`, or an HMAC with a
//! public key as its secret, never comes to a check. Claims are believed after the signature, not before.

use jsonwebtoken::DecodingKey;
use subsea_api::enrolment::ServiceAccounts;
use subsea_api::jwks::{Algorithm, Jwk, Numbers};
use subsea_api::service_account::{AUDIENCE, Account};
use subsea_api::{NodeName, ServiceAccountToken, UnixMillis};

/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 60;

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Whose it is.
    pub account: Account,
    /// The node of the pod that it is bound to.
    pub node: Option<NodeName>,
}

/// Why a token proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be read.
    #[error("it cannot be read")]
    Malformed,
    /// None of the cluster's keys has the name in its header.
    #[error("it is signed with a key that is not known of this cluster")]
    UnknownKey,
    /// Its header names another algorithm than its key is for.
    #[error("its header names another algorithm than its key is for")]
    Algorithm,
    /// The signature is not one of its key.
    #[error("its signature is not one of this cluster's API server")]
    Signature,
    /// Another issuer.
    #[error("its issuer is not this cluster's")]
    Issuer,
    /// Not meant for us.
    #[error("its audience is not `{AUDIENCE}`")]
    Audience,
    /// Too late.
    #[error("it has expired")]
    Expired,
    /// Too early.
    #[error("it is not valid yet")]
    NotYet,
    /// Of an account that may not do this.
    #[error("it is of another service account or namespace than this needs")]
    Account,
    /// It is bound to no node.
    #[error("it names no node")]
    Node,
    /// The cluster has no service accounts that the broker knows.
    #[error("the cluster's nodes do not enrol by service accounts")]
    NotAdmitted,
}

impl Refused {
    /// A stable word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown-key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYet => "not-yet",
            Self::Account => "account",
            Self::Node => "node",
            Self::NotAdmitted => "not-admitted",
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::UnknownKey | Self::Signature | Self::Issuer => {
                "when the cluster's API server has new signing keys, or another issuer: run `subsea join --context` again with a new join file"
            }
            Self::Expired | Self::NotYet => {
                "are the clocks of the node, the API server and the broker right?"
            }
            Self::Malformed | Self::Algorithm | Self::Audience => {
                "send a projected service account token, audience `subsea-broker`, signed by RS256 or ES256"
            }
            Self::Account => {
                "nodes enrol as `subsea-gateway` or `subsea-agent`, clusters are admitted by `subsea-operator` or `subsea-admission` and withdrawn by `subsea-operator`, all in the namespace that the cluster was joined with"
            }
            Self::Node => {
                "the token must be bound to a pod, and Kubernetes be of version 1.32 or later, which names the pod's node in it"
            }
            Self::NotAdmitted => {
                "it joined with a state directory: let it leave from there, by `subsea leave`"
            }
        }
    }
}

/// Checks a token against what is known of its cluster.
///
/// # Errors
/// [`Refused`].
pub fn verify(
    token: &ServiceAccountToken,
    known: &ServiceAccounts,
    now: UnixMillis,
) -> Result<Proven, Refused> {
    let header = token.header().map_err(|_| Refused::Malformed)?;
    let key = known.keys.find(&header.kid).ok_or(Refused::UnknownKey)?;
    if header.alg != key.algorithm().as_str() {
        return Err(Refused::Algorithm);
    }
    if !is_signed(token, key) {
        return Err(Refused::Signature);
    }
    let claims = token.claims().map_err(|_| Refused::Malformed)?;
    if claims.iss != known.issuer {
        return Err(Refused::Issuer);
    }
    if !claims.aud.contains(AUDIENCE) {
        return Err(Refused::Audience);
    }
    let now = now.0 / 1000;
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err(Refused::Expired);
    }
    if claims
        .nbf
        .is_some_and(|from| from > now.saturating_add(LEEWAY))
    {
        return Err(Refused::NotYet);
    }
    let account = claims.account(&known.namespace).ok_or(Refused::Account)?;
    Ok(Proven {
        account,
        node: claims.node().cloned(),
    })
}

fn is_signed(token: &ServiceAccountToken, key: &Jwk) -> bool {
    let decoding = match key.numbers() {
        Numbers::Rsa { n, e } => DecodingKey::from_rsa_components(n, e),
        Numbers::Ec { x, y, .. } => DecodingKey::from_ec_components(x, y),
    };
    let algorithm = match key.algorithm() {
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
    };
    let (signed, signature) = token.signed();
    decoding.is_ok_and(|key| {
        jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key, algorithm).unwrap_or(false)
    })
}

#[cfg(test)]
#[path = "../../tests/signer/mod.rs"]
pub(crate) mod signer;
#[cfg(test)]
mod tests;
