//! A daemon in Kubernetes: it waits for an identity, runs, and is started anew in the same process when it is told otherwise.
//! Shell.
//!
//! ```text
//! Secret, service account token --enrol--> state directory --+
//! ConfigMap --settings--+                                     +--> the daemon's room, until one of these is another one
//! Node ------facts------+--------------- options --------------+
//! ```
//!
//! A start with other settings is that of a restart: devices and routes stay, and nothing is drained. Of the settings only
//! the log's filter changes without one.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use subsea_api::NodeName;
use subsea_api::member::node_address_fault;
use tokio::sync::watch;

use super::configuration::{self, Environment};
use super::connect::connect;
use super::fault::Fault;
use super::identity::Identity;
pub use super::identity::Places;
use super::node::{self, NodeFacts};
use super::settings::Settings;
use crate::control::around::{Around, Notebook};
use crate::membership::chain;
use crate::membership::standing::BrokerStatus;
use crate::monitor::verdict::{Report, Stage};
use crate::state::{self, Lock, StateDir, StateError};
use crate::task::Task;

/// A start waits so long for the node's object before it takes what it knows of it.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
/// A room that is being started is asked to stop as soon as it can be.
const HALT: Duration = Duration::from_millis(50);
/// How often the node's object is looked at.
const NODE_LOOK: Duration = Duration::from_mins(1);

/// What a daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// By the `ConfigMap`.
    pub settings: Settings,
    /// By its environment.
    pub environment: Environment,
    /// By the node's object.
    pub node: NodeFacts,
}

impl Given {
    /// Where the agents of the cluster reach this node: the address that the pod was told, and one of the other family where
    /// the node has it.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let told = self.environment.address.into_iter();
        let mut all: Vec<IpAddr> = Vec::new();
        for address in told.chain(self.node.internal.iter().copied()) {
            let known = all.iter().any(|a| a.is_ipv4() == address.is_ipv4());
            if !known && node_address_fault(address).is_none() {
                all.push(address);
            }
        }
        all
    }

    /// Where the node's gateway is found, which listens on `port`. An annotation that makes no sense is noted and left out.
    pub fn endpoint(&self, port: u16, notes: &Notebook) -> Option<SocketAddr> {
        let told = self.environment.address;
        let endpoint = self.node.endpoint(told, port);
        let problem = endpoint.as_ref().err().map(ToString::to_string);
        notes.problem("endpoint", problem);
        endpoint.unwrap_or_else(|_| {
            let without = NodeFacts {
                endpoint: None,
                ..self.node.clone()
            };
            without.endpoint(told, port).ok().flatten()
        })
    }
}

/// A kind of daemon.
pub trait Room {
    /// What it says of itself.
    type Status: Report;
    /// How it is to run.
    type Options: Clone + PartialEq;
    /// Why it does not.
    type Error: std::error::Error + 'static;

    /// How it is to run with what it is given.
    ///
    /// # Errors
    /// Why it cannot.
    fn options(&self, given: &Given, notes: &Notebook) -> Result<Self::Options, String>;

    /// Runs it in a state directory that the caller owns, until `shutdown` or until it is told to stop.
    fn run(
        &self,
        state: StateDir,
        options: Self::Options,
        around: Around<Self::Status>,
        shutdown: impl Future<Output = ()>,
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// How it stands with the broker.
    fn broker(status: &Self::Status) -> &BrokerStatus;

    /// Whether it needs to know the node's object.
    const READS_NODE: bool;
}

/// Why a daemon in Kubernetes does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError<E: std::error::Error + 'static> {
    /// The room does not.
    #[error(transparent)]
    Room(E),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// What it is told makes no sense.
    #[error("{0}")]
    Options(String),
}

/// Runs a daemon until `stop` turns true.
///
/// # Errors
/// [`DaemonError`] when it cannot start. What is missing or refused for a while is waited for, and said to `stage`.
pub async fn run<R: Room>(
    room: R,
    places: Places,
    environment: Environment,
    around: Around<R::Status>,
    stage: watch::Sender<Stage>,
    stop: watch::Receiver<bool>,
) -> Result<(), DaemonError<R::Error>> {
    let identity = Identity {
        places,
        notes: around.notes.clone(),
        stage,
    };
    let begin = async {
        let settings = identity.first_settings().await;
        identity.enrolled().await;
        settings
    };
    let settings = tokio::select! {
        settings = begin => settings,
        () = turned(stop.clone()) => return Ok(()),
    };
    let state = StateDir::open(&identity.places.state_dir)?;
    let lock = state.lock()?;
    let node = if R::READS_NODE {
        first_node(&environment, &state).await
    } else {
        NodeFacts::default()
    };
    let (settings, node) = (watch::Sender::new(settings), watch::Sender::new(node));
    let following = configuration::follow(
        identity.places.config_dir.clone(),
        identity.places.state_dir.clone(),
        around.notes.clone(),
        settings.clone(),
        configuration::LOOK,
    );
    let mut tasks = vec![Task::spawn("settings", following)];
    if R::READS_NODE {
        let name = environment.node.clone();
        let following = follow_node(name, state.clone(), around.notes.clone(), node.clone());
        tasks.push(Task::spawn("node", following));
    }
    let mut supervisor = Supervisor {
        told: Told {
            environment,
            settings: settings.subscribe(),
            node: node.subscribe(),
        },
        room,
        identity,
        around,
        state,
        lock,
    };
    let ended = supervisor.live(stop).await;
    drop(tasks);
    ended
}

/// Resolves when `stop` turns true.
async fn turned(mut stop: watch::Receiver<bool>) {
    // The sender gone means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What a daemon is told, as it changes.
struct Told {
    environment: Environment,
    settings: watch::Receiver<Settings>,
    node: watch::Receiver<NodeFacts>,
}

impl Told {
    fn now(&mut self) -> Given {
        Given {
            settings: self.settings.borrow_and_update().clone(),
            environment: self.environment.clone(),
            node: self.node.borrow_and_update().clone(),
        }
    }

    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.settings.changed() => {}
            Ok(()) = self.node.changed() => {}
        }
    }
}

struct Supervisor<R: Room> {
    room: R,
    identity: Identity,
    around: Around<R::Status>,
    told: Told,
    state: StateDir,
    lock: Lock,
}

/// Options with which the room ran for so long are good.
const SETTLED: Duration = Duration::from_mins(1);

/// Why the room is to be started anew.
enum Next<O> {
    /// It is to run otherwise.
    Options(O),
    /// The node has a new identity.
    Identity,
}

impl<R: Room> Supervisor<R> {
    /// Runs the room, again and again while what it is told changes.
    async fn live(&mut self, stop: watch::Receiver<bool>) -> Result<(), DaemonError<R::Error>> {
        let Self {
            room,
            identity,
            around,
            told,
            state,
            lock,
        } = self;
        let notes = around.notes.clone();
        let first = room.options(&told.now(), &notes);
        let mut options = first.map_err(DaemonError::Options)?;
        // What ran before these options, and what did not run at all.
        let (mut before, mut refused): (Option<R::Options>, Option<R::Options>) = (None, None);
        loop {
            let started = Instant::now();
            let running = room.run(
                state.clone(),
                options.clone(),
                around.clone(),
                turned(stop.clone()),
            );
            let mut running = std::pin::pin!(running);
            let next = tokio::select! {
                ended = &mut running => Err(ended),
                next = other(room, told, &notes, &options, refused.as_ref()) => Ok(Next::Options(next)),
                () = identity.renewed::<R>(around, state, lock) => Ok(Next::Identity),
            };
            let (ended, next) = match next {
                Err(ended) => (ended, None),
                Ok(next) => (halt(around, running).await, Some(next)),
            };
            match (ended, next) {
                (Err(error), None) => {
                    // What ran for so long fails for another reason.
                    let before = before.take().filter(|_| started.elapsed() < SETTLED);
                    let Some(before) = before else {
                        return Err(DaemonError::Room(error));
                    };
                    let what = format!(
                        "what this daemon is told now does not work: {}; it goes on as before",
                        chain(&error)
                    );
                    notes.problem("options", Some(what));
                    refused = Some(std::mem::replace(&mut options, before));
                }
                // It was about to be started with these, or to be stopped: it is of no more interest.
                (Ok(()) | Err(_), Some(_)) if *stop.borrow() => return Ok(()),
                (Ok(()), Some(Next::Options(next))) => {
                    tracing::info!("starting anew with what it is told now");
                    before = Some(std::mem::replace(&mut options, next));
                    refused = None;
                }
                (Err(_), Some(Next::Options(next))) => options = next,
                (Ok(()) | Err(_), Some(Next::Identity)) => {
                    tracing::info!("starting anew with a new identity");
                }
                (Ok(()), None) => return Ok(()),
            }
            identity.stage.send_replace(Stage::Starting);
        }
    }
}

/// Ends the room as a restart does: nothing is drained, all of it stays in the kernel.
async fn halt<S: Report, E>(
    around: &Around<S>,
    mut running: std::pin::Pin<&mut impl Future<Output = Result<(), E>>>,
) -> Result<(), E> {
    loop {
        if let Some(daemon) = around.door.daemon() {
            daemon.stop();
            return running.await;
        }
        // It is just being started.
        tokio::select! {
            ended = &mut running => return ended,
            () = tokio::time::sleep(HALT) => {}
        }
    }
}

/// Resolves when the room is to run otherwise than it does, and not as it was found not to run.
async fn other<R: Room>(
    room: &R,
    told: &mut Told,
    notes: &Notebook,
    current: &R::Options,
    refused: Option<&R::Options>,
) -> R::Options {
    loop {
        told.changed().await;
        match room.options(&told.now(), notes) {
            Ok(new) if Some(&new) == refused => {}
            Ok(new) => {
                notes.problem("options", None);
                if new != *current {
                    return new;
                }
            }
            Err(why) => notes.problem("options", Some(why)),
        }
    }
}

/// What the node's object says, or said last when the API server does not answer.
async fn first_node(environment: &Environment, state: &StateDir) -> NodeFacts {
    let reading = read_node(&environment.node);
    match tokio::time::timeout(NODE_PATIENCE, reading).await {
        Ok(Ok(Some(facts))) => return facts,
        Ok(Ok(None)) => tracing::warn!(node = %environment.node, "the API server has no such node"),
        Ok(Err(error)) => tracing::warn!(error, "the node's object was not read"),
        Err(_) => tracing::warn!("the node's object was not read in time"),
    }
    state
        .read_json(state::NODE)
        .unwrap_or_else(|error| {
            tracing::warn!(
                error = chain(&error),
                "what is known of the node cannot be read"
            );
            None
        })
        .unwrap_or_default()
}

async fn read_node(name: &NodeName) -> Result<Option<NodeFacts>, String> {
    let client = connect(None).await;
    let client = client.map_err(|error| format!("Kubernetes: {}", chain(&error)))?;
    let read = node::read(&client, name.as_str()).await;
    read.map_err(|error| Fault::of(&error, true).describe(&format!("get node {name}")))
}

/// Follows what the node's object says until the task is dropped.
async fn follow_node(
    name: NodeName,
    state: StateDir,
    notes: Notebook,
    facts: watch::Sender<NodeFacts>,
) {
    let mut kept = None;
    loop {
        match tokio::time::timeout(NODE_LOOK, read_node(&name)).await {
            Ok(Ok(Some(new))) => {
                notes.problem("node", None);
                // First told, then kept: a disk may take its time.
                facts.send_if_modified(|now| {
                    let changed = *now != new;
                    now.clone_from(&new);
                    changed
                });
                if kept.as_ref() != Some(&new) {
                    let problem = state.write_json(state::NODE, &new).err().map(|error| {
                        let error = chain(&error);
                        format!(
                            "what is known of the node could not be kept for a restart: {error}"
                        )
                    });
                    kept = problem.is_none().then_some(new);
                    notes.problem("node-file", problem);
                }
            }
            Ok(Ok(None)) => {
                let what =
                    format!("Kubernetes: there is no node {name}: what was known of it holds on");
                notes.problem("node", Some(what));
            }
            Ok(Err(error)) => notes.problem("node", Some(error)),
            Err(_) => notes.problem(
                "node",
                Some("Kubernetes: could not get the node: no answer".to_owned()),
            ),
        }
        tokio::time::sleep(NODE_LOOK).await;
    }
}
