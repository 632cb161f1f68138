//! Requests and answers between a cluster's nodes and the broker. PURE.
//!
//! | call | body | answer | certificate |
//! |---|---|---|---|
//! | `POST /v1/preflight` | [`PreflightRequest`] | [`PreflightReport`] | none; the token |
//! | `POST /v1/join` | [`JoinRequest`] | [`JoinResponse`] | none; the token |
//! | `POST /v1/renew` | [`RenewRequest`] | [`RenewResponse`] | own, may have expired up to 30 days ago |
//! | `POST /v1/challenge` | - | [`Challenge`] | member or gateway |
//! | `PUT /v1/clusters/{cluster}/gateways/{node}` | [`GatewayRegistration`] | [`crate::snapshot::Gateway`] | own node |
//! | `POST /v1/clusters/{cluster}/gateways/{node}/lease` | - | [`Lease`] | own node |
//! | `DELETE /v1/clusters/{cluster}/gateways/{node}` | - | 204 | own node; own cluster once the lease is over |
//! | `DELETE /v1/clusters/{cluster}/agents/{node}` | - | 204 | own node, role agent |
//! | `DELETE /v1/clusters/{cluster}?force=false` | - | 204 | own cluster, role member |
//! | `GET /v1/watch?epoch=E&since=R` | - | lines of [`crate::snapshot::WatchEvent`] | any member |

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::allocation::Allocation;
use crate::cidr::{Cidr, CidrRequest};
use crate::conflict::{Conflict, Owner};
use crate::enrolment::ServiceAccounts;
use crate::id::{ClusterId, FleetName, NodeName, Role};
use crate::key::PublicKey;
use crate::secret::Token;
use crate::snapshot::{BrokerInfo, Listener};

/// The blocks that a cluster asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CidrRequests {
    /// Pod blocks.
    #[serde(default)]
    pub pod: Vec<CidrRequest>,
    /// Service blocks.
    #[serde(default)]
    pub service: Vec<CidrRequest>,
    /// Node blocks.
    #[serde(default)]
    pub node: Vec<Cidr>,
    /// Whether other clusters route the node blocks.
    #[serde(default)]
    pub export_nodes: bool,
}

/// Asks whether a join would succeed; burns nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PreflightRequest {
    /// The fleet of the join file.
    pub fleet: FleetName,
    /// The token of the join file.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub token: Token,
    /// The cluster that would join.
    pub cluster: ClusterId,
    /// What it would ask for.
    pub cidrs: CidrRequests,
    /// What else an admission would bring, of a cluster whose nodes enrol by their service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<PreflightAdmission>,
}

/// By what the broker can tell before an admission whether the id is another cluster's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PreflightAdmission {
    /// The enrolment credential that the cluster has already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub credential: Option<Token>,
    /// How its nodes would be known.
    pub service_accounts: ServiceAccounts,
}

/// What a join would give, and what stands against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PreflightReport {
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The cluster is a member already: only the node that admitted it can join so, or the same cluster of Kubernetes, and the
    /// blocks replace those that it has.
    #[serde(default)]
    pub replaces: bool,
    /// The blocks that the cluster owns now; none when it is no member.
    #[serde(default)]
    pub current: Vec<Allocation>,
    /// The blocks that it would own, `auto` resolved. Another join may take a resolved block first.
    pub allocations: Vec<Allocation>,
    /// Every pair that conflicts; empty when the join would succeed.
    pub conflicts: Vec<Conflict>,
    /// What others own, for the comparison with the host's routes.
    pub others: Vec<OwnedAllocation>,
}

/// An allocation with its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OwnedAllocation {
    /// Whose.
    pub owner: Owner,
    /// What.
    pub allocation: Allocation,
}

/// Joins a cluster (token of role `member`) or enrols a further node (other roles).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The fleet of the join file.
    pub fleet: FleetName,
    /// The token of the join file.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub token: Token,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that the certificate will name.
    pub node: NodeName,
    /// A certificate request, PEM. Only its public key and self-signature count: the broker writes the subject.
    pub csr_pem: String,
    /// Empty for roles other than `member`.
    #[serde(default)]
    pub cidrs: CidrRequests,
}

/// The node is enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinResponse {
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeName,
    /// What the certificate entitles to.
    pub role: Role,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Where the broker is.
    pub broker: BrokerInfo,
    /// The cluster's blocks.
    pub allocations: Vec<Allocation>,
}

/// Asks for a new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A certificate request made from the key of the certificate in use, PEM.
    pub csr_pem: String,
}

/// The new certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenewResponse {
    /// PEM.
    pub certificate_pem: String,
    /// Where the broker is now.
    pub broker: BrokerInfo,
}

/// What a gateway must answer to show that it holds a WireGuard private key.
///
/// The proof is HMAC-SHA-256 with the X25519 shared secret of [`Challenge::broker_key`] and the gateway's
/// private key as its key, over [`proof_message`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Challenge {
    /// The broker's X25519 public key for this challenge.
    pub broker_key: PublicKey,
    /// Opaque; valid for one minute at the broker that gave it.
    pub nonce: String,
}

/// The text that a proof of possession authenticates, with NUL between its fields.
pub fn proof_message(
    fleet: &FleetName,
    cluster: &ClusterId,
    node: &NodeName,
    key: &PublicKey,
    nonce: &str,
) -> Vec<u8> {
    format!("subsea possession v1\0{fleet}\0{cluster}\0{node}\0{key}\0{nonce}").into_bytes()
}

/// A gateway's whole set of listeners; replaces the earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GatewayRegistration {
    /// 1 to 16, each with a proof of its own: ids, keys and, among the active ones, pairs of `stripe` and `for_slot`
    /// occur once, and the stripes of each `for_slot` have no gap. The broker sets `slot`; what is sent is ignored.
    pub listeners: Vec<ListenerRegistration>,
    /// See [`crate::snapshot::Gateway::node_addresses`]. The broker keeps them as [`node_addresses`] puts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub node_addresses: Vec<IpAddr>,
}

/// The one form of a list of node addresses: IPv4 where it is IPv4 inside IPv6, sorted, each once.
pub fn node_addresses(given: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = given.iter().map(IpAddr::to_canonical).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Why no other node can reach a node by `address`; none when one may.
///
/// ```
/// use subsea_api::member::node_address_fault;
/// assert_eq!(node_address_fault("192.0.2.1".parse().unwrap()), None);
/// assert_eq!(node_address_fault("fe80::1".parse().unwrap()), Some("a link-local address"));
/// ```
pub fn node_address_fault(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let (link_local, reserved) = match address {
        // 0.0.0.0/8 and 240.0.0.0/4, of which the broadcast address is one.
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        ),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if link_local {
        Some("a link-local address")
    } else if reserved {
        Some("a reserved or broadcast address")
    } else {
        None
    }
}

/// The answer to a renewal of a gateway's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lease {
    /// How long it lasts from now, in milliseconds. Renew it at a third of that.
    pub lasts_ms: u64,
}

impl Lease {
    /// How long it lasts from when it was renewed.
    pub fn lasts(self) -> Duration {
        Duration::from_millis(self.lasts_ms)
    }
}

/// A listener and the proof that its private key is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ListenerRegistration {
    /// The listener; at most 8 candidates.
    pub listener: Listener,
    /// The nonce of the [`Challenge`].
    pub nonce: String,
    /// The HMAC, base64.
    pub proof: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn node_addresses_have_one_form() {
        let given = ["fd00::1", "192.0.2.2", "::ffff:192.0.2.1", "192.0.2.2"].map(ip);
        let form = ["192.0.2.1", "192.0.2.2", "fd00::1"].map(ip);
        assert_eq!(node_addresses(&given), form);
        assert_eq!(node_addresses(&form), form);
    }

    #[test]
    fn node_addresses_are_those_of_one_host() {
        for good in [
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fd00::1",
            "2001:db8::1",
        ] {
            assert_eq!(node_address_fault(ip(good)), None, "{good}");
        }
        for (bad, fault) in [
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("127.0.0.2", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("169.254.1.1", "link-local"),
            ("::ffff:169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("0.1.2.3", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("240.0.0.1", "reserved"),
        ] {
            let found = node_address_fault(ip(bad)).unwrap_or_default();
            assert!(found.contains(fault), "{bad}: {found}");
        }
    }
}
