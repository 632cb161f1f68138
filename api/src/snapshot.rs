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
    /// Stable number among the gateways of its cluster. A gateway with the kernel driver keeps all remote gateways of
    /// one slot in one device, which has a listener of its own.
    pub slot: u16,
    /// Its WireGuard identities, at most 16.
    pub listeners: Vec<Listener>,
    /// Set for a stock WireGuard peer, which answers no echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stock: Option<StockPeer>,
    /// The addresses of its node on the network of its own cluster, where the agents of that cluster reach it: at
    /// most [`MAX_NODE_ADDRESSES`], sorted. Empty when it has told none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub node_addresses: Vec<IpAddr>,
    /// Since when its lease at the broker is over. That says that the broker hears nothing of it, and nothing about
    /// its tunnels: as long as they answer it is alive. Renewing the lease clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<UnixMillis>,
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

/// The most listeners of a gateway.
pub const MAX_LISTENERS: usize = 16;

/// The most node addresses of a gateway.
pub const MAX_NODE_ADDRESSES: usize = 4;

/// One WireGuard identity and port of a gateway. Of the active ones each pair of `stripe` and `for_slot` occurs once,
/// and the stripes of each `for_slot` are 0, 1, 2 and so on.
///
/// Unlike in requests, unknown fields are no error: a gateway must read the snapshot of a newer fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listener {
    /// Unique in its gateway.
    pub id: String,
    /// Its public key, unique in the fleet for ever.
    pub public_key: PublicKey,
    /// The UDP port it listens on.
    pub port: u16,
    /// Which session of a gateway pair it serves; stripe 0 is the one that any peer can use. Both sides speak from
    /// their listener of the same number.
    pub stripe: u16,
    /// The gateway's own slot; set by the broker.
    pub slot: u16,
    /// The slot of the remote gateways that it is for; none: it is for all that have no listener of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_slot: Option<u16>,
    /// Whether new sessions may use it.
    pub state: ListenerState,
    /// Where it may be reached, best first.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub candidates: Vec<SocketAddr>,
}

impl Gateway {
    /// The active listener that a remote gateway of slot `slot` uses for `stripe`.
    pub fn listener(&self, stripe: u16, slot: u16) -> Option<&Listener> {
        let active = |of: Option<u16>| {
            self.listeners.iter().find(|listener| {
                listener.state == ListenerState::Active
                    && listener.stripe == stripe
                    && listener.for_slot == of
            })
        };
        active(Some(slot)).or_else(|| active(None))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(id: &str, for_slot: Option<u16>) -> Listener {
        Listener {
            id: id.to_owned(),
            public_key: PublicKey::from_bytes([7; 32]).unwrap(),
            port: 51820,
            stripe: 0,
            slot: 3,
            for_slot,
            state: ListenerState::Active,
            candidates: vec![],
        }
    }

    #[test]
    fn a_listener_of_before_the_slots_is_for_all_and_looks_as_it_did() {
        let old = r#"{"id":"0","public_key":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","port":51820,"stripe":0,"slot":3,"state":"active","candidates":[]}"#;
        let read: Listener = serde_json::from_str(old).unwrap();
        assert_eq!(read, listener("0", None));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let newer = old.replace("\"stripe\"", "\"weight\":3,\"stripe\"");
        assert_eq!(serde_json::from_str::<Listener>(&newer).unwrap(), read);
    }

    #[test]
    fn a_gateway_of_before_the_leases_looks_as_it_did() {
        let old = r#"{"inner":["198.19.0.1"],"slot":3,"listeners":[]}"#;
        let mut read: Gateway = serde_json::from_str(old).unwrap();
        assert_eq!((read.expired, read.node_addresses.len()), (None, 0));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        read.expired = Some(UnixMillis(7));
        read.node_addresses = vec![[192, 0, 2, 1].into()];
        let new = r#"{"inner":["198.19.0.1"],"slot":3,"listeners":[],"node_addresses":["192.0.2.1"],"expired":7}"#;
        assert_eq!(serde_json::to_string(&read).unwrap(), new);
        assert_eq!(serde_json::from_str::<Gateway>(new).unwrap(), read);
    }

    #[test]
    fn a_slots_own_listener_goes_before_the_one_for_all() {
        let mut gateway = Gateway {
            inner: vec![],
            slot: 3,
            listeners: vec![listener("all", None), listener("one", Some(1))],
            stock: None,
            node_addresses: vec![],
            expired: None,
        };
        let id = |gateway: &Gateway, stripe, slot| {
            let listener = gateway.listener(stripe, slot)?;
            Some(listener.id.clone())
        };
        assert_eq!(id(&gateway, 0, 1).as_deref(), Some("one"));
        assert_eq!(id(&gateway, 0, 0).as_deref(), Some("all"));
        assert_eq!(id(&gateway, 1, 1), None);
        gateway.listeners[1].state = ListenerState::Retiring;
        assert_eq!(id(&gateway, 0, 1).as_deref(), Some("all"));
        gateway.listeners.remove(0);
        assert_eq!(id(&gateway, 0, 1), None);
    }
}
