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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use subsea_api::{Cidr, NodeName, Role};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::control::around::Around;
use crate::control::{ControlError, Server as Control};
use crate::gateway::health_timing::Timing;
use crate::host::{HostError, Reconciler};
use crate::membership::standing;
use crate::membership::{Link, LoadError, chain};
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
mod roll_call;
mod room;
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

pub use self::options::{LastRun, Options};
use self::plane::Plane;
use self::prober::Prober;
use self::room::Room;
use self::server::Nodes;
use self::sight::Sight;
use self::status::Status;
use self::tls::Tls;

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
    note_settings(&options, &link);
    let options = Arc::new(options);
    let nodes = Arc::new(Nodes::default());
    roll_call::recall(&nodes, &link);
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
        Task::spawn("roll-call", roll_call::run(Arc::clone(&room))),
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
        // A task of its own: a disk that the keeper waits for does not keep decisions waiting.
        _ = Task::spawn("plane", plane.run()).join() => {}
        () = stop => {}
        () = shutdown => {}
    }
    drop((open, control));
    drop((tasks, following));
    roll_call::save(&room);
    Ok(())
}

/// For a `leave` that comes when no agent runs.
fn note_settings(options: &Options, link: &Link) {
    if let Err(error) = link.state.write_json(state::AGENT, &LastRun::from(options)) {
        let what = format!(
            "`subsea leave` would not know these settings: {}",
            chain(&error)
        );
        link.problem("settings", Some(what));
    }
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

#[cfg(test)]
mod session_tests;
