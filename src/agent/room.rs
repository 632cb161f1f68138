//! What others of this host are answered from: how this agent is, and what is asked of it. Shell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use subsea_api::{Cidr, NodeName, UnixMillis};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::client;
use super::encap::Encap;
use super::options::Options;
use super::plane::{self, Published};
use super::prober::Prober;
use super::server::Nodes;
use super::status::{ClusterStatus, GatewayState, GatewayStatus, NodeStatus, Status};
use super::{mtu, steer};
use crate::control::Answers;
use crate::control::around::Notebook;
use crate::control::feed::Feed;
use crate::gateway::status::KernelStatus;
use crate::membership::standing::SnapshotStatus;
use crate::membership::{Link, certificate};

/// What others of this host are answered from.
pub(super) struct Room {
    pub(super) link: Arc<Link>,
    pub(super) options: Arc<Options>,
    pub(super) started: UnixMillis,
    pub(super) heard: Arc<client::AllHeard>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) prober: Arc<Prober>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) kernel: watch::Receiver<KernelStatus>,
    pub(super) prefixes: watch::Receiver<Vec<Cidr>>,
    pub(super) notes: Notebook,
    pub(super) stop: Notify,
    /// Whether what it has put into the kernel will not stay.
    pub(super) leaves: AtomicBool,
}

impl Room {
    /// Whether there are nodes behind us but those of other gateways, as far as is known.
    pub(super) fn has_nodes(&self) -> bool {
        let gateways = &self.published.borrow().gateways;
        let roster = self.nodes.roster.borrow();
        let mut nodes = roster.nodes().keys();
        nodes.any(|node| !gateways.contains_key(node))
    }

    /// Whether each node behind us was heard lately.
    pub(super) fn alive(&self, now: Duration) -> BTreeMap<NodeName, bool> {
        let heard = self.prober.heard();
        let alive =
            |at: Option<Duration>| at.is_some_and(|at| now.saturating_sub(at) < plane::SILENT);
        heard
            .into_iter()
            .map(|(node, at)| (node, alive(at)))
            .collect()
    }

    fn gateways(&self, published: &Published) -> Vec<GatewayStatus> {
        let now = self.link.clock.now();
        let heard = self.heard.borrow().clone();
        let reports = self.prober.reports(now.mono);
        let of = |(node, gateway): (&NodeName, &steer::Gateway)| {
            let told = heard.get(node);
            let report = reports.get(node);
            let (state, why) = if published.off_link.contains(node) {
                let known = told.and_then(|heard| heard.address);
                (GatewayState::OffLink, Some(off_link(known)))
            } else {
                state_of(gateway, told, report, &self.options)
            };
            GatewayStatus {
                node: node.clone(),
                own: gateway.own,
                address: told.and_then(|heard| heard.address),
                state,
                since: report.map(|report| now.wall_at(report.since)),
                rtt_ms: report
                    .and_then(|r| r.rtt)
                    .map(|rtt| rtt.last.as_secs_f64() * 1e3),
                loss_percent: report.map(|report| report.loss.percent()),
                reaches: gateway
                    .feed
                    .iter()
                    .flat_map(|feed| feed.reaches.keys().cloned())
                    .collect(),
                why,
            }
        };
        published.gateways.iter().map(of).collect()
    }
}

/// Why a gateway on another link is not used.
fn off_link(address: Option<IpAddr>) -> String {
    let address = address.map_or_else(|| "its address".to_owned(), |address| address.to_string());
    format!(
        "{address} is in no network of our link, and `--encap none` sends to nodes on the link only: run the agents of this cluster with `--encap vxlan`, or give the address on the common link by `--node-address` of both"
    )
}

/// How a gateway is, and why no traffic goes to it.
fn state_of(
    gateway: &steer::Gateway,
    told: Option<&client::Heard>,
    report: Option<&crate::gateway::health::Report>,
    options: &Options,
) -> (GatewayState, Option<String>) {
    let because = |state, why: &str| (state, Some(why.to_owned()));
    let (over, passes) = match options.encap {
        Encap::Vxlan => ("the VXLAN", format!("UDP {}", options.vxlan_port)),
        Encap::None => ("the link", format!("UDP {}", options.session_port)),
    };
    let session = told.and_then(|heard| heard.error.clone());
    if !gateway.own && !gateway.reachable {
        if let Some(error) = session {
            let text = format!("no session with the agent of its node: {error}");
            return (GatewayState::Dead, Some(text));
        }
        return match report {
            Some(report) if report.rtt.is_some() => because(
                GatewayState::Dead,
                &format!("no echo comes back over {over}: is its node down, or its link cut?"),
            ),
            Some(_) => because(
                GatewayState::Connecting,
                &format!(
                    "no echo has come back over {over} yet: does {passes} get through both ways?"
                ),
            ),
            None => because(
                GatewayState::Connecting,
                "no session with the agent of its node yet",
            ),
        };
    }
    match &gateway.feed {
        None if gateway.own && options.gateway_socket_dir.is_none() => because(
            GatewayState::NotRunning,
            "this agent was not told where the gateway of its node is: give it `--gateway-state-dir` or `--gateway-socket-dir`",
        ),
        None => because(
            GatewayState::NotRunning,
            "no `subsea gateway` runs on its node",
        ),
        Some(feed) if feed.draining => because(GatewayState::Draining, "it is about to stop"),
        Some(feed) if feed.inward_dead => because(
            GatewayState::InwardDead,
            "it does not reach its own cluster",
        ),
        Some(_) if told.is_some_and(|heard| heard.is_held(Instant::now())) => because(
            GatewayState::Held,
            "its agent has ended, and its kernel goes on: what it said last holds for a moment",
        ),
        Some(_) => (GatewayState::Connected, None),
    }
}

impl Answers for Room {
    type Status = Status;

    fn stop(&self) {
        self.stop.notify_one();
    }

    fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
        self.stop.notify_one();
    }

    fn drain(&self) -> bool {
        false
    }

    fn inward(&self, _dead: Option<bool>) {}

    fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>> {
        None
    }

    fn status(&self) -> Status {
        let link = &self.link;
        let now = link.clock.now();
        let (source, view) = link.known();
        let published = self.published.borrow().clone();
        let alive = self.alive(now.mono);
        let roster = self.nodes.roster.borrow().clone();
        let here = published.gateways.values().any(|gateway| gateway.own);
        // One that has just come is there before a way to it is.
        let others = view.others(&link.membership.cluster);
        let fresh = others.into_iter().filter(|(_, member)| member.current);
        let fresh = fresh.map(|(cluster, _)| ClusterStatus {
            cluster: cluster.clone(),
            gateways: Vec::new(),
            reached: false,
            mtu: None,
        });
        let ways = published.sets.iter().map(|(cluster, set)| {
            let carries = |node: &NodeName| {
                let gateway = published.gateways.get(node);
                gateway.is_some_and(|gateway| gateway.carries(cluster))
            };
            ClusterStatus {
                cluster: cluster.clone(),
                gateways: set.iter().cloned().collect(),
                reached: set.iter().any(carries),
                mtu: published.mtus.get(cluster).copied(),
            }
        });
        let clusters: BTreeMap<_, _> = fresh
            .chain(ways)
            .map(|status| (status.cluster.clone(), status))
            .collect();
        Status {
            fleet: link.membership.fleet.clone(),
            cluster: link.membership.cluster.clone(),
            node: link.membership.node.clone(),
            role: link.membership.role.to_string(),
            pid: std::process::id(),
            started: self.started,
            epoch: view
                .snapshot
                .as_ref()
                .map(|snapshot| snapshot.epoch.clone()),
            revision: view.snapshot.as_ref().map(|snapshot| snapshot.revision),
            broker: link.broker(),
            certificate_expires: certificate::read(&link.certificate.borrow())
                .ok()
                .map(|validity| validity.until),
            snapshot: SnapshotStatus { source },
            address: published.address.map(|(address, _)| address),
            prefixes: self.options.prefixes(&self.prefixes.borrow()),
            device: match self.options.encap {
                Encap::Vxlan => self.options.vxlan.clone(),
                Encap::None => published
                    .links
                    .iter()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(","),
            },
            encap: self.options.encap,
            mtu: mtu::device(self.options.encap, published.address, &published.mtus),
            gateways: self.gateways(&published),
            clusters: clusters.into_values().collect(),
            nodes: roster
                .nodes()
                .iter()
                .filter(|_| here)
                .map(|(name, node)| NodeStatus {
                    node: name.clone(),
                    address: node.address,
                    prefixes: node.prefixes.clone(),
                    alive: alive.get(name).copied().unwrap_or(false),
                })
                .collect(),
            kernel: self.kernel.borrow().clone(),
            network: self.notes.read().network,
            problems: link
                .problems()
                .into_iter()
                .chain(self.notes.read().texts())
                .collect(),
        }
    }
}
