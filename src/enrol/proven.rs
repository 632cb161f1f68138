//! Whom a service account token makes of a node, and whether the node is that already. PURE.

use std::path::Path;
use std::time::Duration;

use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{ClusterId, FleetName, NodeName, Role, ServiceAccountToken, UnixMillis};

use super::error::EnrolError;
use crate::membership::certificate::Validity;
use crate::state::Membership;

/// How long the broker renews an expired certificate.
const RENEWABLE: Duration = Duration::from_hours(30 * 24);
/// The most URLs of the broker that are kept.
const MAX_URLS: usize = 8;

/// Who the node is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) fleet: FleetName,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeName,
    pub(super) role: Role,
}

impl Wanted {
    /// What the token claims; the broker checks it.
    pub(super) fn of(
        file: &EnrolmentFile,
        token: &ServiceAccountToken,
    ) -> Result<Self, EnrolError> {
        let fail = |why: String| EnrolError::ServiceAccount { why };
        let claims = token.claims().map_err(|e| fail(e.to_string()))?;
        let role = claims
            .place()
            .and_then(|(_, account)| account.role())
            .ok_or_else(|| {
                let whose: String = claims.sub.chars().filter(|c| !c.is_control()).take(80).collect();
                fail(format!(
                    "the token is of `{whose}`, and nodes enrol as service account `subsea-gateway` or `subsea-agent`"
                ))
            })?;
        let node = claims
            .node()
            .cloned()
            .ok_or_else(|| fail("the service account token names no node".to_owned()))?;
        Ok(Self {
            fleet: file.fleet.clone(),
            cluster: file.cluster.clone(),
            node,
            role,
        })
    }

    /// A state directory is one node's, in one role.
    pub(super) fn check_same(&self, earlier: &Membership, path: &Path) -> Result<(), EnrolError> {
        let is = (
            &earlier.fleet,
            &earlier.cluster,
            &earlier.node,
            earlier.role,
        );
        let wanted = (&self.fleet, &self.cluster, &self.node, self.role);
        if is == wanted {
            return Ok(());
        }
        Err(EnrolError::OtherNode {
            path: path.to_owned(),
            is: EnrolError::owner(is.0, is.1, is.2, is.3),
            wanted: EnrolError::owner(wanted.0, wanted.1, wanted.2, wanted.3),
        })
    }
}

/// Whether a certificate is in force, or can be renewed.
pub(super) fn is_renewable(validity: Validity, now: UnixMillis) -> bool {
    now < validity.until.plus(RENEWABLE)
}

/// Whether what the node knows of the broker's authority is what the Secret says.
pub(super) fn same_authority(known: &BrokerInfo, told: &BrokerInfo) -> bool {
    known.ca_pem.contains(told.ca_pem.trim())
}

/// What the node knows of the broker, with the URLs that the Secret has and it has not: the broker may have moved while
/// the node was away. None when there is nothing new.
pub(super) fn with_urls(known: &BrokerInfo, told: &BrokerInfo) -> Option<BrokerInfo> {
    if told.urls.iter().all(|url| known.urls.contains(url)) {
        return None;
    }
    let mut both = told.clone();
    both.ca_pem.clone_from(&known.ca_pem);
    both.urls.extend(
        known
            .urls
            .iter()
            .filter(|url| !told.urls.contains(url))
            .cloned(),
    );
    both.urls.truncate(MAX_URLS);
    Some(both)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;

    fn broker(urls: &[&str], ca: &str) -> BrokerInfo {
        BrokerInfo {
            urls: urls.iter().map(|&u| u.to_owned()).collect(),
            ca_pem: ca.to_owned(),
        }
    }

    fn file() -> EnrolmentFile {
        let (fleet, cluster) = ("f1".parse().unwrap(), "east".parse().unwrap());
        EnrolmentFile::new(fleet, cluster, broker(&["https://a:1"], "CA"))
    }

    fn token(sub: &str, kubernetes: &Value) -> ServiceAccountToken {
        let claims = json!({"iss": "i", "sub": sub, "aud": "subsea-broker", "exp": 1, "kubernetes.io": kubernetes});
        format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(claims.to_string()))
            .parse()
            .unwrap()
    }

    fn node() -> Value {
        json!({"node": {"name": "n1"}, "pod": {"name": "p", "uid": "1"}})
    }

    #[test]
    fn the_token_says_which_node_and_role() {
        for (name, role) in [
            ("subsea-gateway", Role::Gateway),
            ("subsea-agent", Role::Agent),
        ] {
            let token = token(&format!("system:serviceaccount:subsea:{name}"), &node());
            let wanted = Wanted::of(&file(), &token).unwrap();
            assert_eq!((wanted.node.as_str(), wanted.role), ("n1", role));
        }
        for (sub, kubernetes, why) in [
            (
                "system:serviceaccount:subsea:subsea-operator",
                node(),
                "subsea-operator",
            ),
            ("system:serviceaccount:subsea:default", node(), "default"),
            (
                "system:serviceaccount:subsea:subsea-agent",
                json!({}),
                "names no node",
            ),
            (
                "system:serviceaccount:subsea:subsea-agent",
                json!(1),
                "cannot be read",
            ),
        ] {
            let error = Wanted::of(&file(), &token(sub, &kubernetes)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn a_directory_of_another_node_is_not_taken() {
        let token = token("system:serviceaccount:subsea:subsea-agent", &node());
        let wanted = Wanted::of(&file(), &token).unwrap();
        let own = Membership {
            version: 1,
            fleet: "f1".parse().unwrap(),
            cluster: "east".parse().unwrap(),
            node: "n1".parse().unwrap(),
            role: Role::Agent,
            broker: broker(&[], ""),
            allocations: Vec::new(),
            token: None,
        };
        let dir = Path::new("/state");
        assert!(wanted.check_same(&own, dir).is_ok());
        for (change, shown) in [
            (
                (|m| m.fleet = "f2".parse().unwrap()) as fn(&mut Membership),
                "fleet `f2`",
            ),
            (|m| m.cluster = "west".parse().unwrap(), "cluster `west`"),
            (|m| m.node = "n2".parse().unwrap(), "`n2`"),
            (|m| m.role = Role::Gateway, "gateway"),
            (|m| m.role = Role::Member, "member"),
        ] {
            let mut other = own.clone();
            change(&mut other);
            let error = wanted.check_same(&other, dir).unwrap_err();
            let (text, hint) = (error.to_string(), error.hint().unwrap());
            assert!(text.contains(shown) && text.contains("/state"), "{text}");
            assert!(hint.contains("/state"), "{hint}");
        }
    }

    #[test]
    fn a_certificate_is_good_for_thirty_days_past_its_end() {
        let validity = Validity {
            from: UnixMillis(0),
            until: UnixMillis(1_000),
        };
        let days = |n: u64| UnixMillis(1_000 + n * 86_400_000);
        assert!(is_renewable(validity, UnixMillis(0)) && is_renewable(validity, days(29)));
        assert!(!is_renewable(validity, days(30)));
    }

    #[test]
    fn urls_of_the_secret_are_added_first_and_what_is_known_stays() {
        let (known, told) = (
            broker(&["https://a", "https://b"], "CA\nCB\n"),
            broker(&["https://c", "https://b"], "CB\n"),
        );
        assert!(same_authority(&known, &told) && !same_authority(&told, &known));
        let both = with_urls(&known, &told).unwrap();
        assert_eq!(
            both,
            broker(&["https://c", "https://b", "https://a"], "CA\nCB\n")
        );
        assert_eq!(with_urls(&both, &told), None);
        let many: Vec<String> = (0..20).map(|n| format!("https://{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(
            with_urls(&known, &broker(&many, "CA")).unwrap().urls.len(),
            MAX_URLS
        );
    }
}
