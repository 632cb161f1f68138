//! Sends and answers echo through the tunnels, and publishes which paths are in use. Shell around [`super::prober_paths`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::echo::{Echo, Flags, MAX, PORT};
use super::health_timing::Timing;
use super::mesh::PathId;
use super::prober_door::{Door, Doors, REOPEN, readable};
use super::prober_paths::{Outgoing, Paths, Report};
pub(super) use super::prober_paths::{Target, Targets};
use super::shared::{lock, set};
use super::steering::Steering;
use crate::membership::clock::{Clock, random};
use crate::task::Task;

/// So many packets are read before anything else is looked at.
const BURST: usize = 256;
/// Hints that wait; one that finds no room is not missed, since more come where something is wrong.
const HINTS: usize = 64;

/// Is told at once which paths are in use, whenever that changes; must not block.
pub(super) type Steer = Arc<dyn Fn(&BTreeSet<PathId>) + Send + Sync>;

/// What the prober works with.
pub(super) struct Settings {
    pub(super) clock: Clock,
    pub(super) timing: Timing,
    /// What we say of ourselves: a change is told to everybody at once.
    pub(super) own: watch::Receiver<Flags>,
    /// The paths that carried traffic in the last minute; while that is `None`, all count as such.
    pub(super) carrying: watch::Receiver<Option<BTreeSet<PathId>>>,
    pub(super) steer: Steer,
}

/// The echo to all paths; ends when dropped.
pub(super) struct Prober {
    _task: Task,
    targets: watch::Sender<Arc<Targets>>,
    steering: watch::Receiver<Arc<Steering>>,
    resized: watch::Receiver<()>,
    hints: mpsc::Sender<PathId>,
    paths: Arc<Mutex<Paths>>,
}

impl Prober {
    /// Starts without targets.
    pub(super) fn start(settings: Settings) -> Self {
        let (targets, todo) = watch::channel(Arc::new(Targets::default()));
        let (publish, steering) = watch::channel(Arc::new(Steering::default()));
        let (resize, resized) = watch::channel(());
        let (hints, hinted) = mpsc::channel(HINTS);
        let now = settings.clock.now().mono;
        let paths = Arc::new(Mutex::new(Paths::new(settings.timing, now)));
        let work = Work {
            settings,
            todo,
            hinted,
            publish,
            resize,
            paths: Arc::clone(&paths),
            bound: Default::default(),
            doors: BTreeMap::new(),
            buffer: vec![0; MAX + 1],
        };
        Self {
            _task: Task::spawn("echo", work.run()),
            targets,
            steering,
            resized,
            hints,
            paths,
        }
    }

    /// Changes whom to probe. Paths that stay keep their state.
    pub(super) fn aim(&self, targets: Targets) {
        set(&self.targets, Arc::new(targets));
    }

    /// Which paths are in use and which clusters are reached, as it changes.
    pub(super) fn steering(&self) -> watch::Receiver<Arc<Steering>> {
        self.steering.clone()
    }

    /// Changes when the path MTU of any path does; see [`Self::reports`].
    pub(super) fn resized(&self) -> watch::Receiver<()> {
        self.resized.clone()
    }

    /// Has a path looked at closely at once: something noticed that it may not work.
    pub(super) fn hint(&self, id: PathId) {
        if let Err(error) = self.hints.try_send(id) {
            tracing::debug!(%error, "a hint is left out");
        }
    }

    /// How every probed path is.
    pub(super) fn reports(&self, now: Duration) -> BTreeMap<PathId, Report> {
        lock(&self.paths).reports(now)
    }
}

struct Work {
    settings: Settings,
    todo: watch::Receiver<Arc<Targets>>,
    hinted: mpsc::Receiver<PathId>,
    publish: watch::Sender<Arc<Steering>>,
    resize: watch::Sender<()>,
    paths: Arc<Mutex<Paths>>,
    /// Generation and addresses of the sockets.
    bound: (u64, Vec<IpAddr>),
    doors: Doors,
    buffer: Vec<u8>,
}

impl Work {
    async fn run(mut self) {
        let clock = self.settings.clock;
        {
            let own = *self.settings.own.borrow_and_update();
            let carrying = self.settings.carrying.borrow_and_update().clone();
            let (now, mut paths) = (clock.now().mono, lock(&self.paths));
            paths.say(own, now);
            paths.carry(carrying, now);
        }
        loop {
            let wait = self.due().saturating_sub(clock.now().mono);
            tokio::select! {
                biased;
                changed = self.todo.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.aim();
                }
                Ok(()) = self.settings.own.changed() => {
                    let own = *self.settings.own.borrow_and_update();
                    lock(&self.paths).say(own, clock.now().mono);
                }
                Ok(()) = self.settings.carrying.changed() => {
                    let carrying = self.settings.carrying.borrow_and_update().clone();
                    lock(&self.paths).carry(carrying, clock.now().mono);
                }
                Some(id) = self.hinted.recv() => lock(&self.paths).hint(&id, clock.now().mono),
                // Before any path is judged: its answer may be among what waits here.
                () = readable(&mut self.doors, clock) => {
                    // All of them: one that is never empty must not keep the others waiting.
                    let doors = std::mem::take(&mut self.doors);
                    for door in doors.values() {
                        self.receive(door);
                    }
                    self.doors = doors;
                }
                () = tokio::time::sleep(wait) => {}
            }
            self.poll();
        }
    }

    /// When something is to be done though nothing comes.
    fn due(&self) -> Duration {
        let doors = self.doors.values().filter_map(Door::due);
        let paths = lock(&self.paths).due();
        let idle = self.settings.clock.now().mono + REOPEN;
        doors.chain(paths).min().unwrap_or(idle)
    }

    /// Takes over new targets.
    fn aim(&mut self) {
        let targets = Arc::clone(&self.todo.borrow_and_update());
        let own = |v4: bool| {
            let mut own = targets.own.iter().copied();
            own.find(|addr| addr.is_ipv4() == v4)
        };
        // Also when the address stays: a new device of the same name is another one.
        let bound = (targets.generation, targets.own.clone());
        let mut before = std::mem::take(&mut self.doors);
        if self.bound != bound {
            before.clear();
            self.bound = bound;
        }
        let devices: BTreeSet<&String> = targets.paths.values().map(|t| &t.device).collect();
        for (device, v4) in devices.into_iter().flat_map(|d| [(d, true), (d, false)]) {
            let Some(addr) = own(v4) else { continue };
            let id = (device.clone(), v4);
            let door = before.remove(&id);
            self.doors
                .insert(id, door.unwrap_or_else(|| Door::closed(addr)));
        }
        let now = self.settings.clock.now().mono;
        lock(&self.paths).aim(&targets, now, random);
    }

    fn poll(&mut self) {
        let now = self.settings.clock.now().mono;
        for ((device, _), door) in &mut self.doors {
            door.open(device, now);
        }
        let mut paths = lock(&self.paths);
        let out = paths.poll(now);
        let steering = paths.steer().cloned();
        let resized = paths.resized();
        drop(paths);
        if resized {
            self.resize.send_replace(());
        }
        if let Some(steering) = steering {
            self.steer(steering);
        }
        for Outgoing { device, to, echo } in &out {
            if let Some(door) = self.doors.get(&(device.to_string(), to.is_ipv4())) {
                door.send(*to, echo);
            }
        }
    }

    fn steer(&self, steering: Steering) {
        // First those who move packets.
        (self.settings.steer)(&steering.in_use);
        self.publish.send_modify(|before| {
            for id in before.in_use.symmetric_difference(&steering.in_use) {
                let in_use = steering.in_use.contains(id);
                tracing::info!(cluster = %id.cluster, gateway = %id.node, in_use, "path");
            }
            *before = Arc::new(steering);
        });
    }

    fn receive(&mut self, door: &Door) {
        let Some(socket) = &door.socket else { return };
        let mut replies = Vec::new();
        for _ in 0..BURST {
            let (length, from) = match socket.try_recv_from(&mut self.buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error for something sent earlier: the silence will tell.
                Err(error) => {
                    tracing::trace!(%error, "echo");
                    break;
                }
            };
            let bytes = self.buffer.get(..length).unwrap_or_default();
            let (PORT, Ok(echo)) = (from.port(), Echo::decode(bytes)) else {
                tracing::trace!(%from, "echo that makes no sense");
                continue;
            };
            let now = self.settings.clock.now().mono;
            let reply = lock(&self.paths).receive(from.ip(), &echo, now);
            replies.extend(reply.map(|reply| (from.ip(), reply)));
        }
        for (to, reply) in &replies {
            door.send(*to, reply);
        }
    }
}

#[cfg(test)]
#[path = "prober_tests.rs"]
mod tests;
