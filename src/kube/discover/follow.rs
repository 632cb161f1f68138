//! Follows the objects that say which blocks one node's pods have. Shell.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::Api;
use kube::core::{DynamicObject, Status};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_api};
use kube::{Client, ResourceExt};
use subsea_api::Cidr;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::mirror::{Change, Kind, Mirror};
use super::prefixes::PrefixSource;
use super::query::{Place, Query};
use super::read::resource;
use crate::kube::fault::Fault;
use crate::task::Task;

/// A kind that the server does not know is asked for again so rarely: with thousands of nodes each question counts.
const ABSENT: Duration = Duration::from_mins(5);
/// And one that we may not read so often: a right may come at any time.
const DENIED: Duration = Duration::from_secs(30);
/// A failure so long after the last one is another outage: within one, the pauses are no longer than 30 s.
const OUTAGE: Duration = Duration::from_mins(5);
/// Changes under way between a watch and what puts them together.
const QUEUE: usize = 64;

/// The blocks of one node's pods, followed until this is dropped.
#[derive(Debug)]
pub struct Following {
    /// The blocks, sorted. None before they are known for the first time; an API server that is away changes nothing.
    pub prefixes: watch::Receiver<Option<Vec<Cidr>>>,
    /// What may not be read, and what to do; none while everything may be.
    pub denied: watch::Receiver<Option<String>>,
    _task: Task,
}

/// Follows the blocks of `node`'s pods; `remembered` says whether blocks are known from before. Watches begin again after any
/// failure, with a back-off of 0.8 to 30 s.
pub fn follow(client: Client, node: String, source: PrefixSource, remembered: bool) -> Following {
    let (sender, prefixes) = watch::channel(None);
    let (denials, denied) = watch::channel(None);
    let mirror = Mirror::new(node.clone(), source, remembered);
    Following {
        prefixes,
        denied,
        _task: Task::spawn(
            "pod-prefixes",
            run(client, node, source, mirror, sender, denials),
        ),
    }
}

async fn run(
    client: Client,
    node: String,
    source: PrefixSource,
    mut mirror: Mirror,
    sender: watch::Sender<Option<Vec<Cidr>>>,
    denials: watch::Sender<Option<String>>,
) {
    let (changes, mut inbox) = mpsc::channel(QUEUE);
    // Owned here, so that the watches end with this.
    let _watches: Vec<Task> = Kind::of(source)
        .iter()
        .map(|kind| {
            let watch = watch_kind(client.clone(), *kind, node.clone(), changes.clone());
            Task::spawn("pod-prefixes-watch", watch)
        })
        .collect();
    let mut said = Vec::new();
    loop {
        let denied = mirror.denials();
        denials.send_if_modified(|now| {
            let changed = *now != denied;
            *now = denied;
            changed
        });
        if let Some(prefixes) = mirror.prefixes() {
            let cidrs = prefixes.cidrs();
            if said != prefixes.notes {
                for note in &prefixes.notes {
                    tracing::info!(note = note.text, "blocks of this node's pods");
                }
                said = prefixes.notes;
            }
            sender.send_if_modified(|now| {
                let changed = now.as_ref() != Some(&cidrs);
                if changed {
                    tracing::info!(blocks = ?cidrs, "this node's pods");
                    *now = Some(cidrs);
                }
                changed
            });
        }
        let Some((kind, change)) = inbox.recv().await else {
            return;
        };
        mirror.apply(kind, change);
        // A long list is put together as a whole.
        while let Ok((kind, change)) = inbox.try_recv() {
            mirror.apply(kind, change);
        }
    }
}

/// Where a kind is served; Calico's by its stored form, which agents may read without its own API server.
fn place(kind: Kind) -> Place {
    match kind {
        Kind::Node => Query::Nodes.place(),
        Kind::CiliumNode => Query::CiliumNodes.place(),
        Kind::Affinity => Place {
            group: "crd.projectcalico.org",
            version: "v1",
            kind: "BlockAffinity",
            plural: "blockaffinities",
            namespace: None,
            name: None,
            labels: None,
        },
    }
}

async fn watch_kind(
    client: Client,
    kind: Kind,
    node: String,
    changes: mpsc::Sender<(Kind, Change)>,
) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource(place(kind)));
    let config = match kind {
        Kind::Node | Kind::CiliumNode => {
            watcher::Config::default().fields(&format!("metadata.name={node}"))
        }
        // An old list is no harm, since the watch goes on from it, and spares the server a read of its store.
        Kind::Affinity => watcher::Config::default().any_semantic(),
    };
    loop {
        let Some(pause) = follow_kind(&api, &config, kind, &changes).await else {
            return;
        };
        tokio::time::sleep(pause).await;
    }
}

/// Follows one kind until the server turns out not to know it, or not to let us read it; gives how long to leave it in peace.
/// None when nobody listens any more.
async fn follow_kind(
    api: &Api<DynamicObject>,
    config: &watcher::Config,
    kind: Kind,
    changes: &mpsc::Sender<(Kind, Change)>,
) -> Option<Duration> {
    let mut events = pin!(watch_api(api.clone(), config.clone()).default_backoff());
    let mut outage = Outage::default();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(event) => {
                if outage.ended_by(&event) {
                    tracing::info!(?kind, "the API server answers again");
                }
                change(event)
            }
            Err(error) if is_absent(&error) => {
                tracing::debug!(?kind, "not known to the API server");
                changes.send((kind, Change::Absent)).await.ok()?;
                return Some(ABSENT);
            }
            Err(error) if is_denied(&error) => {
                tracing::debug!(?kind, %error, "may not be read");
                let why = denial(kind, &error);
                changes.send((kind, Change::Denied(why))).await.ok()?;
                return Some(DENIED);
            }
            Err(error) => {
                if outage.begins(Instant::now()) {
                    tracing::warn!(?kind, %error, "cannot follow the blocks of this node's pods; trying again");
                } else {
                    tracing::debug!(?kind, %error, "watch");
                }
                continue;
            }
        };
        changes.send((kind, change)).await.ok()?;
    }
    Some(DENIED)
}

/// What is said of failures: once when they begin, and once when they end.
#[derive(Debug, Default)]
struct Outage {
    /// The last failure, while nothing has come since.
    last: Option<Instant>,
}

impl Outage {
    /// Takes a failure; whether an outage begins with it. A watch that goes on where it was says nothing until there is
    /// something new, so one that has not been heard to end may have ended long ago.
    fn begins(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.duration_since(last) >= OUTAGE)
    }

    /// Takes what has come; whether an outage ends with it.
    fn ended_by(&mut self, event: &Event<DynamicObject>) -> bool {
        // It comes before the server is asked.
        !matches!(event, Event::Init) && self.last.take().is_some()
    }
}

fn change(event: Event<DynamicObject>) -> Change {
    let named = |object: DynamicObject| {
        let name = object.name_any();
        // What cannot be written as JSON was not read from it.
        (name, serde_json::to_value(object).unwrap_or_default())
    };
    match event {
        Event::Init => Change::Begin,
        Event::InitApply(object) => {
            let (name, value) = named(object);
            Change::Listed(name, value)
        }
        Event::InitDone => Change::Complete,
        Event::Apply(object) => {
            let (name, value) = named(object);
            Change::Put(name, value)
        }
        Event::Delete(object) => Change::Gone(object.name_any()),
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    refusal(error).is_some_and(|status| status.code == 404)
}

fn is_denied(error: &watcher::Error) -> bool {
    refusal(error).is_some_and(|status| status.code == 403)
}

/// What we may not do, and why, in words.
fn denial(kind: Kind, error: &watcher::Error) -> String {
    let why = refusal(error).map(|status| status.message.clone());
    let Place { group, plural, .. } = place(kind);
    let what = if group.is_empty() {
        format!("list and watch {plural}")
    } else {
        format!("list and watch {plural}.{group}")
    };
    Fault::Forbidden(why.unwrap_or_default()).describe(&what)
}

/// What the server itself said, if it said something.
fn refusal(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
