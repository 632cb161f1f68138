//! Requests and answers of clusters whose nodes enrol by their Kubernetes service account. PURE.
//!
//! | call | body | answer | certificate |
//! |---|---|---|---|
//! | `POST /v1/admit` | [`AdmitRequest`] | [`AdmitResponse`] | none; a token of role `member` and a service account token |
//! | `POST /v1/enrol` | [`EnrolRequest`] | [`crate::member::JoinResponse`] | none; the credential and a service account token |
//! | `POST /v1/withdraw` | [`WithdrawRequest`] | 204 | none; a service account token |
//! | `PUT /v1/service-accounts` | [`ServiceAccountKeys`] | 204 | a gateway of the cluster |

use serde::{Deserialize, Serialize};

use crate::allocation::Allocation;
use crate::id::{ClusterId, FleetName, Issuer, Namespace};
use crate::jwks::Jwks;
use crate::member::CidrRequests;
use crate::secret::Token;
use crate::service_account::ServiceAccountToken;
use crate::snapshot::BrokerInfo;

/// How the broker knows the service accounts of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceAccounts {
    /// Whom their tokens name as issuer.
    pub issuer: Issuer,
    /// Where Subsea's service accounts live.
    pub namespace: Namespace,
    /// What their tokens are signed with: `/openid/v1/jwks` of the API server.
    pub keys: Jwks,
}

/// Admits a cluster whose nodes then enrol by themselves, or changes its blocks, keys and credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AdmitRequest {
    /// The fleet of the join file.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The token of the join file, of role `member`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub token: Token,
    /// What its nodes will show; made by the caller, in the text form of a token. It enrols nothing by itself.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub credential: Token,
    /// The blocks that it asks for.
    pub cidrs: CidrRequests,
    /// How its nodes are known.
    pub service_accounts: ServiceAccounts,
    /// A token of service account `subsea-operator` or `subsea-admission`, audience `subsea-broker`, signed by one of those keys:
    /// who asks is at home where they are from. Public keys anybody can have.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub service_account_token: ServiceAccountToken,
}

/// The cluster is a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AdmitResponse {
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where the broker is.
    pub broker: BrokerInfo,
    /// The cluster's blocks.
    pub allocations: Vec<Allocation>,
}

/// Enrols a node of an admitted cluster. Its service account token says which node, and in which role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The cluster's enrolment credential.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub credential: Token,
    /// A projected token of service account `subsea-gateway` or `subsea-agent`, bound to a pod, audience
    /// `subsea-broker`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub service_account_token: ServiceAccountToken,
    /// A certificate request, PEM. Only its public key and self-signature count: the broker writes the subject.
    pub csr_pem: String,
}

/// Takes an admitted cluster out of the fleet, as its founder's leave does with a cluster that joined by hand.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct WithdrawRequest {
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// A token of service account `subsea-operator`, audience `subsea-broker`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub service_account_token: ServiceAccountToken,
}

/// Replaces the keys that the service account tokens of the caller's cluster are signed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceAccountKeys {
    /// All of them.
    pub keys: Jwks,
}
