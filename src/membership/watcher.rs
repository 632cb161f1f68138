//! Follows the broker's watch for ever, and publishes the fleet as it changes. Shell.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::backoff;
use super::clock::random;
use super::fleet::{Fleet, Outcome};
use super::standing::SnapshotSource;
use super::{Link, set};
use crate::broker_client::{ClientError, WatchStream};

/// The shortest and the longest pause before the watch is opened anew.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Why a watch ended.
enum End {
    /// Our certificate is new: open it anew at once.
    Renewed,
    /// A whole snapshot is needed.
    Resync,
    /// The broker closed it.
    Closed,
    /// It failed.
    Failed(ClientError),
}

/// Follows the watch until the task is dropped.
pub(crate) async fn run(link: Arc<Link>, mut fleet: Fleet) {
    let mut failures = 0_u32;
    loop {
        let mut heard = false;
        let end = follow(&link, &mut fleet, &mut heard).await;
        if heard {
            failures = 0;
        }
        match end {
            End::Renewed => continue,
            End::Resync => tracing::debug!("changes are missing: asking for a snapshot"),
            End::Closed => tracing::debug!("the broker closed the watch"),
            End::Failed(error) => link.broker_failed(&error),
        }
        failures = failures.saturating_add(1);
        let pause = backoff::delay(failures, RETRY.0, RETRY.1, random());
        let mut certificate = link.certificate.subscribe();
        let wake = async {
            // The sender lives as long as we do.
            let _ = certificate.changed().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wake => {}
            () = expiries(&link, &mut fleet) => {}
        }
    }
}

async fn follow(link: &Link, fleet: &mut Fleet, heard: &mut bool) -> End {
    let mut certificate = link.certificate.subscribe();
    let opening = open(link, fleet.position());
    let mut watch = match aside(link, fleet, opening).await {
        Ok(watch) => watch,
        Err(error) => return End::Failed(error),
    };
    loop {
        let event = tokio::select! {
            event = watch.stream.next() => event,
            _ = certificate.changed() => return End::Renewed,
            never = expiries(link, fleet) => never,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return End::Closed,
            Err(error) => return End::Failed(error),
        };
        *heard = true;
        link.broker_connected(watch.url.clone());
        match fleet.take(event, link.clock.now().wall) {
            Outcome::Unchanged => {}
            Outcome::Changed => publish(link, fleet),
            Outcome::Resync => return End::Resync,
            Outcome::Foreign(name) => {
                let message = format!("the broker is of another fleet, {name}");
                return End::Failed(ClientError::Protocol(message));
            }
        }
        if fleet.view().snapshot.is_some() {
            set(&link.source, SnapshotSource::Broker);
        }
    }
}

struct Watch {
    url: String,
    stream: WatchStream,
}

fn open(
    link: &Link,
    position: Option<(&str, u64)>,
) -> impl Future<Output = Result<Watch, ClientError>> + use<> {
    let client = link.client();
    let position = position.map(|(epoch, revision)| (epoch.to_owned(), revision));
    async move {
        let client = client?;
        let (epoch, since) = position.map_or((None, 0), |(epoch, since)| (Some(epoch), since));
        let stream = client.watch(epoch.as_deref(), since).await?;
        Ok(Watch {
            url: client.url(),
            stream,
        })
    }
}

/// Runs `work`; what is kept for long enough is dropped meanwhile.
async fn aside<T>(link: &Link, fleet: &mut Fleet, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = expiries(link, fleet) => never,
    }
}

/// Drops what was kept for long enough, for as long as it is polled.
async fn expiries<T>(link: &Link, fleet: &mut Fleet) -> T {
    loop {
        let now = link.clock.now().wall;
        if fleet.expire(now) {
            publish(link, fleet);
        }
        match fleet.next_expiry() {
            // By steps: the clock of the wall may be set meanwhile.
            Some(at) => {
                let wait = at
                    .since(now)
                    .clamp(Duration::from_millis(10), Duration::from_secs(10));
                tokio::time::sleep(wait).await;
            }
            None => std::future::pending().await,
        }
    }
}

fn publish(link: &Link, fleet: &Fleet) {
    link.view.send_replace(Arc::new(fleet.view().clone()));
    if let Some((epoch, revision)) = fleet.position() {
        tracing::debug!(epoch, revision, "fleet changed");
    }
}
