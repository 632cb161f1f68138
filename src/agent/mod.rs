//! The agent daemon, on every node: sends the traffic for other clusters to healthy gateways of its own, and leads what
//! comes from there back the same way. This file wires.
//!
//! ```text
//! broker -> membership -> view -> plane -> keeper -> host (kernel): routes, next-hop groups, VXLAN, roads, guard
//!                                   ^  |
//!    local (gateway of this node) --+  +-> swap: flows, at once
//!    client (sessions with those) --+  +-> prober (echo with the nodes of gateways)
//!    server (sessions of others) ---+
//! ```
//!
//! PURE files decide: [`steer`] which gateways carry what, [`desired`] what the kernel holds, [`turn`] what of that cannot
//! wait, [`roster`] who is behind us, [`names`] what nodes are called, [`encap`] who is on our link, [`window`] what was said before, [`seal`] whether echo is authentic, [`words`] what is said in a session.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use subsea_api::{Cidr, NodeName, Role, UnixMillis};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::control::around::{Around, Notebook};
use crate::control::feed::Feed;
use crate::control::{Answers, ControlError, Server as Control};
use crate::gateway::health_timing::Timing;
use crate::gateway::status::KernelStatus;
use crate::host::{HostError, Reconciler};
use crate::membership::standing::{self, SnapshotStatus};
use crate::membership::{Link, LoadError, certificate, chain};
use crate::net::netlink::NetlinkError;
use crate::state::{self, StateDir, StateError};
use crate::task::Task;

mod client;
pub mod desired;
pub mod encap;
mod farewell;
mod inward;
mod keeper;
mod local;
pub mod mtu;
pub mod names;
pub mod options;
mod plane;
mod prober;
pub mod roster;
pub mod seal;
mod server;
mod sight;
pub mod status;
pub mod steer;
mod tls;
pub mod turn;
pub mod window;
pub mod words;

use self::encap::Encap;
pub use self::options::{LastRun, Options};
use self::plane::{Plane, Published};
use self::prober::Prober;
use self::server::Nodes;
use self::sight::Sight;
use self::status::{ClusterStatus, GatewayState, GatewayStatus, NodeStatus, Status};
use self::tls::Tls;

/// How often the roster is looked at: who lives, who is forgotten, what is to be saved.
const ROLL_CALL: Duration = Duration::from_secs(5);
/// Who is new is saved so soon, with those who come meanwhile: an agent that crashes leaves them in the kernel, and the next one
/// must know whose that is.
const SAVE: Duration = Duration::from_millis(200);
/// The nodes behind us, in the state directory.
const NODES: &str = state::NODES;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state directory belongs to no member.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The state directory belongs to another kind of daemon.
    #[error("the state directory belongs to a node of role {0}, which runs no agent")]
    Role(Role),
    /// The node enrolled by another name.
    #[error("this node enrolled as `{enrolled}`, not as `{asked}`")]
    Node {
        /// As its certificate says.
        enrolled: NodeName,
        /// As it was asked to be.
        asked: NodeName,
    },
    /// The kernel cannot be asked.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl AgentError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State(error) => error.hint(),
            Self::Load(error) => error.hint(),
            Self::Role(_) => Some(
                "enrol an agent with a token of role `agent`, in a state directory of its own"
                    .to_owned(),
            ),
            Self::Node { enrolled, .. } => Some(format!(
                "leave `--node` out, or enrol again by that name after `subsea leave`; as it is, this is `{enrolled}`"
            )),
            Self::Host(HostError::Settings { .. }) => Some(
                "give other values by `--vxlan-device`, `--table`, `--rule-pref` and `--mark`"
                    .to_owned(),
            ),
            Self::Host(_) | Self::Netlink(_) => {
                Some("run it as root, or with CAP_NET_ADMIN and CAP_NET_RAW".to_owned())
            }
            Self::Control(_) => Some(
                "`subsea status --state-dir DIR` tells whether one runs with this state directory already"
                    .to_owned(),
            ),
        }
    }
}

/// Runs an agent until `shutdown`, or until somebody asks it to stop. What it put into the kernel stays there and carries
/// traffic; `subsea leave` takes it out. While it runs, the door of `around` leads to it. `prefixes` are blocks of this node's
/// pods beside those of the options, and may change at any time.
///
/// # Errors
/// [`AgentError`] when it cannot start. Once it runs, nothing that others or the disk do ends it.
pub async fn run(
    options: Options,
    around: Around<Status>,
    prefixes: watch::Receiver<Vec<Cidr>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let state = StateDir::open(&options.state_dir)?;
    let _lock = state.lock()?;
    run_in(state, options, around, prefixes, shutdown).await
}

/// The same in a state directory that the caller owns.
///
/// # Errors
/// As [`run`].
pub async fn run_in(
    state: StateDir,
    options: Options,
    around: Around<Status>,
    prefixes: watch::Receiver<Vec<Cidr>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let (link, fleet) = Link::load(state, options.mark.value & options.mark.mask)?;
    let link = Arc::new(link);
    let member = &link.membership;
    if member.role != Role::Agent {
        return Err(AgentError::Role(member.role));
    }
    if let Some(asked) = options.node.clone().filter(|asked| *asked != member.node) {
        let enrolled = member.node.clone();
        return Err(AgentError::Node { enrolled, asked });
    }
    if let Err(error) = link
        .state
        .write_json(state::AGENT, &LastRun::from(&options))
    {
        let what = format!(
            "`subsea leave` would not know these settings: {}",
            chain(&error)
        );
        link.problem("settings", Some(what));
    }
    let options = Arc::new(options);
    let nodes = Arc::new(Nodes::default());
    match link.state.read_json(NODES) {
        Ok(known) => drop(nodes.roster.send_replace(known.unwrap_or_default())),
        Err(error) => link.problem("nodes", Some(chain(&error))),
    }
    let tls = watch::Sender::new(None);
    let own = watch::Sender::new(None);
    let prober = Arc::new(Prober::start(link.clock, Timing::every(options.interval)));
    let reconciler = reconciler(&options, &link)?;
    let seen = watch::Sender::new(0);
    let plane = Plane {
        link: Arc::clone(&link),
        options: Arc::clone(&options),
        tls: tls.subscribe(),
        heard: Arc::default(),
        nodes: Arc::clone(&nodes),
        own: own.subscribe(),
        prefixes: prefixes.clone(),
        prober: Arc::clone(&prober),
        swap: reconciler.swap(),
        wanted: watch::Sender::new(None),
        seen: seen.subscribe(),
        publish: watch::Sender::default(),
        sessions: BTreeMap::new(),
        sets: BTreeMap::new(),
        sight: Sight::open()?,
        known: None,
        started: Instant::now(),
        number: 0,
    };
    let kernel = watch::Sender::default();
    let room = Arc::new(Room {
        link: Arc::clone(&link),
        options: Arc::clone(&options),
        started: link.clock.now().wall,
        heard: Arc::clone(&plane.heard),
        nodes: Arc::clone(&nodes),
        prober: Arc::clone(&prober),
        published: plane.publish.subscribe(),
        kernel: kernel.subscribe(),
        prefixes,
        notes: around.notes,
        stop: Notify::new(),
        leaves: AtomicBool::new(false),
    });
    let control = Control::start(&link.state.socket_path(), Arc::clone(&room))?;
    let open = around.door.open(Arc::clone(&room) as _);
    let following = link.follow(fleet);
    let mut tasks = vec![
        Task::spawn(
            "sessions",
            serve(Arc::clone(&room), tls.subscribe(), own.subscribe()),
        ),
        Task::spawn("roll-call", roll_call(Arc::clone(&room))),
        Task::spawn("certificate", keep_tls(Arc::clone(&link), tls)),
    ];
    let own_gateway = own.subscribe();
    let mut inward = None;
    if let Some(dir) = options.gateway_socket_dir.clone() {
        let tells = inward::run(dir.clone(), Arc::clone(&room), own.subscribe());
        inward = Some(Task::spawn("inward", tells));
        tasks.push(Task::spawn("local", local::run(dir, own)));
    }
    let shutdown = async {
        shutdown.await;
        farewell::outlive(own_gateway).await;
        tracing::info!("stopping");
    };
    let stop = async {
        room.stop.notified().await;
        tracing::info!("asked to stop");
        drop(inward.take());
        let leaves = room.leaves.load(Ordering::Relaxed) && room.has_nodes();
        if let Some(dir) = options.gateway_socket_dir.as_ref().filter(|_| leaves) {
            farewell::resign(dir).await;
        }
    };
    tracing::info!(cluster = %link.membership.cluster, node = %link.membership.node, "agent runs");
    let wanted = plane.wanted.subscribe();
    tokio::select! {
        () = keeper::run(&link, reconciler, wanted, seen, kernel) => {}
        () = plane.run() => {}
        () = stop => {}
        () = shutdown => {}
    }
    drop((open, control));
    drop((tasks, following));
    save(&room);
    Ok(())
}

fn reconciler(options: &Options, link: &Arc<Link>) -> Result<Reconciler, HostError> {
    let settings = LastRun::from(options).settings();
    let saved = link.state.read_json(state::SYSCTL).unwrap_or_else(|error| {
        link.problem("sysctl", Some(chain(&error)));
        None
    });
    let state = link.state.clone();
    let persist = Box::new(move |saved: &_| {
        state
            .write_json(state::SYSCTL, saved)
            .map_err(|error| chain(&error))
    });
    Ok(Reconciler::new(settings)?.with_saved_sysctls(saved.unwrap_or_default(), persist))
}

/// Makes TLS of the newest certificate and the fleet's newest authorities.
async fn keep_tls(link: Arc<Link>, tls: watch::Sender<Option<Tls>>) {
    let mut certificate = link.certificate.subscribe();
    let mut view = link.view.subscribe();
    let mut made = None;
    loop {
        let pem = certificate.borrow_and_update().clone();
        let snapshot = view.borrow_and_update().snapshot.clone();
        let last = snapshot.as_ref().map(|snapshot| &snapshot.broker);
        let ca = standing::broker(last, &link.membership.broker).ca_pem;
        if made.as_ref() != Some(&(pem.clone(), ca.clone())) {
            match Tls::new(&ca, &pem, link.tls_key()) {
                Ok(new) => {
                    tls.send_replace(Some(new));
                    link.problem("tls", None);
                    made = Some((pem, ca));
                }
                Err(error) => link.problem("tls", Some(chain(&error))),
            }
        }
        tokio::select! {
            Ok(()) = certificate.changed() => {}
            Ok(()) = view.changed() => {}
        }
    }
}

/// Accepts the agents of other nodes while this is a gateway's node and our address is known.
async fn serve(
    room: Arc<Room>,
    tls: watch::Receiver<Option<Tls>>,
    own: watch::Receiver<local::Own>,
) {
    let mut published = room.published.clone();
    let mut serving: Option<(std::net::SocketAddr, Task)> = None;
    let started = Instant::now();
    loop {
        // A word that there is no gateway here would move flows: it is waited for until it has spoken.
        let knows = room.options.gateway_socket_dir.is_none()
            || own.borrow().is_some()
            || started.elapsed() >= plane::GRACE;
        let wanted = {
            let published = published.borrow_and_update();
            let here = published.gateways.values().any(|gateway| gateway.own);
            let here = here && (knows || serving.is_some());
            let address = published.address.filter(|_| here);
            address.map(|(address, _)| (address, room.options.session_port).into())
        };
        if serving.as_ref().map(|(at, _)| *at) != wanted {
            serving = wanted.map(|listen| {
                let server = server::Server {
                    link: Arc::clone(&room.link),
                    tls: tls.clone(),
                    own: own.clone(),
                    nodes: Arc::clone(&room.nodes),
                    listen,
                    encap: room.options.encap,
                };
                (listen, Task::spawn("sessions", server.run()))
            });
        }
        tokio::select! {
            changed = published.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(plane::GRACE), if !knows => {}
        }
    }
}

/// Notes who lives, forgets who has not for long, and saves what a restart needs.
async fn roll_call(room: Arc<Room>) {
    let mut roster = room.nodes.roster.subscribe();
    let mut next = Instant::now() + ROLL_CALL;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => next = Instant::now() + ROLL_CALL,
            Ok(()) = roster.changed() => {
                tokio::time::sleep(SAVE).await;
                save(&room);
                continue;
            }
        }
        let now = room.link.clock.now();
        let alive = room.alive(now.mono);
        let with_session = room.nodes.with_session();
        room.nodes.roster.send_if_modified(|roster| {
            // Also one whose echo does not get through: it may yet.
            for node in &with_session {
                roster.hear(node, now.wall);
            }
            for (node, _) in alive.iter().filter(|(_, alive)| **alive) {
                roster.hear(node, now.wall);
            }
            roster.forget(now.wall)
        });
        let roster = room.nodes.roster.borrow().clone();
        room.nodes.seals.send_if_modified(|seals| {
            let before = seals.len();
            seals.retain(|node, _| roster.nodes().contains_key(node));
            seals.len() != before
        });
        save(&room);
    }
}

fn save(room: &Room) {
    let roster = room.nodes.roster.borrow().clone();
    let saved = room.link.state.write_json(NODES, &roster);
    let problem = saved.err().map(|error| {
        format!(
            "the nodes behind us could not be saved for a restart: {}",
            chain(&error)
        )
    });
    room.link.problem("nodes", problem);
}

/// What others of this host are answered from.
struct Room {
    link: Arc<Link>,
    options: Arc<Options>,
    started: UnixMillis,
    heard: Arc<client::AllHeard>,
    nodes: Arc<Nodes>,
    prober: Arc<Prober>,
    published: watch::Receiver<Published>,
    kernel: watch::Receiver<KernelStatus>,
    prefixes: watch::Receiver<Vec<Cidr>>,
    notes: Notebook,
    stop: Notify,
    /// Whether what it has put into the kernel will not stay.
    leaves: AtomicBool,
}

impl Room {
    /// Whether there are nodes behind us but those of other gateways, as far as is known.
    fn has_nodes(&self) -> bool {
        let gateways = &self.published.borrow().gateways;
        let roster = self.nodes.roster.borrow();
        let mut nodes = roster.nodes().keys();
        nodes.any(|node| !gateways.contains_key(node))
    }

    /// Whether each node behind us was heard lately.
    fn alive(&self, now: Duration) -> BTreeMap<NodeName, bool> {
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
        let view = link.view.borrow().clone();
        let published = self.published.borrow().clone();
        let alive = self.alive(now.mono);
        let roster = self.nodes.roster.borrow().clone();
        let here = published.gateways.values().any(|gateway| gateway.own);
        let clusters = published.sets.iter().map(|(cluster, set)| {
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
            snapshot: SnapshotStatus {
                source: *link.source.borrow(),
            },
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
            clusters: clusters.collect(),
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

#[cfg(test)]
mod session_tests;
