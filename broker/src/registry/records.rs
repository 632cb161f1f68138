//! What the store keeps besides the snapshot, and the changes it is told of. PURE.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subsea_api::admin::TokenState;
use subsea_api::conflict::{Claim, Owner};
use subsea_api::enrolment::ServiceAccounts;
use subsea_api::snapshot::{BrokerInfo, Cluster, Tombstone};
use subsea_api::{Allocation, Cidr, ClusterId, Kind, NodeName, PublicKey, Role, UnixMillis};

use crate::auth::{Fingerprint, TokenHash};

/// A place on a node: it can have a gateway, an agent and a DNS server, each with a certificate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seat {
    /// Roles member and gateway.
    Gateway,
    /// Role agent.
    Agent,
    /// Role dns.
    Dns,
}

impl Seat {
    /// Where a holder of `role` sits; an operator sits nowhere.
    pub fn of(role: Role) -> Option<Self> {
        match role {
            Role::Member | Role::Gateway => Some(Self::Gateway),
            Role::Agent => Some(Self::Agent),
            Role::Dns => Some(Self::Dns),
            Role::Admin => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Agent => "agent",
            Self::Dns => "dns",
        }
    }
}

/// Names an [`Enrolment`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKey {
    /// The cluster.
    pub cluster: ClusterId,
    /// The place on the node.
    pub seat: Seat,
    /// The node.
    pub node: NodeName,
}

/// A node that has a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// What the certificate entitles to.
    pub role: Role,
    /// Of the certificate's public key; another key does not speak for this node.
    pub key: Fingerprint,
    /// Of the newest certificate.
    pub serial: String,
    /// Of the certificate request that the newest certificate answers.
    pub request: Fingerprint,
    /// When the newest certificate was given; unknown (0) in records of earlier versions.
    #[serde(default)]
    pub at: UnixMillis,
}

/// What is known of a cluster whose nodes enrol by their service accounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Admission {
    /// Of the credential that its nodes show.
    pub credential: TokenHash,
    /// Whose tokens its nodes show.
    pub service_accounts: ServiceAccounts,
    /// When it was admitted or changed last.
    pub at: UnixMillis,
}

/// A join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Of its secret.
    pub hash: TokenHash,
    /// The cluster that it is bound to.
    pub cluster: ClusterId,
    /// The role that it is bound to.
    pub role: Role,
    /// When it was made.
    pub created: UnixMillis,
    /// When it expires.
    pub expires: UnixMillis,
    /// Who used it.
    pub used: Option<TokenUse>,
    /// Whether an operator revoked it.
    pub revoked: bool,
}

impl TokenRecord {
    /// Whether it can be used.
    pub fn state(&self, now: UnixMillis) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if self.used.is_some() {
            TokenState::Used
        } else if now >= self.expires {
            TokenState::Expired
        } else {
            TokenState::Unused
        }
    }
}

/// Who used a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The node; none when it admitted a cluster whose nodes enrol by their service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Of the public key of its certificate request, or of the credential that came with it.
    pub key: Fingerprint,
    /// When.
    pub at: UnixMillis,
}

/// A block held for a cluster that does not route it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// For whom.
    pub cluster: ClusterId,
    /// The block and what it is for.
    pub allocation: Allocation,
    /// Why.
    pub state: HeldState,
}

/// Why a block is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldState {
    /// An operator reserved it.
    Reserved,
    /// It was released and rests until then.
    Resting(UnixMillis),
}

impl Held {
    /// The claim that stands in the index for it.
    pub fn claim(&self) -> Claim {
        Claim::of(Owner::Reservation(self.cluster.clone()), self.allocation)
    }

    /// What it is listed by.
    pub fn key(&self) -> (ClusterId, Kind, Cidr) {
        (
            self.cluster.clone(),
            self.allocation.kind,
            self.allocation.cidr,
        )
    }
}

/// Whose a WireGuard key is, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOwner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeName,
}

/// One record put (`Some`) or taken away (`None`).
#[derive(Debug, Clone)]
pub enum Effect {
    /// A member.
    Cluster(ClusterId, Option<Box<Cluster>>),
    /// The memory of a member that is gone.
    Tombstone(ClusterId, Option<Tombstone>),
    /// A node with a certificate.
    Enrolment(NodeKey, Option<Enrolment>),
    /// How a cluster's nodes enrol by themselves.
    Admission(ClusterId, Option<Box<Admission>>),
    /// A token, by its public id.
    Token(String, Option<TokenRecord>),
    /// A block, by owner, kind and block.
    Held((ClusterId, Kind, Cidr), Option<HeldBlock>),
    /// A WireGuard key that has found its owner.
    Key(PublicKey, KeyOwner),
    /// A revoked cluster id.
    Revoked(ClusterId, Option<UnixMillis>),
    /// The broker's addresses and authorities.
    Broker(BrokerInfo),
}

/// What is kept of a held block besides its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBlock {
    /// See [`Allocation::exported`].
    pub exported: bool,
    /// Why it is held.
    pub state: HeldState,
}

impl Effect {
    /// Puts a held block.
    pub fn hold(held: &Held) -> Self {
        let block = HeldBlock {
            exported: held.allocation.exported,
            state: held.state,
        };
        Self::Held(held.key(), Some(block))
    }
}

/// A table of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Members as in the snapshot.
    Clusters,
    /// Members that are gone.
    Tombstones,
    /// Nodes with certificates.
    Enrolments,
    /// Clusters whose nodes enrol by their service accounts.
    Admissions,
    /// Join tokens.
    Tokens,
    /// Reserved and resting blocks.
    Held,
    /// WireGuard keys and their owners.
    Keys,
    /// Revoked cluster ids.
    Revoked,
    /// Single records.
    Fleet,
}

/// Every table.
pub const TABLES: [Table; 9] = [
    Table::Clusters,
    Table::Tombstones,
    Table::Enrolments,
    Table::Admissions,
    Table::Tokens,
    Table::Held,
    Table::Keys,
    Table::Revoked,
    Table::Fleet,
];

impl Table {
    /// Its name in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Tombstones => "tombstones",
            Self::Enrolments => "enrolments",
            Self::Admissions => "admissions",
            Self::Tokens => "tokens",
            Self::Held => "held",
            Self::Keys => "keys",
            Self::Revoked => "revoked",
            Self::Fleet => "fleet",
        }
    }
}

/// A record as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub table: Table,
    /// Unique in its table.
    pub key: String,
    /// JSON; `None` takes the record away.
    pub body: Option<String>,
}

/// A row cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("record `{key}` of table `{table}` is damaged: {reason}")]
pub struct RowError {
    table: &'static str,
    key: String,
    reason: String,
}

impl Effect {
    /// The row that keeps this record.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn row(&self) -> Result<Row, RowError> {
        match self {
            Self::Cluster(id, v) => row(Table::Clusters, id.to_string(), v.as_ref()),
            Self::Tombstone(id, v) => row(Table::Tombstones, id.to_string(), v.as_ref()),
            Self::Enrolment(k, v) => row(
                Table::Enrolments,
                format!("{}/{}/{}", k.cluster, k.seat.as_str(), k.node),
                v.as_ref(),
            ),
            Self::Admission(id, v) => row(Table::Admissions, id.to_string(), v.as_ref()),
            Self::Token(id, v) => row(Table::Tokens, id.clone(), v.as_ref()),
            Self::Held((id, kind, cidr), v) => {
                row(Table::Held, format!("{id}/{kind}/{cidr}"), v.as_ref())
            }
            Self::Key(key, owner) => row(Table::Keys, key.to_string(), Some(owner)),
            Self::Revoked(id, v) => row(Table::Revoked, id.to_string(), v.as_ref()),
            Self::Broker(broker) => row(Table::Fleet, "broker".into(), Some(broker)),
        }
    }

    /// The record that a row keeps; `None` for a row that is not a record of the state.
    ///
    /// # Errors
    /// When the row is damaged.
    pub fn from_row(table: Table, key: &str, body: &str) -> Result<Option<Self>, RowError> {
        let damaged = |reason: &str| RowError {
            table: table.name(),
            key: key.to_owned(),
            reason: reason.to_owned(),
        };
        let cluster = |text: &str| {
            text.parse::<ClusterId>()
                .map_err(|e| damaged(&e.to_string()))
        };
        Ok(Some(match table {
            Table::Clusters => Self::Cluster(cluster(key)?, Some(parse(table, key, body)?)),
            Table::Tombstones => Self::Tombstone(cluster(key)?, Some(parse(table, key, body)?)),
            Table::Enrolments => {
                let mut parts = key.splitn(3, '/');
                let (Some(id), Some(seat), Some(node)) = (parts.next(), parts.next(), parts.next())
                else {
                    return Err(damaged("its key has not three parts"));
                };
                let seat = [Seat::Gateway, Seat::Agent, Seat::Dns]
                    .into_iter()
                    .find(|s| s.as_str() == seat)
                    .ok_or_else(|| damaged("unknown seat"))?;
                let node = node.parse().map_err(|_| damaged("not a node name"))?;
                let key_ = NodeKey {
                    cluster: cluster(id)?,
                    seat,
                    node,
                };
                Self::Enrolment(key_, Some(parse(table, key, body)?))
            }
            Table::Admissions => Self::Admission(cluster(key)?, Some(parse(table, key, body)?)),
            Table::Tokens => Self::Token(key.to_owned(), Some(parse(table, key, body)?)),
            Table::Held => {
                let mut parts = key.splitn(3, '/');
                let (Some(id), Some(kind), Some(cidr)) = (parts.next(), parts.next(), parts.next())
                else {
                    return Err(damaged("its key has not three parts"));
                };
                let kind = kind.parse().map_err(|_| damaged("unknown kind"))?;
                let cidr = cidr.parse().map_err(|_| damaged("not a CIDR block"))?;
                Self::Held((cluster(id)?, kind, cidr), Some(parse(table, key, body)?))
            }
            Table::Keys => Self::Key(
                key.parse().map_err(|_| damaged("not a public key"))?,
                parse(table, key, body)?,
            ),
            Table::Revoked => Self::Revoked(cluster(key)?, Some(parse(table, key, body)?)),
            Table::Fleet if key == "broker" => Self::Broker(parse(table, key, body)?),
            Table::Fleet => return Ok(None),
        }))
    }
}

fn row<T: Serialize>(table: Table, key: String, value: Option<&T>) -> Result<Row, RowError> {
    let body = value
        .map(serde_json::to_string)
        .transpose()
        .map_err(|e| RowError {
            table: table.name(),
            key: key.clone(),
            reason: e.to_string(),
        })?;
    Ok(Row { table, key, body })
}

fn parse<T: DeserializeOwned>(table: Table, key: &str, body: &str) -> Result<T, RowError> {
    serde_json::from_str(body).map_err(|e| RowError {
        table: table.name(),
        key: key.to_owned(),
        reason: e.to_string(),
    })
}
