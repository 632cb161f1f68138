//! The body of every error answer of the broker. PURE.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `{code, message, hint, details}`; `code` is stable, the texts are for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What kind of failure.
    pub code: Code,
    /// What failed, and on what.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// More for programs: for `cidr-conflict`, `{"conflicts": [Conflict]}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub details: Option<serde_json::Value>,
}

impl Problem {
    /// A problem without hint or details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            details: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:literal,)*) => {
        /// The stable code of a problem, each with its HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "kebab-case")]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// The request's body, path or query is malformed.
    BadRequest = 400,
    /// No client certificate, or one of another authority.
    Unauthenticated = 401,
    /// The certificate has expired (renewal alone still takes it).
    CertificateExpired = 401,
    /// No token of this id was ever made here.
    TokenUnknown = 401,
    /// The token is past its time.
    TokenExpired = 401,
    /// The token was used by another key.
    TokenUsed = 401,
    /// An operator revoked the token.
    TokenRevoked = 401,
    /// The token is for another cluster or role than the request.
    TokenMismatch = 403,
    /// The enrolment credential is not the one that this cluster's nodes enrol with.
    CredentialUnknown = 401,
    /// The service account token proves nothing about a node of this cluster; `details.reason` says why.
    ServiceAccountRefused = 401,
    /// The join file belongs to another fleet.
    FleetMismatch = 403,
    /// The holder may not do this.
    Forbidden = 403,
    /// The holder's cluster or node is not (or no longer) a member.
    NotMember = 403,
    /// An operator revoked the holder's cluster.
    MemberRevoked = 403,
    /// There is no such thing.
    NotFound = 404,
    /// The connection or request took too long.
    Timeout = 408,
    /// CIDR blocks overlap: nothing was changed.
    CidrConflict = 409,
    /// The cluster is a member already.
    ClusterExists = 409,
    /// The public key belongs (or belonged) to another gateway.
    KeyTaken = 409,
    /// The name is in use.
    NameTaken = 409,
    /// Something still uses it.
    InUse = 409,
    /// The pool has no free block of that size.
    PoolExhausted = 409,
    /// The body is larger than allowed.
    TooLarge = 413,
    /// Possession of the private key was not shown, or the challenge is stale.
    ProofInvalid = 422,
    /// Too many requests or connections.
    Overloaded = 429,
    /// The broker failed; its log says why.
    Internal = 500,
    /// The store cannot be written: disk full, or corrupt.
    StoreUnavailable = 503,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        serde_json::to_value(self)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
            .fmt(f)
    }
}
