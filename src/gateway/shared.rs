//! What the tasks of the daemon share: each value has one writer, and the others watch it. Shell.

use std::net::IpAddr;
use std::sync::Arc;

use subsea_api::snapshot::Listener;
use tokio::sync::watch;

use super::echo::Flags;
use super::keyring::Keyring;
use super::listeners::Listening;
use super::options::Options;
use crate::membership::Link;
pub(super) use crate::membership::{chain, lock, set};

/// What the tasks share.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) options: Options,
    pub(super) keys: Arc<Keyring>,
    /// What the data plane needs listeners for; written by whoever opens the driver, and by [`Shared::want_stripes`].
    pub(super) listening: watch::Sender<Listening>,
    /// What the broker was told of us; written by the registrar.
    pub(super) listeners: watch::Sender<Vec<Listener>>,
    /// Our address towards the broker; written by the registrar.
    pub(super) towards: watch::Sender<Option<IpAddr>>,
}

impl Shared {
    pub(super) fn new(link: Arc<Link>, options: Options, keys: Keyring) -> Self {
        let listening = Listening::at_start(options.stripes);
        Self {
            link,
            options,
            keys: Arc::new(keys),
            listening: watch::Sender::new(listening),
            listeners: watch::Sender::new(Vec::new()),
            towards: watch::Sender::new(None),
        }
    }

    /// Notes with how many stripes the data plane works.
    pub(super) fn want_stripes(&self, stripes: u16) {
        self.listening.send_if_modified(|now| {
            let wanted = now.with_use_for(stripes, self.options.stripes);
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
    }
}

/// Notes whether the way to our own cluster is dead, as `by` found.
pub(super) fn say_inward(own: &watch::Sender<Flags>, dead: bool, by: &str) {
    own.send_if_modified(|flags| {
        let changed = flags.inward_dead != dead;
        if changed {
            tracing::warn!(dead, by, "the way to our own cluster");
        }
        flags.inward_dead = dead;
        changed
    });
}
