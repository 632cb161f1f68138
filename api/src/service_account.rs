//! Service account tokens of Kubernetes, as a type that cannot be printed by accident, and what they claim. PURE.
//!
//! Nothing here checks a signature: the broker does, and only then believes the claims.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::{Issuer, Namespace, NodeName, Role};

/// For whom the tokens are meant.
pub const AUDIENCE: &str = "subsea-broker";

/// Subsea's service accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// Of the gateways.
    Gateway,
    /// Of the agents.
    Agent,
    /// For operators: to have a cluster admitted, and to withdraw it. It has no rights in its own cluster.
    Operator,
    /// Of the Job that has a cluster admitted from within.
    Admission,
}

impl Account {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "subsea-gateway",
            Self::Agent => "subsea-agent",
            Self::Operator => "subsea-operator",
            Self::Admission => "subsea-admission",
        }
    }

    /// What a node with its token enrols as.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::Gateway => Some(Role::Gateway),
            Self::Agent => Some(Role::Agent),
            Self::Operator | Self::Admission => None,
        }
    }
}

/// The longest token, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
/// The longest header, decoded.
const MAX_HEADER: usize = 2 * 1024;

/// A signed token (JWT) of a service account.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ServiceAccountToken(String);

/// The text is no service account token. The message never repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAccountTokenError {
    /// Not three parts of base64url, or too long.
    #[error("the service account token is not well formed: it is no JWT of at most 16 KiB")]
    Shape,
    /// Its header cannot be read.
    #[error("the header of the service account token cannot be read")]
    Header,
    /// Its claims cannot be read.
    #[error("the claims of the service account token cannot be read")]
    Claims,
}

/// What the header says; to be believed only as far as it agrees with the key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// The algorithm that it says it is signed by.
    pub alg: String,
    /// The key that it says it is signed with.
    pub kid: String,
    /// Extensions that must be understood: we understand none.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

/// That a field is there, whatever is in it.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// What the token claims.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    /// Who made it.
    pub iss: Issuer,
    /// Whose it is: `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// For whom it is meant.
    pub aud: Audience,
    /// Until when it can be used, in seconds since the Unix epoch.
    pub exp: u64,
    /// From when it can be used.
    #[serde(default)]
    pub nbf: Option<u64>,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

/// One audience, or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Kubernetes {
    #[serde(default)]
    node: Option<Node>,
    /// Only that it is there counts: a token can also be bound to a node alone.
    #[serde(default)]
    pod: Option<Pod>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Pod {}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Node {
    name: NodeName,
}

impl Claims {
    /// The node of the pod that the token is bound to.
    pub fn node(&self) -> Option<&NodeName> {
        let Kubernetes { node, pod } = &self.kubernetes;
        pod.as_ref().and(node.as_ref()).map(|node| &node.name)
    }

    /// Which of Subsea's accounts in `namespace` it is of.
    pub fn account(&self, namespace: &Namespace) -> Option<Account> {
        let (its, account) = self.place()?;
        (its == *namespace).then_some(account)
    }

    /// The namespace and account that it is of, if that is one of Subsea's.
    pub fn place(&self) -> Option<(Namespace, Account)> {
        let place = self.sub.strip_prefix("system:serviceaccount:")?;
        let (namespace, name) = place.split_once(':')?;
        let account = [
            Account::Gateway,
            Account::Agent,
            Account::Operator,
            Account::Admission,
        ]
        .into_iter()
        .find(|account| account.as_str() == name)?;
        Some((namespace.parse().ok()?, account))
    }
}

impl Audience {
    /// Whether `wanted` is among them.
    pub fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Several(several) => several.iter().any(|a| a == wanted),
        }
    }
}

impl ServiceAccountToken {
    /// The text form, which is the secret.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is signed, and the signature in base64url.
    pub fn signed(&self) -> (&str, &str) {
        self.0.rsplit_once('.').unwrap_or_default()
    }

    /// The header, unchecked but for what it must not have.
    ///
    /// # Errors
    /// [`ServiceAccountTokenError::Header`].
    pub fn header(&self) -> Result<Header, ServiceAccountTokenError> {
        let part = self.0.split('.').next().unwrap_or_default();
        let bytes = decode(part, MAX_HEADER).ok_or(ServiceAccountTokenError::Header)?;
        let header: Header =
            serde_json::from_slice(&bytes).map_err(|_| ServiceAccountTokenError::Header)?;
        if header.crit {
            return Err(ServiceAccountTokenError::Header);
        }
        Ok(header)
    }

    /// What it claims, unchecked.
    ///
    /// # Errors
    /// [`ServiceAccountTokenError::Claims`].
    pub fn claims(&self) -> Result<Claims, ServiceAccountTokenError> {
        let part = self.0.split('.').nth(1).unwrap_or_default();
        let bytes = decode(part, MAX_TOKEN).ok_or(ServiceAccountTokenError::Claims)?;
        serde_json::from_slice(&bytes).map_err(|_| ServiceAccountTokenError::Claims)
    }
}

fn decode(part: &str, most: usize) -> Option<Zeroizing<Vec<u8>>> {
    if part.len() > most / 3 * 4 + 4 {
        return None;
    }
    URL_SAFE_NO_PAD.decode(part).ok().map(Zeroizing::new)
}

impl FromStr for ServiceAccountToken {
    type Err = ServiceAccountTokenError;
    fn from_str(text: &str) -> Result<Self, ServiceAccountTokenError> {
        let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let parts = text.split('.');
        let whole = parts.clone().count() == 3
            && parts
                .clone()
                .all(|part| !part.is_empty() && part.bytes().all(base64url));
        if text.len() > MAX_TOKEN || !whole {
            return Err(ServiceAccountTokenError::Shape);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccountToken(redacted)")
    }
}

impl Serialize for ServiceAccountToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceAccountToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Zeroizing::new(String::deserialize(deserializer)?)
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn token(header: &Value, claims: &Value) -> ServiceAccountToken {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.c2ln", part(header), part(claims))
            .parse()
            .unwrap()
    }

    fn claims() -> Value {
        json!({
            "aud": ["subsea-broker"], "exp": 1_800_003_600u64, "iat": 1_800_000_000u64,
            "iss": "https://kubernetes.default.svc", "jti": "7a", "nbf": 1_800_000_000u64,
            "kubernetes.io": {
                "namespace": "subsea", "node": {"name": "node-1", "uid": "u"},
                "pod": {"name": "subsea-gateway-x", "uid": "u"}, "serviceaccount": {"name": "subsea-gateway", "uid": "u"},
                "warnafter": 1_800_003_607u64
            },
            "sub": "system:serviceaccount:subsea:subsea-gateway"
        })
    }

    #[test]
    fn a_bound_token_says_which_node_and_account() {
        let header = json!({"alg": "RS256", "kid": "k1"});
        let token = token(&header, &claims());
        let (head, read) = (token.header().unwrap(), token.claims().unwrap());
        assert_eq!((head.alg.as_str(), head.kid.as_str()), ("RS256", "k1"));
        assert_eq!(read.node().unwrap().as_str(), "node-1");
        let subsea = "subsea".parse().unwrap();
        assert_eq!(read.account(&subsea), Some(Account::Gateway));
        assert_eq!(read.account(&"other".parse().unwrap()), None);
        assert!(read.aud.contains(AUDIENCE));
        assert_eq!(token.signed().1, "c2ln");
        assert!(!format!("{token:?}").contains("c2ln"));
    }

    #[test]
    fn what_is_not_subseas_has_no_account() {
        let subsea = "subsea".parse().unwrap();
        for sub in [
            "",
            "subsea-gateway",
            "system:serviceaccount:subsea:default",
            "system:serviceaccount:subsea:subsea-gateway:x",
            "system:serviceaccount:subsea:x:subsea-gateway",
            "system:node:node-1",
            "system:serviceaccount::subsea-gateway",
        ] {
            let mut claims = claims();
            claims["sub"] = json!(sub);
            let read = token(&json!({}), &claims).claims().unwrap();
            assert_eq!(read.account(&subsea), None, "{sub}");
        }
        assert_eq!(Account::Operator.role(), None);
    }

    #[test]
    fn claims_that_are_not_of_the_kind_are_refused() {
        for (name, value) in [
            ("exp", json!("soon")),
            ("exp", json!(-1)),
            ("exp", json!(null)),
            ("nbf", json!({})),
            ("iss", json!("")),
            ("aud", json!({"a": 1})),
            ("kubernetes.io", json!({"node": {"name": "No Node"}})),
            ("kubernetes.io", json!([1])),
        ] {
            let mut claims = claims();
            claims[name] = value;
            let read = token(&json!({}), &claims).claims();
            assert_eq!(read, Err(ServiceAccountTokenError::Claims), "{name}");
        }
        let mut legacy = claims();
        legacy["kubernetes.io"] = json!({"namespace": "subsea"});
        assert_eq!(token(&json!({}), &legacy).claims().unwrap().node(), None);
        // Said twice, one does not know which counts.
        let twice = URL_SAFE_NO_PAD.encode(claims().to_string().replacen('{', "{\"exp\":1,", 1));
        let twice: ServiceAccountToken = format!("e30.{twice}.AA").parse().unwrap();
        assert_eq!(twice.claims(), Err(ServiceAccountTokenError::Claims));
    }

    #[test]
    fn headers_need_an_algorithm_a_key_and_no_extension() {
        for header in [
            json!({}),
            json!({"alg": "RS256"}),
            json!({"kid": "k"}),
            json!({"alg": 1, "kid": "k"}),
            json!({"alg": "RS256", "kid": "k", "crit": ["b64"]}),
            json!({"alg": "RS256", "kid": "k", "crit": null}),
            json!({"alg": "RS256", "kid": "k".repeat(3000)}),
            json!("RS256"),
        ] {
            let read = token(&header, &claims()).header();
            assert_eq!(read, Err(ServiceAccountTokenError::Header), "{header}");
        }
    }

    #[test]
    fn what_is_no_jwt_is_refused_without_being_repeated() {
        let long = format!("a.{}.b", "a".repeat(MAX_TOKEN));
        for bad in [
            "", "a", "a.b", "a.b.c.d", "a..c", ".b.c", "a.b.", "a.b.c\n", "a.b!.c", "a.b=.c", &long,
        ] {
            let error = bad.parse::<ServiceAccountToken>().unwrap_err();
            assert_eq!(error, ServiceAccountTokenError::Shape, "{bad}");
            let json = serde_json::to_string(bad).unwrap();
            let error = serde_json::from_str::<ServiceAccountToken>(&json).unwrap_err();
            assert!(error.to_string().contains("not well formed"), "{error}");
        }
    }
}
