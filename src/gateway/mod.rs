//! The gateway daemon: keeps the tunnels, the kernel and the broker's records as the fleet's snapshot says.
//!
//! This file wires. Each task has one purpose, and they meet in watched values:
//!
//! ```text
//! broker -> membership -> view -> plane -> tunnel, host (kernel), prober (echo)
//!                          |                              |
//!                          +-> registrar                  +-> usable paths -> plane
//! ```
//!
//! PURE files decide: [`mesh`] who our peers are, [`health`] whether a path works, [`listeners`] where we listen,
//! [`registration`] when to tell the broker, [`describe`] what to show.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use subsea_api::Role;
use subsea_api::key::KeyError;
use tokio::sync::{Notify, watch};

use crate::control::around::{Around, Notebook};
use crate::control::feed::Feed;
use crate::control::{Answers, ControlError, Server};
use crate::host::{self, HostError, Reconciler};
use crate::membership::clock::wall;
use crate::membership::fleet::{Fleet, Member};
use crate::membership::{Link, LoadError, certificate, saver};
use crate::net::tun::TunError;
use crate::net::wireguard::WireguardError;
use crate::state::{self, StateDir, StateError};
use crate::task::Task;
use crate::tunnel::Tunnel;
use crate::tunnel::userspace::TunnelError;

pub mod budget;
pub mod describe;
pub mod devices;
mod drain;
mod driver;
pub mod echo;
pub mod health;
pub mod health_hold;
pub mod health_report;
pub mod health_stats;
pub mod health_timing;
mod hearsay;
pub mod icmp;
pub mod inward;
mod inward_pinger;
mod keyring;
mod lanes;
mod lease;
pub mod listeners;
pub mod mesh;
pub mod mtu;
pub mod options;
mod path_mtu;
mod pilot;
mod pinger;
mod plane;
mod prober;
mod prober_door;
pub mod prober_paths;
mod registrar;
pub mod registration;
mod shared;
pub mod spread;
pub mod status;
pub mod steering;

pub use options::{Driver, LastRun, Mark, Options, Stripes};

use self::echo::Flags;
use self::health_timing::Timing;
use self::inward_pinger::InwardPinger;
use self::keyring::Keyring;
use self::listeners::Listening;
use self::pilot::Pilot;
use self::pinger::Pinger;
use self::plane::{Doors, Keys, Plane, Published};
use self::prober::Prober;
use self::shared::{Shared, chain, set};
use self::status::{MemberStatus, SnapshotStatus, Status};

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state directory belongs to no member.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The state directory belongs to another kind of daemon.
    #[error("the state directory belongs to a node of role {0}, which runs no gateway")]
    Role(Role),
    /// The WireGuard key is unusable.
    #[error("the WireGuard private key cannot be used")]
    Key(#[source] KeyError),
    /// No tunnel device.
    #[error(transparent)]
    Device(#[from] TunError),
    /// No tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// No WireGuard in the kernel, or none that can be used.
    #[error("the kernel driver cannot be used: {0}")]
    Wireguard(#[source] WireguardError),
    /// The kernel cannot be asked.
    #[error(transparent)]
    Kernel(#[from] HostError),
    /// No control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The runtime is shutting down.
    #[error("the process is ending")]
    Ending(#[source] tokio::task::JoinError),
}

impl GatewayError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State(error) => error.hint(),
            Self::Load(error) => error.hint(),
            Self::Role(_) => {
                Some("enrol a gateway with a token of role `member` or `gateway`".to_owned())
            }
            Self::Wireguard(error) => error.hint(),
            Self::Key(_)
            | Self::Device(_)
            | Self::Tunnel(_)
            | Self::Kernel(_)
            | Self::Control(_)
            | Self::Ending(_) => None,
        }
    }
}

/// Runs a gateway until `shutdown`, or until somebody asks it to stop. What it put into the kernel stays there, so
/// that nothing leaves in clear while no gateway runs; `subsea leave` takes it out. While it runs, the door of `around` leads
/// to it.
///
/// # Errors
/// [`GatewayError`] when it cannot start. Once it runs, nothing that the broker, a peer or the disk does ends it.
pub async fn run(
    options: Options,
    around: Around<Status>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    let state = StateDir::open(&options.state_dir)?;
    let _lock = state.lock()?;
    run_in(state, options, around, shutdown).await
}

/// The same in a state directory that the caller owns.
///
/// # Errors
/// As [`run`].
pub async fn run_in(
    state: StateDir,
    options: Options,
    around: Around<Status>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    let (shared, fleet) = load(state, options)?;
    let start = shared.link.view.borrow().clone();

    let (tunnel, reconciler) = open_kernel(&shared).await?;
    let clock = shared.link.clock;
    let flags = watch::Sender::new(Flags::default());
    let carries = watch::Sender::new(None);
    let keys = Keys::default();
    let pilot = Arc::new(Pilot::new(reconciler.swap(), Arc::clone(&tunnel)));
    let prober = Arc::new(Prober::start(prober::Settings {
        clock,
        timing: Timing::every(shared.options.probe_interval),
        own: flags.subscribe(),
        carrying: carries.subscribe(),
        steer: hearsay::steerer(Arc::clone(&pilot), Arc::clone(&tunnel), keys.clone()),
    }));
    // Who has a directory for it has an agent: one that never says a word is doubted like one that says none any more.
    let expected = shared.options.socket_dir.is_some();
    let told = watch::Sender::new(expected.then(|| (false, clock.now().mono)));
    let inward = shared.options.inward_probes.clone();
    let _inward = InwardPinger::start(clock, &inward, flags.clone());
    let pinger = Arc::new(Pinger::start(clock, pinger::STOCK));
    let feed = watch::Sender::default();
    let refusals = hearsay::heed_refusals(Arc::clone(&tunnel), keys.clone(), Arc::clone(&prober));
    let doors = Doors {
        tunnel: Arc::clone(&tunnel),
        prober: Arc::clone(&prober),
        pilot,
        pinger: Arc::clone(&pinger),
        keys,
        flags: flags.subscribe(),
        carries,
        feed: feed.clone(),
    };
    let plane = Plane::new(Arc::clone(&shared), doors, reconciler)?;

    let room = Room {
        shared: Arc::clone(&shared),
        tunnel,
        prober,
        pinger,
        published: plane.published(),
        feed,
        notes: around.notes,
        flags: flags.clone(),
        told: told.clone(),
        stop: Notify::new(),
        drain: Notify::new(),
    };
    let stripes = room.tunnel.stripes();
    let room = Arc::new(room);
    let state = &shared.link.state;
    let socket = match &shared.options.socket_dir {
        Some(dir) => state.lead_socket_to(dir)?,
        None => state.socket_path(),
    };
    let server = Server::start(&socket, Arc::clone(&room))?;
    let open = around.door.open(Arc::clone(&room) as _);
    let following = shared.link.follow(fleet);
    let tasks = [
        Task::spawn("register", registrar::run(Arc::clone(&shared))),
        Task::spawn("stripes", registrar::follow(Arc::clone(&shared), stripes)),
        Task::spawn("refusals", refusals),
        Task::spawn(
            "told",
            hearsay::heed_agent(Arc::clone(&shared), told.subscribe(), flags),
        ),
    ];
    tracing::info!(cluster = %shared.link.membership.cluster, node = %shared.link.membership.node, "gateway runs");
    let mut draining = false;
    let mut caring = std::pin::pin!(plane.run());
    tokio::select! {
        () = &mut caring => {}
        () = room.stop.notified() => tracing::info!("asked to stop"),
        () = room.drain.notified() => draining = true,
        () = shutdown => draining = true,
    }
    if draining {
        // Everything goes on meanwhile; whoever is in a hurry says stop.
        tokio::select! {
            () = room.drained() => tracing::info!("stopping"),
            () = room.stop.notified() => tracing::info!("asked to stop"),
            () = &mut caring => {}
        }
    }
    drop((open, server));
    drop((tasks, following));
    let last = shared.link.view.borrow().clone();
    if let Err(error) = saver::save(&shared.link, &start, &last).await {
        tracing::warn!(error = chain(&error), "the fleet was not saved");
    }
    Ok(())
}

/// Takes from the disk all that there is.
fn load(state: StateDir, options: Options) -> Result<(Arc<Shared>, Fleet), GatewayError> {
    let (link, fleet) = Link::load(state, options.mark.value & options.mark.mask)?;
    let link = Arc::new(link);
    if !link.membership.role.may_write() {
        return Err(GatewayError::Role(link.membership.role));
    }
    let keys = Keyring::open(link.state.clone())?;
    let last = LastRun::from(&options);
    let noted = match link.state.read_json::<LastRun>(state::GATEWAY) {
        Ok(Some(before)) if before == last => Ok(()),
        Ok(_) | Err(_) => link.state.write_json(state::GATEWAY, &last),
    };
    if let Err(error) = noted {
        let what = format!(
            "`subsea leave` would not know these settings: {}",
            chain(&error)
        );
        link.problem("settings", Some(what));
    }
    Ok((Arc::new(Shared::new(link, options, keys)), fleet))
}

/// Opens the device, the sockets and the kernel's doors.
async fn open_kernel(shared: &Arc<Shared>) -> Result<(Arc<dyn Tunnel>, Reconciler), GatewayError> {
    let opening = Arc::clone(shared);
    let open = move || driver::open(&opening);
    // It retries for a while, blocking.
    let (tunnel, slots) = tokio::task::spawn_blocking(open)
        .await
        .map_err(GatewayError::Ending)??;
    if slots {
        set(&shared.listening, Listening::Slots);
    }
    let options = &shared.options;
    let settings = host::Settings {
        device: Some(options.device.clone()),
        table: options.table,
        tables: spread::road_tables(options.road_table),
        rule_pref: options.rule_pref,
        mark: options.mark,
        ..host::Settings::default()
    };
    let saved = shared
        .link
        .state
        .read_json(state::SYSCTL)
        .unwrap_or_else(|error| {
            shared.link.problem("sysctl", Some(chain(&error)));
            None
        });
    let state = shared.link.state.clone();
    let persist = Box::new(move |saved: &_| {
        state
            .write_json(state::SYSCTL, saved)
            .map_err(|error| chain(&error))
    });
    let reconciler =
        Reconciler::new(settings)?.with_saved_sysctls(saved.unwrap_or_default(), persist);
    Ok((tunnel, reconciler))
}

/// What others of this host are answered from.
struct Room {
    shared: Arc<Shared>,
    tunnel: Arc<dyn Tunnel>,
    prober: Arc<Prober>,
    pinger: Arc<Pinger>,
    published: watch::Receiver<Published>,
    feed: watch::Sender<Arc<Feed>>,
    notes: Notebook,
    flags: watch::Sender<Flags>,
    /// What the agent of this node said last of the way to our own cluster, and when.
    told: watch::Sender<Option<(bool, Duration)>>,
    stop: Notify,
    drain: Notify,
}

impl Answers for Room {
    type Status = Status;

    fn stop(&self) {
        self.stop.notify_one();
    }

    fn drain(&self) -> bool {
        self.drain.notify_one();
        true
    }

    fn inward(&self, dead: Option<bool>) {
        let now = self.shared.link.clock.now().mono;
        self.told.send_replace(dead.map(|dead| (dead, now)));
    }

    fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>> {
        Some(self.feed.subscribe())
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        let now = shared.link.clock.now();
        let Published {
            mesh,
            kernel,
            mtu,
            since,
            carrying,
        } = self.published.borrow().clone();
        let (source, view) = shared.link.known();
        let snapshot = view.snapshot.as_ref();
        let stats = self.tunnel.stats();
        let reports = self.prober.reports(now.mono);
        let steering = self.prober.steering().borrow().clone();
        let others = view.others(&shared.link.membership.cluster);
        let allocations = |member: Member<'_>| member.record.allocations.clone();
        let mut members: BTreeMap<_, _> = others
            .into_iter()
            .map(|(id, member)| (id.clone(), (allocations(member), Vec::new())))
            .collect();
        for path in &mesh.paths {
            let counters = stats.peers.get(&path.key).cloned().unwrap_or_default();
            let handshake = counters.latest_handshake.map(wall);
            let report = reports.get(&path.id);
            let blocks = mesh.blocks.get(&path.id.cluster);
            let since = since.get(&path.id).copied().unwrap_or(now.mono);
            let probe = path.stock.as_ref().and_then(|stock| stock.probe);
            let facts = describe::Facts {
                report: report.map(|report| &report.health),
                mtu: report.and_then(|report| report.mtu.as_ref()),
                device_mtu: mtu,
                sends_whole: self.tunnel.sends_whole(),
                in_use: steering.in_use.contains(&path.id),
                carrying: carrying.contains(&path.id),
                blocks: blocks.map_or(&[], Vec::as_slice),
                ping: probe.and_then(|probe| self.pinger.answered(probe, now.mono)),
                stats: &counters,
                handshake,
                since,
            };
            let status = describe::path(path, &facts, &now);
            members
                .entry(path.id.cluster.clone())
                .or_default()
                .1
                .push(status);
        }
        let own = view.own();
        let notes = self.notes.read();
        let problems = shared.link.problems().into_iter().chain(notes.texts());
        let certificate = certificate::read(&shared.link.certificate.borrow());
        let listeners = shared.listeners.borrow().clone();
        let driver = self.tunnel.driver();
        let devices = devices::names(&mesh.paths, |slot| self.tunnel.device_of(slot));
        Status {
            fleet: shared.link.membership.fleet.clone(),
            cluster: shared.link.membership.cluster.clone(),
            node: shared.link.membership.node.clone(),
            role: shared.link.membership.role,
            pid: std::process::id(),
            started: now.wall_at(Duration::ZERO),
            endpoint: listeners
                .first()
                .and_then(|listener| listener.candidates.first().copied()),
            draining: self.flags.borrow().draining,
            inward_dead: self.flags.borrow().inward_dead,
            listeners: listeners.iter().map(describe::listener).collect(),
            device: shared.options.device.clone(),
            devices: devices.into_iter().collect(),
            mtu,
            driver: driver.name,
            features: driver.features,
            public_key: shared.keys.first().public,
            epoch: snapshot.map(|snapshot| snapshot.epoch.clone()),
            revision: snapshot.map(|snapshot| snapshot.revision),
            broker: shared.link.broker(),
            certificate_expires: certificate.ok().map(|validity| validity.until),
            snapshot: SnapshotStatus { source },
            allocations: own.map_or_else(Vec::new, |record| record.allocations.clone()),
            cluster_gateways: own.map_or_else(Vec::new, describe::cluster_gateways),
            members: members
                .into_iter()
                .map(|(cluster, (allocations, gateways))| MemberStatus {
                    cluster,
                    allocations,
                    gateways,
                })
                .collect(),
            drops: stats.drops,
            kernel,
            problems: problems.collect(),
            kubernetes: notes.kubernetes,
            network: notes.network,
        }
    }
}
