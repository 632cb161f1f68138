//! Keeps the broker's record of this gateway as it should be. Shell.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use subsea_api::member::{GatewayRegistration, ListenerRegistration, proof_message};
use subsea_api::snapshot::Gateway;
use tokio::sync::watch;

use super::keyring::{Identity, Keyring};
use super::lease;
use super::listeners::{self, shortfall, wanted_listeners};
use super::registration::{self, Sent, Wanted};
use super::shared::{Shared, chain, set};
use super::status::SnapshotSource;
use crate::broker_client::{BrokerClient, ClientError};
use crate::membership::backoff;
use crate::membership::clock::random;

/// How often our own address is looked at.
const CHECK: Duration = Duration::from_secs(10);
/// The shortest and the longest pause after a registration that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Registers and renews the lease until the task is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    tokio::join!(register_for_ever(&shared), lease::run(&shared));
}

async fn register_for_ever(shared: &Shared) {
    let mut registrar = Registrar {
        looked: None,
        sent: None,
    };
    let mut view = shared.link.view.subscribe();
    let mut source = shared.link.source.subscribe();
    let mut online = shared.link.online.subscribe();
    let mut listening = shared.listening.subscribe();
    let mut failures = 0_u32;
    loop {
        view.mark_unchanged();
        source.mark_unchanged();
        online.mark_unchanged();
        listening.mark_unchanged();
        let pause = match registrar.check(shared).await {
            Ok(settled) => {
                failures = 0;
                shared.link.problem("registration", None);
                if settled {
                    CHECK
                } else {
                    registration::PATIENCE
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                shared.link.broker_refused(&error);
                // That the broker is away is shown already.
                if error.code().is_some() || matches!(error, ClientError::Bundle(_)) {
                    let what = format!("this gateway could not be registered: {}", chain(&error));
                    shared.link.problem("registration", Some(what));
                }
                backoff::delay(failures, RETRY.0, RETRY.1, random())
            }
        };
        let least = pause.min(RETRY.0);
        tokio::time::sleep(if failures > 0 { least } else { Duration::ZERO }).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = view.changed() => {}
            Ok(()) = source.changed() => {}
            Ok(()) = online.changed() => {}
            Ok(()) = listening.changed() => {}
        }
    }
}

/// Has as many stripes announced as the data plane works with, until the task is dropped or the driver gone.
pub(super) async fn follow(shared: Arc<Shared>, mut stripes: watch::Receiver<u16>) {
    loop {
        let wanted = *stripes.borrow_and_update();
        shared.want_stripes(wanted);
        if stripes.changed().await.is_err() {
            return;
        }
    }
}

struct Registrar {
    /// Our address towards the broker, and when it was looked at.
    looked: Option<(IpAddr, Duration)>,
    sent: Option<Sent>,
}

impl Registrar {
    /// Registers if it is due. Whether the broker has what it should.
    async fn check(&mut self, shared: &Shared) -> Result<bool, ClientError> {
        let client = shared.link.client()?;
        let (wanted, keys) = self.wanted(shared, &client).await?;
        let member = &shared.link.membership;
        let (registered, due, epoch) = {
            let view = shared.link.view.borrow();
            let record = view.registered(&member.cluster, &member.node);
            let epoch = view
                .snapshot
                .as_ref()
                .map(|snapshot| snapshot.epoch.clone());
            // What the disk says may be old: only the broker's own word is a reason to register.
            let current = *shared.link.source.borrow() == SnapshotSource::Broker;
            let now = shared.link.clock.now().mono;
            let sent = self.sent.as_ref();
            let due = current && registration::is_due(record, epoch.as_deref(), &wanted, sent, now);
            (registration::is_registered(record, &wanted), due, epoch)
        };
        if registered {
            set(&shared.listeners, wanted.listeners.clone());
        }
        if !due {
            return Ok(registered);
        }
        register(shared, &client, &wanted, &keys).await?;
        for listener in &wanted.listeners {
            tracing::info!(listener = listener.id, endpoint = ?listener.candidates, "registered with the broker");
        }
        set(&shared.listeners, wanted.listeners.clone());
        self.sent = Some(Sent {
            wanted,
            epoch,
            at: shared.link.clock.now().mono,
        });
        Ok(false)
    }

    /// What to announce, and the keys of the listeners.
    async fn wanted(
        &mut self,
        shared: &Shared,
        client: &BrokerClient,
    ) -> Result<(Wanted, Vec<Identity>), ClientError> {
        let towards = self.towards(shared, client).await;
        // When it cannot be looked at for once, it is as it was.
        let known = self.looked.map(|(address, _)| address);
        let node_addresses = registration::node_addresses(&shared.options.node_addresses, known);
        let port = shared.options.listen_port;
        let endpoint = match shared.options.endpoint {
            Some(endpoint) => endpoint,
            None => SocketAddr::new(towards?, port),
        };
        if endpoint.ip().is_loopback() && shared.options.endpoint.is_none() {
            let message = "the broker is on this host, so our address towards it is a loopback address: \
                           say with --endpoint where other gateways find this one";
            return Err(ClientError::Bundle(message.to_owned()));
        }
        let listening = *shared.listening.borrow();
        let slots = listeners::slots(&shared.link.view.borrow(), &shared.link.membership.cluster);
        let (keys, missing) = keys(&shared.keys, listening.count(slots)).await;
        shared.link.problem("keys", missing);
        let public: Vec<_> = keys.iter().map(|key| key.public).collect();
        let listeners = wanted_listeners(listening, slots, endpoint, port, &public);
        shared
            .link
            .problem("listeners", shortfall(listening, slots, listeners.len()));
        let wanted = Wanted {
            listeners,
            node_addresses,
        };
        Ok((wanted, keys))
    }

    /// Our address towards the broker, looked at anew every 10 s: it may take a look at the DNS.
    async fn towards(
        &mut self,
        shared: &Shared,
        client: &BrokerClient,
    ) -> Result<IpAddr, ClientError> {
        let now = shared.link.clock.now().mono;
        if let Some((addr, at)) = self.looked
            && now.saturating_sub(at) < CHECK
        {
            return Ok(addr);
        }
        let addr = client.local_address_towards().await?;
        self.looked = Some((addr, now));
        set(&shared.towards, Some(addr));
        Ok(addr)
    }
}

/// The keys of the first `count` listeners, or of those below the first that cannot be had, and why it cannot.
async fn keys(keyring: &Arc<Keyring>, count: u16) -> (Vec<Identity>, Option<String>) {
    let keyring = Arc::clone(keyring);
    let read = move || {
        let mut keys = Vec::new();
        for number in 0..count {
            match keyring.get(number) {
                Ok(key) => keys.push(key),
                Err(error) => return (keys, Some(chain(&error))),
            }
        }
        (keys, None)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(error) => (Vec::new(), Some(error.to_string())),
    }
}

async fn register(
    shared: &Shared,
    client: &BrokerClient,
    wanted: &Wanted,
    keys: &[Identity],
) -> Result<Gateway, ClientError> {
    let member = &shared.link.membership;
    let mut listeners = Vec::with_capacity(wanted.listeners.len());
    for (listener, key) in wanted.listeners.iter().zip(keys) {
        let challenge = client.challenge().await?;
        let message = proof_message(
            &member.fleet,
            &member.cluster,
            &member.node,
            &listener.public_key,
            &challenge.nonce,
        );
        listeners.push(ListenerRegistration {
            listener: listener.clone(),
            proof: key.private.prove(&challenge.broker_key, &message),
            nonce: challenge.nonce,
        });
    }
    let registration = GatewayRegistration {
        listeners,
        node_addresses: wanted.node_addresses.clone(),
    };
    client
        .register_gateway(&member.cluster, &member.node, &registration)
        .await
}
