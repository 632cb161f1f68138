//! What surrounds a daemon in its process: the way to it for what serves and publishes its status, and what these have to say
//! in that status. Both outlive the daemon, which may be started anew with other settings. Shell.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use subsea_api::UnixMillis;
use tokio::sync::watch;

use super::Answers;
use super::network::NetworkStatus;

/// How it stands with the API server of our own cluster. Nothing but what `kubectl` shows depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesStatus {
    /// When something was written there last; none before the first time.
    pub last_write: Option<UnixMillis>,
    /// Why nothing can be written, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the surroundings of a daemon have to say in its status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// None for a daemon that writes nothing to an API server.
    pub kubernetes: Option<KubernetesStatus>,
    /// None before it was looked at, and outside of Kubernetes.
    pub network: Option<NetworkStatus>,
    /// What needs attention, by who complains.
    pub problems: BTreeMap<&'static str, String>,
}

impl Notes {
    /// What needs attention, in words.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let kubernetes = self.kubernetes.as_ref().and_then(|k| k.problem.clone());
        self.problems.values().cloned().chain(kubernetes)
    }
}

/// Where the surroundings write their notes.
#[derive(Debug, Clone, Default)]
pub struct Notebook(Arc<watch::Sender<Notes>>);

impl Notebook {
    /// What stands there now.
    pub fn read(&self) -> Notes {
        self.0.borrow().clone()
    }

    /// Sets or clears what one part has to complain about.
    pub fn problem(&self, part: &'static str, what: Option<String>) {
        self.0.send_if_modified(|notes| {
            if notes.problems.get(part) == what.as_ref() {
                return false;
            }
            match what {
                Some(what) => {
                    tracing::warn!(part, problem = what, "needs attention");
                    notes.problems.insert(part, what);
                }
                None => {
                    notes.problems.remove(part);
                }
            }
            true
        });
    }

    /// Sets what was seen of the cluster's network plugin and service proxy.
    pub fn network(&self, seen: NetworkStatus) {
        self.0.send_modify(|notes| notes.network = Some(seen));
    }

    /// Changes how it stands with the API server.
    pub fn kubernetes(&self, change: impl FnOnce(&mut KubernetesStatus)) {
        self.0
            .send_modify(|notes| change(notes.kubernetes.get_or_insert_default()));
    }
}

/// A daemon that can be asked.
pub type Asked<S> = Arc<dyn Answers<Status = S>>;

/// The way to the daemon of this process, while one runs.
pub struct Door<S>(Arc<watch::Sender<Option<Asked<S>>>>);

impl<S> Door<S> {
    /// The running daemon.
    pub fn daemon(&self) -> Option<Asked<S>> {
        self.0.borrow().clone()
    }

    /// Opens the way to `daemon` until the result is dropped.
    pub fn open(&self, daemon: Asked<S>) -> Open<S> {
        self.0.send_replace(Some(daemon));
        Open(self.clone())
    }
}

impl<S> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Default for Door<S> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl<S> fmt::Debug for Door<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.0.borrow().is_some();
        f.debug_struct("Door").field("open", &open).finish()
    }
}

/// Holds a door open.
#[derive(Debug)]
pub struct Open<S>(Door<S>);

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}

/// What surrounds a daemon whose status is `S`.
#[derive(Debug)]
pub struct Around<S> {
    /// The way to it.
    pub door: Door<S>,
    /// What the rest of the process has to say in its status.
    pub notes: Notebook,
}

impl<S> Clone for Around<S> {
    fn clone(&self) -> Self {
        Self {
            door: self.door.clone(),
            notes: self.notes.clone(),
        }
    }
}

impl<S> Default for Around<S> {
    fn default() -> Self {
        Self {
            door: Door::default(),
            notes: Notebook::default(),
        }
    }
}
