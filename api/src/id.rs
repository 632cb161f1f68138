//! Names: clusters, nodes, fleets and roles. PURE.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {what}: {reason}")]
pub struct NameError {
    /// What the name was meant to be, for example `cluster id`.
    pub what: &'static str,
    /// The text as given, cut to 80 characters.
    pub value: String,
    /// The rule it breaks, with what to do.
    pub reason: String,
}

impl NameError {
    fn new(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            reason: reason.into(),
        }
    }
}

/// Checks an RFC 1123 label: lower-case letters, digits and inner hyphens, 1 to `max` characters.
fn check_label(what: &'static str, value: &str, max: usize) -> Result<(), NameError> {
    let fail = |reason: String| Err(NameError::new(what, value, reason));
    if value.is_empty() {
        return fail("it is empty".into());
    }
    if value.len() > max {
        return fail(format!(
            "it has {} characters, at most {max} are allowed",
            value.chars().count()
        ));
    }
    if value.contains('.') {
        return fail("dots are not allowed, because the name is one label of a DNS name".into());
    }
    if value.bytes().any(|b| b.is_ascii_uppercase()) {
        return fail(format!(
            "capital letters are not allowed, use `{}`",
            value.to_ascii_lowercase()
        ));
    }
    if let Some(c) = value
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
    {
        return fail(format!(
            "the character {c:?} is not allowed, use a-z, 0-9 and `-` (RFC 1123 label)"
        ));
    }
    if value.starts_with('-') || value.ends_with('-') {
        return fail("it must start and end with a letter or a digit".into());
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(value)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// A cluster's name in its fleet: an RFC 1123 label of at most 32 characters.
    ///
    /// ```
    /// use subsea_api::ClusterId;
    /// assert!("east-1".parse::<ClusterId>().is_ok());
    /// assert!("east.1".parse::<ClusterId>().unwrap_err().to_string().contains("dots"));
    /// ```
    ClusterId,
    "cluster id",
    |v| check_label("cluster id", v, ClusterId::MAX_LEN)
);

impl ClusterId {
    /// The longest cluster id, in characters: room is left for prefixes within a DNS label.
    pub const MAX_LEN: usize = 32;
}

name_type!(
    /// The name of a fleet: an RFC 1123 label of at most 63 characters.
    FleetName,
    "fleet name",
    |v| check_label("fleet name", v, 63)
);

name_type!(
    /// The name of a node, unique in its cluster: an RFC 1123 subdomain of at most 253 characters, as
    /// Kubernetes node names are.
    NodeName,
    "node name",
    check_node
);

name_type!(
    /// A namespace of a Kubernetes cluster: an RFC 1123 label of at most 63 characters.
    Namespace,
    "namespace",
    |v| check_label("namespace", v, 63)
);

name_type!(
    /// Who signs a cluster's service account tokens: the flag `--service-account-issuer` of its API server, usually
    /// a URL.
    Issuer,
    "issuer",
    check_issuer
);

fn check_issuer(value: &str) -> Result<(), NameError> {
    if value.is_empty() || value.len() > 512 {
        return Err(NameError::new(
            "issuer",
            value,
            "it must have 1 to 512 characters",
        ));
    }
    if value.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(NameError::new(
            "issuer",
            value,
            "only ASCII without spaces is allowed, as in a URL",
        ));
    }
    Ok(())
}

fn check_node(value: &str) -> Result<(), NameError> {
    if value.len() > 253 {
        return Err(NameError::new(
            "node name",
            value,
            "it has more than 253 characters",
        ));
    }
    value.split('.').try_for_each(|label| {
        check_label("node name", label, 63)
            .map_err(|e| NameError::new("node name", value, e.reason))
    })
}

/// What a certificate or token entitles its holder to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Admits a cluster and enrols its first gateway.
    Member,
    /// A further gateway of a member.
    Gateway,
    /// A node agent: reads only.
    Agent,
    /// A DNS server: reads only.
    Dns,
    /// An operator of the broker. Never given by a token.
    Admin,
}

impl Role {
    /// The role as it stands in certificates, flags and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Gateway => "gateway",
            Self::Agent => "agent",
            Self::Dns => "dns",
            Self::Admin => "admin",
        }
    }

    /// Whether the holder may write records of its own cluster.
    pub fn may_write(self) -> bool {
        match self {
            Self::Member | Self::Gateway => true,
            Self::Agent | Self::Dns | Self::Admin => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        [
            Self::Member,
            Self::Gateway,
            Self::Agent,
            Self::Dns,
            Self::Admin,
        ]
        .into_iter()
        .find(|r| r.as_str() == value)
        .ok_or_else(|| NameError::new("role", value, "use member, gateway, agent or dns"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_rfc_1123_labels_of_at_most_32_characters() {
        for good in ["a", "east", "east-1", "0", &"a".repeat(32)] {
            assert!(good.parse::<ClusterId>().is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            ("east.eu", "dots"),
            ("East", "capital"),
            (&"a".repeat(33), "33 characters"),
            ("-a", "start and end"),
            ("a-", "start and end"),
            ("a_b", "not allowed"),
            ("a\n", "not allowed"),
            ("caf\u{e9}", "not allowed"),
        ] {
            let error = bad.parse::<ClusterId>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn node_names_may_have_dots() {
        assert!("ip-10-0-0-1.ec2.internal".parse::<NodeName>().is_ok());
        assert!("a..b".parse::<NodeName>().is_err());
        assert!("Node".parse::<NodeName>().is_err());
    }

    #[test]
    fn issuers_are_what_api_servers_call_themselves() {
        for good in [
            "https://kubernetes.default.svc.cluster.local",
            "kubernetes/serviceaccount",
            "https://oidc.example/id/EXAMPLE",
        ] {
            assert!(good.parse::<Issuer>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\n", "caf\u{e9}", &"a".repeat(513)] {
            assert!(bad.parse::<Issuer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_does_not_deserialize() {
        assert!(serde_json::from_str::<ClusterId>("\"A.b\"").is_err());
    }
}
