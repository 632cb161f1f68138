//! What `subsea status` shows: the model of a running gateway, stable as JSON. PURE.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use subsea_api::{Allocation, Cidr, ClusterId, FleetName, NodeName, PublicKey, Role, UnixMillis};

pub use crate::control::around::KubernetesStatus;
pub use crate::control::network::NetworkStatus;
pub use crate::membership::standing::{BrokerState, BrokerStatus, SnapshotSource, SnapshotStatus};
use crate::tunnel::{Drop, Feature, StripeStats};

/// A gateway at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The fleet.
    pub fleet: FleetName,
    /// Our cluster.
    pub cluster: ClusterId,
    /// Our node.
    pub node: NodeName,
    /// What our certificate entitles to.
    pub role: Role,
    /// The process.
    pub pid: u32,
    /// Since when it runs.
    pub started: UnixMillis,
    /// Where we told the broker that we listen; none until the first registration.
    pub endpoint: Option<SocketAddr>,
    /// It is about to stop: its traffic goes to the other gateways of its cluster.
    #[serde(default)]
    pub draining: bool,
    /// It does not reach its own cluster, and has itself left out.
    #[serde(default)]
    pub inward_dead: bool,
    /// What we told the broker of our listeners; empty until the first registration.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// The tunnel device; with several, the one that has our addresses.
    pub device: String,
    /// All tunnel devices: the kernel driver has one for each slot.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Its MTU.
    pub mtu: u32,
    /// `userspace` or `kernel`.
    pub driver: String,
    /// What makes the driver faster where the host has it.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// Our WireGuard public key, that of the first listener.
    pub public_key: PublicKey,
    /// The history that `revision` belongs to; none without a snapshot.
    pub epoch: Option<String>,
    /// The revision acted on.
    pub revision: Option<u64>,
    /// How it stands with the broker. Traffic does not depend on it.
    pub broker: BrokerStatus,
    /// When our certificate expires; none when it cannot be read.
    pub certificate_expires: Option<UnixMillis>,
    /// Where the snapshot came from.
    pub snapshot: SnapshotStatus,
    /// The blocks of our cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Allocation>,
    /// The gateways of our cluster, as far as the broker knows them; this one is among them once it is registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_gateways: Vec<ClusterGateway>,
    /// Every other member, by id.
    pub members: Vec<MemberStatus>,
    /// Drops that belong to no peer, by reason.
    pub drops: BTreeMap<Drop, u64>,
    /// Whether the kernel is as wanted.
    pub kernel: KernelStatus,
    /// How it stands with the API server of our own cluster; none outside of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
    /// The network plugin and service proxy of our cluster, and what of them stands in the way; none outside of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// What else needs attention, for example a full disk.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A gateway of our own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterGateway {
    /// Its node.
    pub node: NodeName,
    /// Since when its registration has not been renewed at the broker, if it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<UnixMillis>,
}

/// One of our listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub id: String,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its UDP port on this host.
    pub port: u16,
    /// Where we told the broker that others find it.
    pub endpoint: Option<SocketAddr>,
    /// Its stripe.
    pub stripe: u16,
    /// The slot of the remote gateways that it is for; none: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_slot: Option<u16>,
}

/// Another member of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub cluster: ClusterId,
    /// Its blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Allocation>,
    /// Its gateways; empty when it has registered none.
    pub gateways: Vec<PathStatus>,
}

/// The path to one remote gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "answers to questions that have nothing to do with each other"
)]
pub struct PathStatus {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub gateway: NodeName,
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it is now.
    pub endpoint: Option<SocketAddr>,
    /// How many sessions it may use.
    #[serde(default = "one")]
    pub stripes: u16,
    /// Those beside the first. One that is not alive is not used, and does not matter to `state`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stripe_stats: Vec<StripeStats>,
    /// How the path is.
    pub state: PathState,
    /// Since when.
    pub since: UnixMillis,
    /// When the last handshake was completed.
    pub latest_handshake: Option<UnixMillis>,
    /// The last echo round trip, while it is fresh.
    pub rtt_ms: Option<f64>,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// The largest packet that the underlay takes on the way to it, in bytes: as padded echo found, or as the underlay said
    /// once one was too big.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// Whether larger packets get there all the same, in fragments: with the kernel driver, whose outer packets have no DF.
    /// `false` as well where nobody says how much the underlay takes.
    #[serde(default)]
    pub fragmented: bool,
    /// What echo measured; none where it is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<EchoStatus>,
    /// Whether it carries flows of its cluster now.
    #[serde(default)]
    pub in_use: bool,
    /// Since when its registration has not been renewed at the broker, if it has not: kept while its tunnel answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expired: Option<UnixMillis>,
    /// The blocks that are sent to it now, its inner addresses left out.
    pub cidrs: Vec<Cidr>,
    /// Drops by reason.
    pub drops: BTreeMap<Drop, u64>,
    /// Why it is not connected, with what to look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Whether the peer says that it hears us.
    pub peer_hears_us: bool,
    /// Whether there is a fresh two-way echo, whatever `state` says: true for a kept gateway that still answers. Of a
    /// stock peer: whether its probe address answers, or without one, whether its session is alive.
    #[serde(default)]
    pub two_way: bool,
}

/// What echo measured on a path. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EchoStatus {
    /// Why the path is in its state.
    pub reason: String,
    /// The round trip, smoothed as RFC 6298 does.
    pub rtt_smoothed_ms: Option<f64>,
    /// The shortest.
    pub rtt_min_ms: Option<f64>,
    /// The longest.
    pub rtt_max_ms: Option<f64>,
    /// Its mean deviation.
    pub rtt_deviation_ms: Option<f64>,
    /// Of the last probes, how many were lost.
    pub loss_percent: f64,
    /// Between two probes.
    pub interval_ms: f64,
    /// Within this time a dead path is found.
    pub bound_ms: f64,
    /// It works, and is kept out of use for so long because it failed lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_for_ms: Option<f64>,
    /// Its gateway is about to stop.
    pub draining: bool,
    /// Its gateway does not reach its own cluster.
    pub inward_dead: bool,
    /// It carried traffic in the last minute.
    pub carrying: bool,
}

/// The stripes of a path to or from a gateway that says nothing of them.
fn one() -> u16 {
    1
}

/// How a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathState {
    /// Echo goes both ways, lately.
    Connected,
    /// Not yet.
    Connecting,
    /// We hear it, it does not hear us.
    OneWay,
    /// It was connected, and echo stopped.
    Down,
    /// A stock WireGuard peer, which answers no echo.
    Unprobed,
    /// Missing from the broker's new history; kept for a while.
    Kept,
}

impl PathState {
    /// The state as it stands in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::OneWay => "one-way",
            Self::Down => "down",
            Self::Unprobed => "unprobed",
            Self::Kept => "kept",
        }
    }
}

/// Whether addresses, routes, rules and nftables are as wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Whether the last pass left nothing undone.
    pub converged: bool,
    /// When it ended; none before the first.
    pub last_reconcile: Option<UnixMillis>,
    /// What could not be done or stands in the way.
    pub problems: Vec<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn pods() -> Allocation {
        Allocation {
            kind: subsea_api::Kind::Pod,
            cidr: "10.1.0.0/16".parse().unwrap(),
            exported: true,
        }
    }

    pub(crate) fn example() -> Status {
        let key = PublicKey::from_bytes([7; 32]).unwrap();
        Status {
            fleet: "harbour".parse().unwrap(),
            cluster: "east".parse().unwrap(),
            node: "gw-1".parse().unwrap(),
            role: Role::Member,
            pid: 42,
            started: UnixMillis(1_000),
            endpoint: Some(([192, 0, 2, 1], 51820).into()),
            draining: false,
            inward_dead: false,
            listeners: vec![ListenerStatus {
                id: "k0".to_owned(),
                public_key: key,
                port: 51820,
                endpoint: Some(([192, 0, 2, 1], 51820).into()),
                stripe: 0,
                for_slot: Some(0),
            }],
            device: "subsea0".to_owned(),
            devices: vec!["subsea0".to_owned()],
            mtu: 1420,
            driver: "userspace".to_owned(),
            features: vec![Feature {
                name: "udp-gso".to_owned(),
                active: true,
                reason: None,
            }],
            public_key: key,
            epoch: Some("e1".to_owned()),
            revision: Some(7),
            broker: BrokerStatus {
                state: BrokerState::Away,
                since: UnixMillis(2_000),
                url: "https://192.0.2.9:7443".to_owned(),
                last_error: Some("connection refused".to_owned()),
            },
            certificate_expires: Some(UnixMillis(90_000)),
            snapshot: SnapshotStatus {
                source: SnapshotSource::Disk,
            },
            allocations: vec![pods()],
            cluster_gateways: vec![ClusterGateway {
                node: "gw-1".parse().unwrap(),
                expired: None,
            }],
            members: vec![MemberStatus {
                cluster: "west".parse().unwrap(),
                allocations: Vec::new(),
                gateways: vec![PathStatus {
                    cluster: "west".parse().unwrap(),
                    gateway: "gw-1".parse().unwrap(),
                    public_key: key,
                    endpoint: Some(([192, 0, 2, 2], 51820).into()),
                    stripes: 2,
                    stripe_stats: vec![StripeStats {
                        stripe: 1,
                        endpoint: None,
                        alive: false,
                        rx_bytes: 0,
                        tx_bytes: 1,
                    }],
                    state: PathState::OneWay,
                    since: UnixMillis(3_000),
                    latest_handshake: None,
                    rtt_ms: Some(1.5),
                    rx_bytes: 1,
                    tx_bytes: 2,
                    path_mtu: Some(1300),
                    fragmented: false,
                    echo: Some(EchoStatus {
                        reason: "answered".to_owned(),
                        rtt_smoothed_ms: Some(1.5),
                        rtt_min_ms: Some(1.0),
                        rtt_max_ms: Some(2.0),
                        rtt_deviation_ms: Some(0.5),
                        loss_percent: 0.0,
                        interval_ms: 250.0,
                        bound_ms: 695.0,
                        held_for_ms: None,
                        draining: false,
                        inward_dead: false,
                        carrying: true,
                    }),
                    in_use: true,
                    expired: None,
                    cidrs: vec!["10.32.0.0/16".parse().unwrap()],
                    drops: BTreeMap::from([(Drop::ForeignSource, 3)]),
                    why: Some("we hear it, it does not hear us".to_owned()),
                    peer_hears_us: false,
                    two_way: false,
                }],
            }],
            drops: BTreeMap::from([(Drop::Unknown, 1)]),
            kernel: KernelStatus::default(),
            kubernetes: None,
            network: None,
            problems: Vec::new(),
        }
    }

    #[test]
    fn the_json_is_stable() {
        let mut json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["features"][0]["name"], "udp-gso");
        assert_eq!(json["listeners"][0]["for_slot"], 0);
        assert_eq!(json["broker"]["state"], "away");
        assert_eq!(json["snapshot"]["source"], "disk");
        let path = &json["members"][0]["gateways"][0];
        assert_eq!(path["state"], "one-way");
        assert_eq!(path["drops"]["foreign-source"], 3);
        assert_eq!(path["rtt_ms"], 1.5);
        assert_eq!(path["stripes"], 2);
        assert_eq!(path["path_mtu"], 1300);
        assert_eq!(path["stripe_stats"][0]["alive"], false);
        assert_eq!(
            serde_json::from_value::<Status>(json.clone()).unwrap(),
            example()
        );
        // Of a gateway from before there were several listeners.
        let fields = json.as_object_mut().unwrap();
        fields.remove("listeners");
        fields.remove("features");
        let path = json["members"][0]["gateways"][0].as_object_mut().unwrap();
        path.remove("stripes");
        path.remove("stripe_stats");
        let old: Status = serde_json::from_value(json).unwrap();
        assert!(old.listeners.is_empty() && old.features.is_empty());
        assert_eq!(old.members[0].gateways[0].stripes, 1);
        assert!(old.members[0].gateways[0].stripe_stats.is_empty());
    }
}
