//! What `subsea status` shows of an agent, stable as JSON. PURE.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, ClusterId, FleetName, NodeName, UnixMillis};

use super::encap::Encap;
use crate::control::network::NetworkStatus;
use crate::gateway::status::KernelStatus;
use crate::membership::standing::{BrokerStatus, SnapshotStatus};

/// An agent at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The fleet.
    pub fleet: FleetName,
    /// Our cluster.
    pub cluster: ClusterId,
    /// Our node.
    pub node: NodeName,
    /// Always `agent`: what tells this from the status of a gateway.
    pub role: String,
    /// The process.
    pub pid: u32,
    /// Since when it runs.
    pub started: UnixMillis,
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
    /// Our address on the nodes' network; none while it is not known.
    pub address: Option<IpAddr>,
    /// The blocks of our pods.
    pub prefixes: Vec<Cidr>,
    /// The VXLAN device; without VXLAN the link.
    pub device: String,
    /// How packets get to other nodes.
    #[serde(default)]
    pub encap: Encap,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The gateways of our cluster.
    pub gateways: Vec<GatewayStatus>,
    /// The other clusters, and who carries their traffic.
    pub clusters: Vec<ClusterStatus>,
    /// The nodes behind the gateway of this node; empty where there is none.
    pub nodes: Vec<NodeStatus>,
    /// Whether the kernel is as wanted.
    pub kernel: KernelStatus,
    /// The network plugin and service proxy as this node's kernel shows them, and what of them stands in the way; none outside
    /// of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStatus>,
    /// What else needs attention.
    pub problems: Vec<String>,
}

/// A gateway of our cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Its node.
    pub node: NodeName,
    /// Whether that is this node.
    pub own: bool,
    /// Where its agent is; none for our own.
    pub address: Option<IpAddr>,
    /// How the way to it is.
    pub state: GatewayState,
    /// Since when echo says so.
    pub since: Option<UnixMillis>,
    /// The last round trip of the echo.
    pub rtt_ms: Option<f64>,
    /// The share of lost echo, in percent.
    pub loss_percent: Option<f64>,
    /// The clusters that it says it reaches.
    pub reaches: Vec<ClusterId>,
    /// Why no traffic goes to it, with what to look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a gateway of our cluster is, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayState {
    /// Echo goes both ways, and the gateway runs.
    Connected,
    /// Nothing is known of it yet.
    Connecting,
    /// Echo with its node stopped.
    Dead,
    /// It is not on our link, and nothing encapsulates.
    OffLink,
    /// Its node is there; no gateway runs on it.
    NotRunning,
    /// It is about to stop.
    Draining,
    /// It does not reach its own cluster.
    InwardDead,
    /// The agent of its node has ended a moment ago. It is used as before.
    Held,
}

impl GatewayState {
    /// The state as it stands in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Dead => "dead",
            Self::OffLink => "off-link",
            Self::NotRunning => "not-running",
            Self::Draining => "draining",
            Self::InwardDead => "inward-dead",
            Self::Held => "held",
        }
    }
}

/// Another cluster, and who carries the traffic to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Which.
    pub cluster: ClusterId,
    /// The nodes of the gateways that carry it.
    pub gateways: Vec<NodeName>,
    /// Whether one of them says that it reaches the cluster; else these are the last good ones.
    pub reached: bool,
    /// The largest packet that gets there whole, in bytes, as the gateways say.
    pub mtu: Option<u32>,
}

/// A node behind the gateway of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeName,
    /// Its address on the nodes' network.
    pub address: IpAddr,
    /// The blocks of its pods.
    pub prefixes: Vec<Cidr>,
    /// Whether its echo came lately.
    pub alive: bool,
}
