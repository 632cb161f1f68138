//! From the status of a gateway to the objects that it shows. PURE.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use subsea_api::{Kind as BlockKind, UnixMillis};

use super::names;
use super::object::{Body, Key, Kind, cut, time};
use crate::control::network::{Obstacle, Severity};
use crate::gateway::status::{
    BrokerState, EchoStatus, MemberStatus, NetworkStatus, PathState, PathStatus, SnapshotSource,
    Status,
};
use crate::kube::resources::{
    Allocation, AllocationKind, BROKER_REACHABLE, ClusterStatus, ConnectionCount, ConnectionSpec,
    ConnectionState, ConnectionStatus, GatewayStatus, NETWORK_COMPATIBLE, READY,
};

/// The longest text of a reason, in bytes.
const TEXT: usize = 1_000;
/// The most blocks of a member that are shown.
const BLOCKS: usize = 1_024;

/// What the gateway of a node cares for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shown {
    /// What it writes.
    pub objects: BTreeMap<Key, Body>,
    /// Its node, as the value of a label.
    pub node: String,
    /// Whether the fleet is known: without it nothing is taken for stale.
    pub known: bool,
    /// Whether it is the one of its cluster that writes what belongs to none of them.
    pub leads: bool,
    /// The nodes of the other gateways of its cluster, as values of labels.
    pub others: BTreeSet<String>,
    /// Those of them that the broker has not heard of for long, and since when.
    pub lost: BTreeMap<String, UnixMillis>,
}

/// What a gateway with this status shows.
pub fn shown(status: &Status, now: UnixMillis) -> Shown {
    let known = status.snapshot.source != SnapshotSource::None;
    let others = status.cluster_gateways.iter();
    let others = others.filter(|gateway| gateway.node != status.node);
    let label = |node: &subsea_api::NodeName| names::label(node.as_str());
    let lost: BTreeMap<String, UnixMillis> = others
        .clone()
        .filter_map(|gateway| Some((label(&gateway.node), gateway.expired?)))
        .collect();
    let leads = leads(status);
    let mut objects = BTreeMap::new();
    objects.insert(
        Key {
            kind: Kind::Gateway,
            name: status.node.to_string(),
        },
        Body::Gateway(gateway(status, now)),
    );
    for path in status.members.iter().flat_map(|member| &member.gateways) {
        let name = names::connection(&status.node, &path.cluster, &path.gateway);
        let spec = ConnectionSpec {
            gateway: status.node.to_string(),
            cluster: path.cluster.to_string(),
            remote_gateway: path.gateway.to_string(),
        };
        let kind = Kind::Connection;
        let body = Body::Connection(spec, connection(path, now));
        objects.insert(Key { kind, name }, body);
    }
    if leads {
        let kind = Kind::Cluster;
        let name = status.cluster.to_string();
        objects.insert(Key { kind, name }, Body::Cluster(own_cluster(status, now)));
        for member in &status.members {
            let name = member.cluster.to_string();
            let body = Body::Cluster(cluster(member, status.revision, now));
            objects.insert(Key { kind, name }, body);
        }
    }
    Shown {
        objects,
        node: label(&status.node),
        known,
        leads,
        others: others.map(|gateway| label(&gateway.node)).collect(),
        lost,
    }
}

/// Whether it is the first live gateway of its cluster, which cares for what belongs to none of them.
pub fn leads(status: &Status) -> bool {
    let known = status.snapshot.source != SnapshotSource::None;
    let live = status.cluster_gateways.iter();
    let mut live = live.filter(|gateway| gateway.expired.is_none());
    known && live.next().is_some_and(|first| first.node == status.node)
}

/// The same once the gateway is stopped.
pub fn stopped(shown: &Shown, now: UnixMillis) -> BTreeMap<Key, Body> {
    let own = shown.objects.iter();
    let own = own.filter(|(key, _)| key.kind != Kind::Cluster);
    own.map(|(key, body)| {
        let body = ended(body, "Stopped", "its gateway was stopped", now);
        (key.clone(), body)
    })
    .collect()
}

/// An object of another gateway of our cluster that the broker has not heard of since `at`.
pub fn lost(body: &Body, at: UnixMillis, now: UnixMillis) -> Body {
    let message = format!(
        "the broker has not heard of this gateway for {} s",
        now.since(at).as_secs()
    );
    ended(body, "Lost", &message, now)
}

/// An object of whose gateway nothing is known any more.
fn ended(body: &Body, reason: &str, message: &str, now: UnixMillis) -> Body {
    let mut body = body.clone();
    match &mut body {
        Body::Connection(_, status) => {
            *status = ConnectionStatus {
                state: ConnectionState::Unknown,
                why: Some(message.to_owned()),
                mtu: status.mtu,
                endpoint: status.endpoint.take(),
                conditions: std::mem::take(&mut status.conditions),
                ..ConnectionStatus::default()
            };
        }
        Body::Gateway(status) => status.connections.ready = 0,
        Body::Cluster(_) => {}
    }
    for condition in body.conditions_mut() {
        let unknown = Verdict::new(None, reason, message);
        *condition = unknown.condition(&condition.type_, now);
    }
    body
}

/// Whether something is so, and why.
struct Verdict {
    holds: Option<bool>,
    reason: String,
    message: String,
}

impl Verdict {
    fn new(holds: Option<bool>, reason: &str, message: impl Into<String>) -> Self {
        Self {
            holds,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    fn yes(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Some(true), reason, message)
    }

    fn no(reason: &str, message: impl Into<String>) -> Self {
        Self::new(Some(false), reason, message)
    }

    fn condition(&self, kind: &str, now: UnixMillis) -> Condition {
        let status = match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.clone(),
            message: cut(&self.message, TEXT),
            last_transition_time: time(now),
            observed_generation: None,
        }
    }
}

fn gateway(status: &Status, now: UnixMillis) -> GatewayStatus {
    let paths = || status.members.iter().flat_map(|member| &member.gateways);
    let ready = paths().filter(|path| is_ready(path)).count();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    GatewayStatus {
        node: status.node.to_string(),
        cluster: status.cluster.to_string(),
        endpoint: status.endpoint.map(|endpoint| endpoint.to_string()),
        public_key: Some(status.public_key.to_string()),
        driver: Some(status.driver.clone()),
        device: Some(status.device.clone()),
        mtu: Some(status.mtu),
        connections: ConnectionCount {
            total: number(paths().count()),
            ready: number(ready),
        },
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        conditions: vec![
            gateway_ready(status).condition(READY, now),
            broker(status).condition(BROKER_REACHABLE, now),
            network(status.network.as_ref()).condition(NETWORK_COMPATIBLE, now),
        ],
    }
}

fn gateway_ready(status: &Status) -> Verdict {
    let kernel = &status.kernel;
    if status.draining {
        return Verdict::no(
            "Draining",
            "it hands its traffic over to the other gateways of its cluster, and is about to stop",
        );
    }
    if status.inward_dead {
        let message = "it does not reach its own cluster, and has itself left out";
        return Verdict::no("InwardDead", message);
    }
    if kernel.last_reconcile.is_none() {
        return Verdict::no(
            "Starting",
            "it has not gone over the kernel of its node yet",
        );
    }
    if !kernel.converged {
        let message = match kernel.problems.as_slice() {
            [] => "the kernel of its node is not as wanted yet".to_owned(),
            problems => problems.join("; "),
        };
        return Verdict::no("KernelNotConverged", message);
    }
    match status.endpoint {
        Some(endpoint) => Verdict::yes("Running", format!("it runs, and is found at {endpoint}")),
        None => Verdict::no("NotRegistered", "the broker has not registered it yet"),
    }
}

fn broker(status: &Status) -> Verdict {
    let broker = &status.broker;
    let error = broker.last_error.clone();
    let error = error.unwrap_or_else(|| "it was not reached yet".to_owned());
    let message = format!("{}: {error}", broker.url);
    match broker.state {
        BrokerState::Connected => Verdict::yes("Connected", format!("{} answers", broker.url)),
        BrokerState::Away => Verdict::no("Away", message),
        BrokerState::Revoked => Verdict::no("Revoked", message),
        BrokerState::NotMember => Verdict::no("NotMember", message),
    }
}

fn network(network: Option<&NetworkStatus>) -> Verdict {
    let Some(network) = network else {
        let message = "the network plugin and the service proxy were not looked at yet";
        return Verdict::new(None, "NotLooked", message);
    };
    let texts = |severity: Severity| {
        let of = network.findings.iter().filter(|f| f.severity == severity);
        of.map(Obstacle::text).collect::<Vec<_>>().join("; ")
    };
    let (blocks, warns) = (texts(Severity::Blocks), texts(Severity::Warns));
    if !blocks.is_empty() {
        return Verdict::no("SettingBlocks", blocks);
    }
    // What could not be read may be in the way.
    if let Some(first) = network.unread.first() {
        return Verdict::new(
            None,
            "Unreadable",
            format!("not all settings can be read: {first}"),
        );
    }
    if !warns.is_empty() {
        return Verdict::yes("SettingWarns", warns);
    }
    let detected = network.plugins.iter().chain(&network.proxy);
    let names: Vec<&str> = detected.map(|d| d.name.as_str()).collect();
    Verdict::yes("NothingInTheWay", names.join("; "))
}

fn connection(path: &PathStatus, now: UnixMillis) -> ConnectionStatus {
    let echo = path.echo.as_ref();
    let smoothed = echo.and_then(|echo| echo.rtt_smoothed_ms);
    ConnectionStatus {
        state: match path.state {
            PathState::Connected => ConnectionState::Connected,
            PathState::Connecting => ConnectionState::Connecting,
            PathState::OneWay => ConnectionState::OneWay,
            PathState::Down => ConnectionState::Down,
            PathState::Unprobed => ConnectionState::Unprobed,
            PathState::Kept => ConnectionState::Kept,
        },
        why: path.why.as_ref().map(|why| cut(why, TEXT)),
        in_use: path.in_use,
        rtt_milliseconds: smoothed
            .filter(|_| path.rtt_ms.is_some())
            .or(path.rtt_ms)
            .map(|ms| rounded(ms, 100.0)),
        loss_percent: echo.map(|echo| rounded(echo.loss_percent, 10.0)),
        mtu: path.path_mtu,
        endpoint: path.endpoint.map(|endpoint| endpoint.to_string()),
        since: Some(time(path.since)),
        conditions: vec![connection_ready(path).condition(READY, now)],
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn is_ready(path: &PathStatus) -> bool {
    connection_ready(path).holds == Some(true)
}

fn connection_ready(path: &PathStatus) -> Verdict {
    let why = |else_: &str| path.why.clone().unwrap_or_else(|| else_.to_owned());
    let says = |flag: fn(&EchoStatus) -> bool| path.echo.as_ref().is_some_and(flag);
    match path.state {
        PathState::Connected if says(|echo| echo.draining) => {
            Verdict::no("Draining", why("its gateway is about to stop"))
        }
        PathState::Connected if says(|echo| echo.inward_dead) => Verdict::no(
            "InwardDead",
            why("its gateway does not reach its own cluster"),
        ),
        PathState::Connected if says(|echo| echo.held_for_ms.is_some()) => {
            Verdict::no("HeldDown", why("it failed lately"))
        }
        PathState::Connected => Verdict::yes("Connected", why("echo goes both ways")),
        PathState::Kept if path.two_way => Verdict::yes("Kept", why("echo goes both ways")),
        PathState::Kept => Verdict::no("KeptSilent", why("it does not answer")),
        PathState::Unprobed if path.two_way => Verdict::yes("Unprobed", why("it answers")),
        PathState::Unprobed => Verdict::no("Silent", why("it does not answer")),
        PathState::OneWay => Verdict::no("OneWay", why("it does not hear us")),
        PathState::Down => Verdict::no("Dead", why("echo stopped")),
        PathState::Connecting if path.endpoint.is_none() => {
            Verdict::no("NoEndpoint", why("it has no endpoint"))
        }
        PathState::Connecting if path.latest_handshake.is_none() => {
            Verdict::no("NoHandshake", why("no handshake yet"))
        }
        PathState::Connecting => Verdict::no("NoEcho", why("no echo came back yet")),
    }
}

fn own_cluster(status: &Status, now: UnixMillis) -> ClusterStatus {
    let mut gateways = status.cluster_gateways.iter();
    let others = gateways.any(|gateway| gateway.node != status.node && gateway.expired.is_none());
    let own = gateway_ready(status);
    let ready = if own.holds == Some(true) || others {
        Verdict::yes("GatewayReady", "a gateway of this cluster is ready")
    } else {
        Verdict::no(
            "NoGatewayReady",
            format!("{}: {}", status.node, own.message),
        )
    };
    ClusterStatus {
        local: true,
        allocations: blocks(&status.allocations),
        gateways: u32::try_from(status.cluster_gateways.len()).unwrap_or(u32::MAX),
        revision: revision(status.revision),
        conditions: vec![ready.condition(READY, now)],
    }
}

fn cluster(member: &MemberStatus, at: Option<u64>, now: UnixMillis) -> ClusterStatus {
    let paths = &member.gateways;
    let ready = match (paths.iter().find(|path| is_ready(path)), paths.first()) {
        (Some(path), _) => Verdict::yes(
            "Connected",
            format!("it is reached through its gateway {}", path.gateway),
        ),
        (None, None) => Verdict::no("NoGateway", "it has registered no gateway"),
        (None, Some(first)) => {
            let verdict = connection_ready(first);
            let whys = paths.iter().map(|path| {
                let verdict = connection_ready(path);
                format!("{}: {}", path.gateway, verdict.message)
            });
            let whys: Vec<String> = whys.take(4).collect();
            Verdict::no(&verdict.reason, whys.join("; "))
        }
    };
    ClusterStatus {
        local: false,
        allocations: blocks(&member.allocations),
        gateways: u32::try_from(paths.len()).unwrap_or(u32::MAX),
        revision: revision(at),
        conditions: vec![ready.condition(READY, now)],
    }
}

fn revision(revision: Option<u64>) -> Option<i64> {
    revision.and_then(|revision| i64::try_from(revision).ok())
}

fn blocks(allocations: &[subsea_api::Allocation]) -> Vec<Allocation> {
    let shown = allocations.iter().map(|allocation| Allocation {
        kind: match allocation.kind {
            BlockKind::Pod => AllocationKind::Pod,
            BlockKind::Service => AllocationKind::Service,
            BlockKind::Node => AllocationKind::Node,
            BlockKind::Infra => AllocationKind::Infra,
            BlockKind::Global => AllocationKind::Global,
        },
        cidr: allocation.cidr.to_string(),
    });
    shown.take(BLOCKS).collect()
}

#[cfg(test)]
#[path = "shown_tests.rs"]
mod tests;
