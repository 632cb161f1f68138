//! How a daemon in Kubernetes comes to its identity: from the Secret that is mounted for it, and its service account token.
//! Shell.
//!
//! It waits for as long as something is missing or refused, with growing pauses, and looks at the Secret meanwhile. Once this
//! node is a member, none of that is needed for it to run.

use std::path::PathBuf;
use std::time::Duration;

use ring::digest;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::{ServiceAccountToken, Token};
use tokio::sync::watch;
use tokio::time::Instant;

use super::configuration::{self, LOOK};
use super::daemon::Room;
use super::settings::Settings;
use crate::control::around::{Around, Notebook};
use crate::enrol::{self, EnrolError, Joined};
use crate::membership::clock::random;
use crate::membership::standing::BrokerState;
use crate::membership::{backoff, chain};
use crate::monitor::verdict::Stage;
use crate::state::{self, Lock, StateDir};

/// The shortest and the longest pause before the next attempt to enrol.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// The shortest and the longest pause before a node that is no member (any more) tries to become one again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The daemon's own.
    pub state_dir: PathBuf,
    /// The Secret `subsea-enrolment`.
    pub enrolment_dir: PathBuf,
    /// The `ConfigMap` `subsea-config`.
    pub config_dir: PathBuf,
    /// The service account token for the broker.
    pub token_file: PathBuf,
}

/// How this node becomes a member, and one again.
pub(super) struct Identity {
    pub(super) places: Places,
    pub(super) notes: Notebook,
    pub(super) stage: watch::Sender<Stage>,
}

impl Identity {
    /// The settings to begin with.
    pub(super) async fn first_settings(&self) -> Settings {
        let places = &self.places;
        loop {
            let first = configuration::first(&places.config_dir, &places.state_dir, &self.notes);
            if let Some(settings) = first {
                return settings;
            }
            let why = self.notes.read().problems.remove("configuration");
            self.wait(why.unwrap_or_default());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns once this node is a member.
    pub(super) async fn enrolled(&self) {
        let mut failures = 0_u32;
        loop {
            let mount = self.mount();
            let error = match self.enrol().await {
                Ok(joined) => {
                    if !joined.already {
                        let member = &joined.membership;
                        tracing::info!(cluster = %member.cluster, node = %member.node, "enrolled");
                    }
                    self.stage.send_replace(Stage::Starting);
                    return;
                }
                Err(error) => error,
            };
            self.wait(explain(&error));
            failures = failures.saturating_add(1);
            let pause = backoff::delay(failures, RETRY.0, RETRY.1, random());
            if self.mounted_otherwise(mount, pause).await {
                failures = 0;
            }
        }
    }

    async fn enrol(&self) -> Result<Joined, EnrolError> {
        match self.material() {
            Ok((file, credential, token)) => {
                let dir = &self.places.state_dir;
                enrol::by_service_account(&file, &credential, &token, dir).await
            }
            // A node that is a member needs them no more.
            Err(error) => self.member().ok_or(error),
        }
    }

    fn material(&self) -> Result<(EnrolmentFile, Token, ServiceAccountToken), EnrolError> {
        let (file, credential) = enrol::read_enrolment(&self.places.enrolment_dir)?;
        let token = enrol::read_service_account_token(&self.places.token_file)?;
        Ok((file, credential, token))
    }

    /// What the state directory says by itself.
    fn member(&self) -> Option<Joined> {
        let state = StateDir::open(&self.places.state_dir).ok()?;
        let membership = state.membership().ok()??;
        let whole = state.has(state::CERTIFICATE) && state.has(state::TLS_KEY);
        whole.then_some(Joined {
            membership,
            already: true,
            warnings: Vec::new(),
        })
    }

    /// Returns once this node is a member again, after the broker had said that it is none, or when its certificate had
    /// ended too long ago to be renewed.
    pub(super) async fn renewed<R: Room>(
        &self,
        around: &Around<R::Status>,
        state: &StateDir,
        lock: &Lock,
    ) {
        let (mut failures, mut pause) = (0_u32, LOOK);
        let mut mount = self.mount();
        loop {
            let other = self.mounted_otherwise(mount, pause).await;
            mount = self.mount();
            pause = LOOK;
            let status = match around.door.daemon() {
                Some(daemon) => tokio::task::spawn_blocking(move || daemon.status()).await,
                None => continue,
            };
            let broker = status.ok().map(|status| R::broker(&status).state);
            let why = match broker {
                Some(BrokerState::NotMember) => "the broker does not know this node any more",
                // An operator's word holds until somebody brings another credential.
                Some(BrokerState::Revoked) if other => "the broker says that it was revoked",
                // The broker refuses to renew it for ever, which looks like any other failure.
                Some(BrokerState::Away) if enrol::is_lapsed(state) => {
                    "this node's certificate ended too long ago to be renewed"
                }
                Some(BrokerState::Connected) => {
                    failures = 0;
                    self.notes.problem("identity", None);
                    continue;
                }
                Some(BrokerState::Revoked | BrokerState::Away) | None => continue,
            };
            let again = match self.material() {
                Ok((file, credential, token)) => {
                    enrol::by_service_account_again(&file, &credential, &token, state, lock).await
                }
                Err(error) => Err(error),
            };
            let Err(error) = again else {
                self.notes.problem("identity", None);
                return;
            };
            let what = format!(
                "{why}, and it could not be enrolled again: {}",
                explain(&error)
            );
            self.notes.problem("identity", Some(what));
            failures = failures.saturating_add(1);
            pause = backoff::delay(failures, AGAIN.0, AGAIN.1, random());
        }
    }

    /// Waits so long, or until the Secret is another one; whether it is.
    async fn mounted_otherwise(&self, known: Option<Mount>, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(LOOK)).await;
            if self.mount() != known {
                return true;
            }
        }
        false
    }

    /// What is mounted of the Secret, to see that it is another one.
    fn mount(&self) -> Option<Mount> {
        let mut context = digest::Context::new(&digest::SHA256);
        for name in [enrol::ENROLMENT_FILE, enrol::CREDENTIAL_FILE] {
            let read = std::fs::read(self.places.enrolment_dir.join(name)).ok()?;
            context.update(&zeroize::Zeroizing::new(read));
            context.update(&[0]);
        }
        context.finish().as_ref().try_into().ok()
    }

    fn wait(&self, why: String) {
        self.stage.send_if_modified(|stage| {
            let new = Stage::Waiting(why);
            let changed = *stage != new;
            if let (true, Stage::Waiting(why)) = (changed, &new) {
                tracing::warn!(why, "waiting for an identity");
            }
            *stage = new;
            changed
        });
    }
}

/// The digest of the Secret.
type Mount = [u8; 32];

/// An error, and what to do.
fn explain(error: &EnrolError) -> String {
    let hint = error
        .hint()
        .map_or_else(String::new, |hint| format!("; {hint}"));
    format!("{}{hint}", chain(error))
}
