//! What every daemon of a member needs to follow the fleet: its identity, the broker's watch, and what it holds of the
//! fleet, on disk and in memory. This file is the meeting place: each value has one writer, and the others watch it.
//!
//! PURE files decide: [`fleet`] what we hold to be the fleet, [`certificate`] and [`backoff`] when to talk to the broker,
//! [`standing`] what to show of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use subsea_api::Code;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use crate::broker_client::{BrokerClient, ClientError};
use crate::state::{Membership, StateDir, StateError};
use crate::task::Task;

pub mod backoff;
pub mod certificate;
pub(crate) mod clock;
pub mod fleet;
mod renewer;
pub(crate) mod saver;
pub mod standing;
mod watcher;

use self::clock::Clock;
use self::fleet::{Fleet, View};
use self::standing::{BrokerState, BrokerStatus, SnapshotSource};

/// What the tasks of a daemon share about its membership.
pub(crate) struct Link {
    pub(crate) clock: Clock,
    pub(crate) state: StateDir,
    pub(crate) membership: Membership,
    /// Written by the watcher.
    pub(crate) view: watch::Sender<Arc<View>>,
    /// Written by the watcher.
    pub(crate) source: watch::Sender<SnapshotSource>,
    /// Our certificate, PEM; written by the renewer.
    pub(crate) certificate: watch::Sender<Arc<str>>,
    /// Whether the watch is open; written by the watcher.
    pub(crate) online: watch::Sender<bool>,
    /// Asks the renewer to try at once.
    pub(crate) renew: Notify,
    /// What our packets to the broker are marked with.
    mark: u32,
    tls_key: Zeroizing<String>,
    broker: Mutex<BrokerStatus>,
    problems: Mutex<BTreeMap<&'static str, String>>,
    client: Mutex<Option<Cached>>,
}

struct Cached {
    view: Arc<View>,
    certificate: Arc<str>,
    client: Arc<BrokerClient>,
}

/// Why a state directory is no member's.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Nobody has joined with it.
    #[error("the state directory `{0}` belongs to no member yet")]
    NotJoined(String),
}

impl LoadError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State(error) => error.hint(),
            Self::NotJoined(_) => Some("run `subsea join` with a join file first".to_owned()),
        }
    }
}

impl Link {
    /// Takes from the disk all that there is; what is damaged and can be had from the broker again is left out, and
    /// complained about.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(crate) fn load(state: StateDir, mark: u32) -> Result<(Self, Fleet), LoadError> {
        let not_joined = || LoadError::NotJoined(state.path().display().to_string());
        let membership = state.membership()?.ok_or_else(not_joined)?;
        let certificate = state.certificate()?.ok_or_else(not_joined)?;
        let tls_key = state.tls_key_or_create()?;
        let mut damaged = Vec::new();
        let snapshot = state.snapshot().unwrap_or_else(|error| {
            damaged.push(chain(&error));
            None
        });
        let kept = saver::load(&state).unwrap_or_else(|error| {
            damaged.push(chain(&error));
            fleet::Kept::default()
        });
        let fleet = Fleet::new(
            membership.fleet.clone(),
            membership.cluster.clone(),
            snapshot,
            kept,
        );
        let view = fleet.view().clone();
        let clock = Clock::start();
        let source = if view.snapshot.is_some() {
            SnapshotSource::Disk
        } else {
            SnapshotSource::None
        };
        let broker = BrokerStatus {
            state: BrokerState::Away,
            since: clock.now().wall,
            url: membership.broker.urls.first().cloned().unwrap_or_default(),
            last_error: None,
        };
        let link = Self {
            clock,
            state,
            membership,
            view: watch::Sender::new(Arc::new(view)),
            source: watch::Sender::new(source),
            certificate: watch::Sender::new(certificate.into()),
            online: watch::Sender::new(false),
            renew: Notify::new(),
            mark,
            tls_key,
            broker: Mutex::new(broker),
            problems: Mutex::new(BTreeMap::new()),
            client: Mutex::new(None),
        };
        if !damaged.is_empty() {
            let what = format!("going on without what is damaged: {}", damaged.join("; "));
            link.problem("load", Some(what));
        }
        Ok((link, fleet))
    }

    /// Follows the broker, renews the certificate and keeps the fleet on disk, until the tasks are dropped.
    pub(crate) fn follow(self: &Arc<Self>, fleet: Fleet) -> [Task; 3] {
        let start = self.view.borrow().clone();
        let views = self.view.subscribe();
        [
            Task::spawn("watch", watcher::run(Arc::clone(self), fleet)),
            Task::spawn("renew", renewer::run(Arc::clone(self))),
            Task::spawn("save", saver::run(Arc::clone(self), views, start)),
        ]
    }

    /// A client for the broker as it is known now, with the certificate of now.
    pub(crate) fn client(&self) -> Result<Arc<BrokerClient>, ClientError> {
        let (view, certificate) = (
            self.view.borrow().clone(),
            self.certificate.borrow().clone(),
        );
        let mut cached = lock(&self.client);
        let info = |view: &View| {
            view.snapshot
                .as_ref()
                .map(|snapshot| snapshot.broker.clone())
        };
        if let Some(cached) = &*cached
            && cached.certificate == certificate
            && (Arc::ptr_eq(&cached.view, &view) || info(&cached.view) == info(&view))
        {
            return Ok(Arc::clone(&cached.client));
        }
        let broker = standing::broker(info(&view).as_ref(), &self.membership.broker);
        let mark = Some(self.mark);
        let client = BrokerClient::with_identity(&broker, &certificate, &self.tls_key, mark)?;
        let client = Arc::new(client);
        *cached = Some(Cached {
            view,
            certificate,
            client: Arc::clone(&client),
        });
        Ok(client)
    }

    /// The key of our certificate, PEM.
    pub(crate) fn tls_key(&self) -> &str {
        &self.tls_key
    }

    /// What is known of the fleet, and where it is from: never a source without what came from it.
    pub(crate) fn known(&self) -> (SnapshotSource, Arc<View>) {
        // In this order: a view is published before its source.
        let source = *self.source.borrow();
        (source, self.view.borrow().clone())
    }

    pub(crate) fn broker(&self) -> BrokerStatus {
        lock(&self.broker).clone()
    }

    /// Notes that the broker is with us.
    pub(crate) fn broker_connected(&self, url: String) {
        self.set_broker(BrokerState::Connected, Some(url), None);
    }

    /// Notes what the broker says of our membership; nothing for a refusal about anything else.
    pub(crate) fn broker_refused(&self, error: &ClientError) {
        if matches!(
            error.code(),
            Some(Code::MemberRevoked | Code::NotMember | Code::CertificateExpired)
        ) {
            self.broker_failed(error);
        }
    }

    /// Notes why the broker is not with us, and asks for a new certificate when it says that ours has expired.
    pub(crate) fn broker_failed(&self, error: &ClientError) {
        let state = match error.code() {
            Some(Code::MemberRevoked) => BrokerState::Revoked,
            Some(Code::NotMember) => BrokerState::NotMember,
            Some(_) | None => BrokerState::Away,
        };
        if error.code() == Some(Code::CertificateExpired) {
            self.renew.notify_one();
        }
        self.set_broker(state, None, Some(chain(error)));
    }

    fn set_broker(&self, state: BrokerState, url: Option<String>, last_error: Option<String>) {
        let mut broker = lock(&self.broker);
        if broker.state != state {
            broker.state = state;
            broker.since = self.clock.now().wall;
            tracing::info!(state = state.as_str(), error = last_error, "broker");
        }
        if let Some(url) = url {
            broker.url = url;
        }
        broker.last_error = last_error;
        drop(broker);
        set(&self.online, state == BrokerState::Connected);
    }

    /// Sets or clears what one part of the daemon has to complain about.
    pub(crate) fn problem(&self, part: &'static str, what: Option<String>) {
        let mut problems = lock(&self.problems);
        match what {
            Some(what) if problems.get(part) == Some(&what) => {}
            Some(what) => {
                tracing::warn!(part, problem = what, "needs attention");
                problems.insert(part, what);
            }
            None => {
                problems.remove(part);
            }
        }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        lock(&self.problems).values().cloned().collect()
    }
}

/// Publishes a value if it is another one.
pub(crate) fn set<T: PartialEq>(watch: &watch::Sender<T>, value: T) {
    watch.send_if_modified(|now| {
        let changed = *now != value;
        *now = value;
        changed
    });
}

/// A lock that a panic elsewhere does not make useless: every value behind one is whole at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
