//! What the tasks of the daemon share: each value has one writer, and the others watch it. Shell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use subsea_api::Code;
use subsea_api::snapshot::Listener;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::clock::Clock;
use super::fleet::View;
use super::keyring::Keyring;
use super::listeners::Listening;
use super::options::Options;
use super::registration;
use super::status::{BrokerState, BrokerStatus, SnapshotSource};
use crate::broker_client::{BrokerClient, ClientError};
use crate::state::{Membership, StateDir};

/// What the tasks share.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) options: Options,
    pub(super) state: StateDir,
    pub(super) membership: Membership,
    pub(super) keys: Arc<Keyring>,
    /// What the data plane needs listeners for; written by whoever opens the driver, and by [`Shared::want_stripes`].
    pub(super) listening: watch::Sender<Listening>,
    /// Written by the watcher.
    pub(super) view: watch::Sender<Arc<View>>,
    /// Written by the watcher.
    pub(super) source: watch::Sender<SnapshotSource>,
    /// Our certificate, PEM; written by the renewer.
    pub(super) certificate: watch::Sender<Arc<str>>,
    /// What the broker was told of us; written by the registrar.
    pub(super) listeners: watch::Sender<Vec<Listener>>,
    /// Our address towards the broker; written by the registrar.
    pub(super) towards: watch::Sender<Option<IpAddr>>,
    /// Whether the watch is open; written by the watcher.
    pub(super) online: watch::Sender<bool>,
    /// Asks the renewer to try at once.
    pub(super) renew: Notify,
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

/// What [`Shared::new`] takes from the state directory.
pub(super) struct Start {
    pub(super) options: Options,
    pub(super) state: StateDir,
    pub(super) membership: Membership,
    pub(super) keys: Keyring,
    pub(super) tls_key: Zeroizing<String>,
    pub(super) certificate: String,
    pub(super) view: View,
}

impl Shared {
    pub(super) fn new(start: Start) -> Self {
        let Start {
            options,
            state,
            membership,
            keys,
            tls_key,
            certificate,
            view,
        } = start;
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
        let listening = Listening::at_start(options.stripes);
        Self {
            clock,
            options,
            state,
            membership,
            keys: Arc::new(keys),
            listening: watch::Sender::new(listening),
            view: watch::Sender::new(Arc::new(view)),
            source: watch::Sender::new(source),
            certificate: watch::Sender::new(certificate.into()),
            listeners: watch::Sender::new(Vec::new()),
            towards: watch::Sender::new(None),
            online: watch::Sender::new(false),
            renew: Notify::new(),
            tls_key,
            broker: Mutex::new(broker),
            problems: Mutex::new(BTreeMap::new()),
            client: Mutex::new(None),
        }
    }

    /// A client for the broker as it is known now, with the certificate of now.
    pub(super) fn client(&self) -> Result<Arc<BrokerClient>, ClientError> {
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
        let broker = registration::broker(info(&view).as_ref(), &self.membership.broker);
        let mark = Some(self.options.mark.value & self.options.mark.mask);
        let client = BrokerClient::with_identity(&broker, &certificate, &self.tls_key, mark)?;
        let client = Arc::new(client);
        *cached = Some(Cached {
            view,
            certificate,
            client: Arc::clone(&client),
        });
        Ok(client)
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

    /// The key of our certificate, PEM.
    pub(super) fn tls_key(&self) -> &str {
        &self.tls_key
    }

    pub(super) fn broker(&self) -> BrokerStatus {
        lock(&self.broker).clone()
    }

    /// Notes that the broker is with us.
    pub(super) fn broker_connected(&self, url: String) {
        self.set_broker(BrokerState::Connected, Some(url), None);
    }

    /// Notes what the broker says of our membership; nothing for a refusal about anything else.
    pub(super) fn broker_refused(&self, error: &ClientError) {
        if matches!(
            error.code(),
            Some(Code::MemberRevoked | Code::NotMember | Code::CertificateExpired)
        ) {
            self.broker_failed(error);
        }
    }

    /// Notes why the broker is not with us, and asks for a new certificate when it says that ours has expired.
    pub(super) fn broker_failed(&self, error: &ClientError) {
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
    pub(super) fn problem(&self, part: &'static str, what: Option<String>) {
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

    pub(super) fn problems(&self) -> Vec<String> {
        lock(&self.problems).values().cloned().collect()
    }
}

/// Publishes a value if it is another one.
pub(super) fn set<T: PartialEq>(watch: &watch::Sender<T>, value: T) {
    watch.send_if_modified(|now| {
        let changed = *now != value;
        *now = value;
        changed
    });
}

/// A lock that a panic elsewhere does not make useless: every value behind one is whole at any time.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
