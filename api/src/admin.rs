//! Requests and answers between an operator and the broker. PURE. All need the admin certificate.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /v1/admin/tokens` | [`TokenCreate`] | [`crate::join_file::JoinFile`] |
//! | `GET /v1/admin/tokens` | - | `[`[`TokenInfo`]`]` |
//! | `DELETE /v1/admin/tokens/{id}` | - | 204 |
//! | `GET /v1/admin/clusters` | - | `[`[`ClusterInfo`]`]` |
//! | `GET /v1/admin/clusters/{cluster}` | - | [`ClusterInfo`] |
//! | `DELETE /v1/admin/clusters/{cluster}` (forget) | - | 204 |
//! | `POST /v1/admin/clusters/{cluster}/revoke` | - | 204 |
//! | `PUT /v1/admin/clusters/{cluster}/stock-gateways/{node}` | [`StockGateway`] | [`ClusterInfo`] |
//! | `DELETE /v1/admin/clusters/{cluster}/gateways/{node}` | - | 204 |
//! | `GET /v1/admin/allocations` | - | `[`[`AllocationInfo`]`]` |
//! | `POST /v1/admin/allocations` | [`Reservation`] | [`AllocationInfo`] |
//! | `DELETE /v1/admin/allocations?cidr=C` | - | 204 |
//! | `GET /v1/admin/audit?after=N&limit=M` (without `after` the newest M) | - | `[`[`AuditEntry`]`]` |
//! | `GET /v1/admin/backup` | - | the store, SQLite |
//! | `POST /v1/admin/restore` | the store, SQLite | [`BrokerStatus`] |
//! | `GET /v1/admin/status` | - | [`BrokerStatus`] |

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::allocation::{Allocation, Kind};
use crate::cidr::{Cidr, CidrRequest};
use crate::conflict::Owner;
use crate::id::{ClusterId, FleetName, NodeName, Role};
use crate::key::PublicKey;
use crate::snapshot::Cluster;
use crate::time::UnixMillis;

/// Asks for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// The cluster that it is bound to.
    pub cluster: ClusterId,
    /// The role that it is bound to; not admin.
    pub role: Role,
    /// How long it lives, in seconds: 1 to 604,800.
    pub ttl_seconds: u64,
}

/// A token as listed; the secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenInfo {
    /// Its public half.
    pub id: String,
    /// The cluster that it is bound to.
    pub cluster: ClusterId,
    /// The role that it is bound to.
    pub role: Role,
    /// Whether it can be used.
    pub state: TokenState,
    /// When it was made.
    pub created: UnixMillis,
    /// When it expires or expired.
    pub expires: UnixMillis,
}

/// Whether a token can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It can.
    Unused,
    /// It was.
    Used,
    /// Too late.
    Expired,
    /// An operator revoked it.
    Revoked,
}

/// A member as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterInfo {
    /// Its id.
    pub id: ClusterId,
    /// Its records, as in the snapshot.
    #[serde(flatten)]
    pub record: Cluster,
    /// Gateway nodes with a watch open, and since when; none says nothing about the tunnels.
    #[serde(default)]
    pub watching: BTreeMap<NodeName, UnixMillis>,
    /// As `watching`, of agents.
    #[serde(default)]
    pub agents_watching: BTreeMap<NodeName, UnixMillis>,
}

/// Registers a stock WireGuard peer as a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StockGateway {
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it listens.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub endpoint: SocketAddr,
    /// An address behind it that answers ICMP echo.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub probe: Option<IpAddr>,
    /// Blocks behind it, for a cluster that is not yet a member; reservations of the cluster count too.
    #[serde(default)]
    pub allocations: Vec<Allocation>,
}

/// A block in use, reserved or resting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllocationInfo {
    /// Whose.
    pub owner: Owner,
    /// What for.
    pub kind: Kind,
    /// The block.
    pub cidr: Cidr,
    /// Whether other clusters route it.
    pub exported: bool,
    /// Whether it can be given to another cluster.
    pub state: AllocationState,
    /// When a resting block becomes free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_at: Option<UnixMillis>,
}

/// How a block is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum AllocationState {
    /// By a member.
    Active,
    /// For a cluster that may join later.
    Reserved,
    /// Released less than 15 minutes ago: free for its last owner only.
    Resting,
}

/// Reserves a block for a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// For whom.
    pub cluster: ClusterId,
    /// What for: pod, service, node or global.
    pub kind: Kind,
    /// Which, or how large.
    pub cidr: CidrRequest,
}

/// One line of the append-only audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Grows by one.
    pub sequence: u64,
    /// When.
    pub at: UnixMillis,
    /// The holder of the certificate or token, for example `cluster/east/member/gw-1` or `admin/admin`.
    pub who: String,
    /// A stable verb, for example `cluster.join`.
    pub action: String,
    /// What it was done to.
    pub subject: String,
    /// More, without secrets.
    pub detail: String,
}

/// The broker at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BrokerStatus {
    /// The fleet.
    pub fleet: FleetName,
    /// The version of the broker.
    pub version: String,
    /// See [`crate::snapshot::Snapshot::epoch`].
    pub epoch: String,
    /// The newest revision.
    pub revision: u64,
    /// Since when the process runs.
    pub started: UnixMillis,
    /// Where members find it.
    pub urls: Vec<String>,
    /// When the CA expires.
    pub ca_expires: UnixMillis,
    /// How many members.
    pub clusters: u64,
    /// How many gateways.
    pub gateways: u64,
    /// Of these, how many whose lease is over.
    #[serde(default)]
    pub expired: u64,
    /// How many open watches.
    pub watches: u64,
    /// The pools that `auto` takes blocks from.
    pub pools: Vec<Pool>,
}

/// A pool that `auto` takes blocks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// For blocks of this kind.
    pub kind: Kind,
    /// From here.
    pub cidr: Cidr,
}

/// `admin.yaml`: how an operator reaches the broker. Mode 0600; it holds a private key.
#[derive(Clone, Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct AdminFile {
    /// `https://host:port`.
    pub url: String,
    /// The CA certificates, PEM.
    pub ca_pem: String,
    /// The admin certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
}

/// The text is no admin file; what is wrong is not quoted, for a private key is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a complete admin file: was it cut or edited?")]
pub struct AdminFileError;

impl AdminFile {
    /// Reads the YAML form.
    ///
    /// # Errors
    /// [`AdminFileError`] for anything that is not a whole admin file.
    pub fn parse(text: &str) -> Result<Self, AdminFileError> {
        let file: Self = serde_saphyr::from_str(text).map_err(|_| AdminFileError)?;
        let begins = |pem: &str| pem.trim_start().starts_with("-----BEGIN ");
        let whole = [&file.ca_pem, &file.certificate_pem, &file.key_pem];
        if file.url.starts_with("https://") && whole.into_iter().all(|pem| begins(pem)) {
            Ok(file)
        } else {
            Err(AdminFileError)
        }
    }
}

impl std::fmt::Debug for AdminFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminFile({}, secret redacted)", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_file_is_whole_or_refused_without_being_quoted() {
        let pem = "-----BEGIN X-----\nAAAA\n-----END X-----\n";
        let file = AdminFile {
            url: "https://192.0.2.1:8443".to_owned(),
            ca_pem: pem.to_owned(),
            certificate_pem: pem.to_owned(),
            key_pem: pem.to_owned(),
        };
        let text = serde_saphyr::to_string(&file).unwrap();
        assert_eq!(AdminFile::parse(&text).unwrap().url, file.url);
        assert!(!format!("{file:?}").contains("AAAA"));
        for bad in ["", "x", "url: https://a:1", &text.replace("https", "http")] {
            let error = AdminFile::parse(bad).unwrap_err();
            assert!(!error.to_string().contains("AAAA"));
        }
        assert!(AdminFile::parse(&text.replace("BEGIN", "")).is_err());
    }
}
