//! The custom resources by which a cluster shows its part of the fleet to `kubectl`, group `subsea.dev`. PURE.
//!
//! The daemons write them; nobody acts on them. What stands here in the comments of fields is what `kubectl explain`
//! shows. `manifests/cluster/crds.yaml` is printed from these types: see [`definitions`].

#![expect(
    clippy::duplicated_attributes,
    reason = "columns of the same type are no mistake"
)]

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::labels;

/// The group of the resources.
pub const GROUP: &str = "subsea.dev";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// The condition that all three have.
pub const READY: &str = "Ready";
/// The condition of a gateway that tells whether its broker answers.
pub const BROKER_REACHABLE: &str = "BrokerReachable";
/// The condition of a gateway that tells whether a setting of the network plugin or service proxy stands in the way.
pub const NETWORK_COMPATIBLE: &str = "NetworkCompatible";

/// Empty: what there is to say stands in the status
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "subsea.dev",
    version = "v1alpha1",
    kind = "Cluster",
    status = "ClusterStatus",
    derive = "PartialEq",
    category = "subsea",
    shortname = "sscl",
    doc = "A member of the fleet, as this cluster knows it. Written by the gateways of this cluster; changes by others have no effect.",
    printcolumn(name = "Local", type_ = "boolean", json_path = ".status.local"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Gateways", type_ = "integer", json_path = ".status.gateways"),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = r#".status.allocations[?(@.kind=="pod")].cidr"#
    ),
    printcolumn(
        name = "Services",
        type_ = "string",
        json_path = r#".status.allocations[?(@.kind=="service")].cidr"#
    ),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.revision",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct ClusterSpec {}

/// What is known of a member
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Whether this is the cluster that the object is in.
    pub local: bool,
    /// The address blocks that belong to it in the fleet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub allocations: Vec<Allocation>,
    /// How many gateways it has registered.
    #[schemars(range(min = 0))]
    pub gateways: u32,
    /// The revision of the fleet that this was written from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub revision: Option<i64>,
    /// `Ready`: the cluster is reached through at least one connection; of the local one, it has a gateway that is ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// An address block that is owned in the fleet
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// What it is for.
    pub kind: AllocationKind,
    /// The block, such as 10.32.0.0/16.
    #[schemars(length(min = 1, max = 43))]
    pub cidr: String,
}

/// What an address block is for.
// No comments on the variants: they would make `oneOf` of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of `subsea_api::Kind`")]
pub enum AllocationKind {
    Pod,
    Service,
    Node,
    Infra,
    Global,
}

/// Empty: what there is to say stands in the status
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "subsea.dev",
    version = "v1alpha1",
    kind = "Gateway",
    status = "GatewayStatus",
    derive = "PartialEq",
    category = "subsea",
    shortname = "ssgw",
    doc = "A gateway of this cluster, named after its node. Written by that gateway; changes by others have no effect.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(
        name = "Broker",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="BrokerReachable")].status"#
    ),
    printcolumn(
        name = "Connections",
        type_ = "integer",
        json_path = ".status.connections.total"
    ),
    printcolumn(
        name = "Up",
        type_ = "integer",
        json_path = ".status.connections.ready"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.driver"),
    printcolumn(
        name = "MTU",
        type_ = "integer",
        json_path = ".status.mtu",
        priority = 1
    ),
    printcolumn(
        name = "Network",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="NetworkCompatible")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct GatewaySpec {}

/// How a gateway is
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Its node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// Its cluster, the one that the object is in.
    #[schemars(length(min = 1, max = 32))]
    pub cluster: String,
    /// Where gateways of other clusters find it, as the broker was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub endpoint: Option<String>,
    /// Its WireGuard public key, that of its first listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 44))]
    pub public_key: Option<String>,
    /// Its data plane: userspace or kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub driver: Option<String>,
    /// Its tunnel device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub device: Option<String>,
    /// The MTU of the tunnel device, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: Option<u32>,
    /// Its connections.
    #[serde(default)]
    pub connections: ConnectionCount,
    /// The version of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// `Ready`: it has an endpoint, and the kernel of its node is as it wants it. `BrokerReachable`: the broker answers;
    /// traffic does not depend on that. `NetworkCompatible`: no setting of the network plugin or service proxy is known to
    /// stand in the way; with reason `SettingWarns` one may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// How many connections a gateway has
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionCount {
    /// To gateways of other clusters.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: u32,
    /// Of these, how many carry packets both ways.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready: u32,
}

/// Between which gateways a connection is
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "subsea.dev",
    version = "v1alpha1",
    kind = "Connection",
    status = "ConnectionStatus",
    derive = "PartialEq",
    category = "subsea",
    shortname = "ssconn",
    doc = "The tunnel from a gateway of this cluster to one of another cluster. Written by the gateway of this cluster; changes by others have no effect.",
    selectable = ".spec.gateway",
    selectable = ".spec.cluster",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(name = "Remote", type_ = "string", json_path = ".spec.remoteGateway"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "RTT",
        type_ = "number",
        json_path = ".status.rttMilliseconds",
        description = "Milliseconds"
    ),
    printcolumn(
        name = "Loss",
        type_ = "number",
        json_path = ".status.lossPercent",
        description = "Per cent of the last probes"
    ),
    printcolumn(
        name = "MTU",
        type_ = "integer",
        json_path = ".status.mtu",
        description = "The largest packet on the way, in bytes"
    ),
    printcolumn(
        name = "In use",
        type_ = "boolean",
        json_path = ".status.inUse",
        priority = 1
    ),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".status.endpoint",
        priority = 1
    ),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.why",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionSpec {
    /// The node of the gateway of this cluster.
    #[schemars(length(min = 1, max = 253))]
    pub gateway: String,
    /// The other cluster.
    #[schemars(length(min = 1, max = 32))]
    pub cluster: String,
    /// The node of the other cluster's gateway.
    #[schemars(length(min = 1, max = 253))]
    pub remote_gateway: String,
}

/// How a connection is
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionStatus {
    /// connected: echo goes both ways, lately. connecting: not yet. one-way: the other side is heard, and does not hear us.
    /// down: it was connected, and echo stopped. unprobed: a plain WireGuard peer that answers no echo. kept: the broker
    /// does not know it any more, and it is kept for a while. unknown: its gateway does not run, or says nothing.
    pub state: ConnectionState,
    /// Why it is not connected, with what to look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub why: Option<String>,
    /// Whether it carries flows of its cluster now.
    #[serde(default)]
    pub in_use: bool,
    /// The round trip through the tunnel, smoothed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub rtt_milliseconds: Option<f64>,
    /// How many of the last probes were lost, in per cent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub loss_percent: Option<f64>,
    /// The largest packet that the underlay takes on the way, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub mtu: Option<u32>,
    /// Where the other gateway is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub endpoint: Option<String>,
    /// Since when it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// `Ready`: packets pass both ways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// How a connection is, in the words of `subsea status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(
    missing_docs,
    reason = "the names are those of `PathState`, and `unknown` of a gateway that says nothing"
)]
pub enum ConnectionState {
    Connected,
    #[default]
    Connecting,
    OneWay,
    Down,
    Unprobed,
    Kept,
    Unknown,
}

/// The definitions of the three, as they are installed.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Cluster::crd(), Gateway::crd(), Connection::crd()];
    for definition in &mut all {
        let ours = labels::ours().map(|(key, value)| (key.to_owned(), value.to_owned()));
        definition.metadata.labels = Some(BTreeMap::from(ours));
    }
    all
}
