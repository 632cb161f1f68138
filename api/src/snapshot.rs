//! The fleet's state at one revision, and the changes between revisions. PURE.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::allocation::Allocation;
use crate::id::{ClusterId, FleetName, NodeName};
use crate::key::PublicKey;
use crate::time::UnixMillis;

/// The whole fleet at one revision; what gateways, agents and DNS act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// The fleet's name.
    pub fleet: FleetName,
    /// Which history the revision belongs to: made anew when a store is created or restored. With a new
    /// epoch a client starts over, and keeps for a while the peers that it misses.
    pub epoch: String,
    /// Grows by one per committed change within an epoch.
    pub revision: u64,
    /// How to reach and trust the broker.
    pub broker: BrokerInfo,
    /// The members, by id.
    pub clusters: BTreeMap<ClusterId, Cluster>,
    /// Members that left, were forgotten or revoked in the last 24 hours.
    #[serde(default)]
    pub tombstones: BTreeMap<ClusterId, Tombstone>,
}

/// Where the broker is and by which authorities it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BrokerInfo {
    /// `https://host:port`, in order of preference.
    pub urls: Vec<String>,
    /// The CA certificates, PEM; two during a rotation.
    pub ca_pem: String,
}

/// A member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cluster {
    /// When it was admitted.
    pub joined_at: UnixMillis,
    /// Its blocks of kind pod, service, node and global, sorted. The inner addresses of its gateways
    /// stand at the gateways.
    pub allocations: Vec<Allocation>,
    /// Its gateways, by node name.
    #[serde(default)]
    pub gateways: BTreeMap<NodeName, Gateway>,
}

/// A gateway of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gateway {
    /// Its addresses inside the tunnels: one IPv4 address and, where the fleet has an IPv6 ULA, one IPv6
    /// address; both of kind infra. Empty for a stock peer.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub inner: Vec<IpAddr>,
    /// Stable number among the gateways of its cluster; the kernel driver's device is named after it.
    pub slot: u16,
    /// Its WireGuard identities.
    pub listeners: Vec<Listener>,
    /// Set for a stock WireGuard peer, which answers no echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stock: Option<StockPeer>,
}

/// How a stock WireGuard peer is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StockPeer {
    /// An address behind it that answers ICMP echo; without one it is judged by its handshake.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub probe: Option<IpAddr>,
}

/// One WireGuard identity and port of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique in its gateway.
    pub id: String,
    /// Its public key, unique in the fleet for ever.
    pub public_key: PublicKey,
    /// The UDP port it listens on.
    pub port: u16,
    /// Which session of a gateway pair it serves; stripe 0 is the one that any peer can use.
    pub stripe: u16,
    /// The gateway's slot.
    pub slot: u16,
    /// Whether new sessions may use it.
    pub state: ListenerState,
    /// Where it may be reached, best first.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub candidates: Vec<SocketAddr>,
}

/// Whether a listener takes new sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ListenerState {
    /// In use.
    Active,
    /// On its way out; existing sessions go on.
    Retiring,
}

/// Why a member is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Gone {
    /// It left by itself.
    Left,
    /// An operator removed it.
    Forgotten,
    /// An operator revoked its certificates.
    Revoked,
}

/// Tells that a member is gone for good, as against merely missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tombstone {
    /// Why.
    pub reason: Gone,
    /// Since when.
    pub at: UnixMillis,
}

/// The changes that lead to one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Delta {
    /// The revision that it applies to.
    pub from: u64,
    /// The revision that it leads to; above `from` by one or, for a batch, more.
    pub to: u64,
    /// In order.
    pub changes: Vec<Change>,
}

/// One change of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Change {
    /// The broker's addresses or authorities are new.
    Broker {
        /// The new ones.
        broker: BrokerInfo,
    },
    /// A member is new or has new records.
    Put {
        /// Which.
        cluster: ClusterId,
        /// Its whole record.
        record: Box<Cluster>,
    },
    /// A member is gone.
    Remove {
        /// Which.
        cluster: ClusterId,
        /// Why and since when.
        tombstone: Tombstone,
    },
}

/// How long a tombstone is kept.
pub const TOMBSTONES_KEPT: Duration = Duration::from_hours(24);

/// One line of the watch stream (newline-delimited JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum WatchEvent {
    /// The whole state: replaces what the client has.
    Snapshot {
        /// The state.
        snapshot: Box<Snapshot>,
    },
    /// What changed since the client's revision.
    Delta {
        /// The changes.
        delta: Delta,
    },
    /// Nothing happened for 10 s; the stream is alive.
    Heartbeat {
        /// The newest revision.
        revision: u64,
    },
}

/// A delta does not fit the snapshot it is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a change from revision {from} cannot follow revision {have}")]
pub struct Gap {
    /// What the delta starts from.
    pub from: u64,
    /// What the snapshot has.
    pub have: u64,
}

impl Snapshot {
    /// Applies a delta; one that is not newer than the snapshot changes nothing.
    ///
    /// # Errors
    /// [`Gap`] when changes between the two are missing: the client must ask for a snapshot.
    pub fn apply(&mut self, delta: Delta) -> Result<(), Gap> {
        if delta.to <= self.revision {
            return Ok(());
        }
        if delta.from > self.revision {
            return Err(Gap {
                from: delta.from,
                have: self.revision,
            });
        }
        for change in delta.changes {
            match change {
                Change::Broker { broker } => self.broker = broker,
                Change::Put { cluster, record } => {
                    self.tombstones.remove(&cluster);
                    self.clusters.insert(cluster, *record);
                }
                Change::Remove { cluster, tombstone } => {
                    self.clusters.remove(&cluster);
                    // A client that lives for months forgets as the broker does.
                    self.tombstones
                        .retain(|_, t| tombstone.at.since(t.at) < TOMBSTONES_KEPT);
                    self.tombstones.insert(cluster, tombstone);
                }
            }
        }
        self.revision = delta.to;
        Ok(())
    }
}
