//! Who watches, and what they are sent: every frame is encoded and compressed once for all. Shell.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use subsea_api::snapshot::WatchEvent;
use subsea_api::{ClusterId, Code, Delta, NodeName, Problem, UnixMillis};
use tokio::sync::{broadcast, oneshot};

use crate::registry::{Cut, NodeKey, Seat};
use crate::store::{Memory, Store};

/// How long changes are gathered before they are sent together.
const BATCH: Duration = Duration::from_millis(50);
/// How often a quiet stream shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How many frames a slow watcher may lag behind before it is cut: it reconnects and catches up in one step.
const BACKLOG: usize = 64;
/// How many different catch-up frames are kept for those who reconnect at the same time.
const OPENINGS: usize = 64;

/// How many streams a node may have open: a daemon that reconnects may leave one or two behind, and one that is
/// taken over must not take up all places. Beyond it the oldest is cut.
const PER_NODE: usize = 8;

/// A line of the stream, encoded.
#[derive(Debug)]
pub struct Frame {
    /// The revision that it brings a watcher to; `None` for a heartbeat.
    to: Option<u64>,
    plain: Bytes,
    gzip: OnceLock<Bytes>,
}

impl Frame {
    fn of(event: &WatchEvent) -> Result<Arc<Self>, Problem> {
        let to = match event {
            WatchEvent::Snapshot { snapshot } => Some(snapshot.revision),
            WatchEvent::Delta { delta } => Some(delta.to),
            WatchEvent::Heartbeat { .. } => None,
        };
        let mut plain = serde_json::to_vec(event)
            .map_err(|e| Problem::new(Code::Internal, format!("could not encode a frame: {e}")))?;
        plain.push(b'\n');
        Ok(Arc::new(Self {
            to,
            plain: plain.into(),
            gzip: OnceLock::new(),
        }))
    }

    /// The bytes to send.
    pub fn bytes(&self, gzip: bool) -> Bytes {
        if gzip {
            self.gzip.get_or_init(|| compress(&self.plain)).clone()
        } else {
            self.plain.clone()
        }
    }
}

/// One complete gzip member.
fn compress(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default().into()
}

/// All watchers.
#[derive(Debug)]
pub struct Hub {
    inner: Mutex<Inner>,
    openings: tokio::sync::Mutex<Openings>,
}

#[derive(Debug)]
struct Inner {
    frames: broadcast::Sender<Arc<Frame>>,
    /// The revision that the last delta led to.
    published: u64,
    next: u64,
    watchers: BTreeMap<u64, Watcher>,
}

#[derive(Debug)]
struct Watcher {
    node: NodeKey,
    since: UnixMillis,
    /// Dropped to cut the stream.
    _cut: oneshot::Sender<()>,
}

/// First frames, by what the watcher has, all of one epoch.
#[derive(Debug, Default)]
struct Openings {
    epoch: String,
    frames: BTreeMap<Option<u64>, (u64, Arc<Frame>)>,
}

/// What a watcher has: an epoch and a revision of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The epoch; `None` when it has nothing.
    pub epoch: Option<String>,
    /// The revision.
    pub since: u64,
}

/// An open stream. Dropping it takes the watcher off the list.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    first: Option<Arc<Frame>>,
    frames: broadcast::Receiver<Arc<Frame>>,
    cut: oneshot::Receiver<()>,
    at: u64,
}

impl Hub {
    /// A hub at a revision, with nobody watching.
    pub fn new(revision: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                frames: broadcast::channel(BACKLOG).0,
                published: revision,
                next: 0,
                watchers: BTreeMap::new(),
            }),
            openings: tokio::sync::Mutex::default(),
        }
    }

    /// Sends changes and heartbeats, for ever.
    pub async fn run(self: Arc<Self>, store: Arc<Store>) {
        let mut revisions = store.revisions();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = revisions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(BATCH).await;
                    revisions.mark_unchanged();
                    self.publish(&store);
                }
                _ = heartbeat.tick() => self.beat(),
            }
        }
    }

    fn publish(&self, store: &Store) {
        let from = self.inner().published;
        let (to, changes) = {
            let memory = store.read();
            (memory.state.revision, memory.log.since(from))
        };
        if to == from {
            return;
        }
        let frame = changes.map(|changes| {
            Frame::of(&WatchEvent::Delta {
                delta: Delta { from, to, changes },
            })
        });
        let mut inner = self.inner();
        inner.published = to;
        match frame {
            Some(Ok(frame)) => {
                // Nobody watching is no failure.
                let _ = inner.frames.send(frame);
            }
            // Another history, or more changes at once than the log holds: all start over.
            Some(Err(_)) | None => inner.watchers.clear(),
        }
    }

    fn beat(&self) {
        let inner = self.inner();
        let event = WatchEvent::Heartbeat {
            revision: inner.published,
        };
        if let Ok(frame) = Frame::of(&event) {
            let _ = inner.frames.send(frame);
        }
    }

    /// Puts a watcher on the list and finds what it is sent first. `check` runs when it is on the list
    /// already, so that a revocation either cuts it or is seen by the check.
    ///
    /// # Errors
    /// The refusal of `check`.
    pub async fn open(
        self: &Arc<Self>,
        store: &Store,
        node: NodeKey,
        position: &Position,
        now: UnixMillis,
        check: impl FnOnce(&Memory) -> Result<(), Problem>,
    ) -> Result<Subscription, Problem> {
        let (cut, cut_receiver) = oneshot::channel();
        let (id, frames, published) = {
            let mut inner = self.inner();
            let id = inner.next;
            inner.next += 1;
            let own = inner.watchers.iter().filter(|(_, w)| w.node == node);
            let own: Vec<u64> = own.map(|(id, _)| *id).collect();
            if let Some(oldest) = own.first().filter(|_| own.len() >= PER_NODE) {
                inner.watchers.remove(oldest);
            }
            let watcher = Watcher {
                node,
                since: now,
                _cut: cut,
            };
            inner.watchers.insert(id, watcher);
            (id, inner.frames.subscribe(), inner.published)
        };
        let mut subscription = Subscription {
            hub: self.clone(),
            id,
            first: None,
            frames,
            cut: cut_receiver,
            at: 0,
        };
        check(&store.read())?;
        let (at, first) = self.opening(store, position, published).await?;
        subscription.at = at;
        subscription.first = Some(first);
        Ok(subscription)
    }

    /// The first frame for a watcher that will get every delta above `published`. One is made for all who
    /// come with the same position between two changes.
    async fn opening(
        &self,
        store: &Store,
        position: &Position,
        published: u64,
    ) -> Result<(u64, Arc<Frame>), Problem> {
        let mut openings = self.openings.lock().await;
        let epoch = store.read().state.identity.epoch.clone();
        if openings.epoch != epoch {
            *openings = Openings {
                epoch: epoch.clone(),
                frames: BTreeMap::new(),
            };
        }
        let since = (position.epoch.as_ref() == Some(&epoch)).then_some(position.since);
        if let Some((at, frame)) = openings.frames.get(&since)
            && *at >= published
        {
            return Ok((*at, frame.clone()));
        }
        let (at, event) = first_event(&store.read(), since);
        let frame = Frame::of(&event)?;
        if openings.frames.len() >= OPENINGS {
            openings.frames.clear();
        }
        openings.frames.insert(since, (at, frame.clone()));
        Ok((at, frame))
    }

    /// Ends streams at once.
    pub fn cut(&self, cut: &Cut) {
        self.inner().watchers.retain(|_, w| match cut {
            Cut::All => false,
            Cut::Cluster(cluster) => w.node.cluster != *cluster,
            Cut::Node(node) => w.node != *node,
        });
    }

    /// How many watch.
    pub fn count(&self) -> u64 {
        self.inner().watchers.len() as u64
    }

    /// The nodes of a cluster that watch from a seat, and since when.
    pub fn watching(&self, cluster: &ClusterId, seat: Seat) -> BTreeMap<NodeName, UnixMillis> {
        let inner = self.inner();
        let mut nodes = BTreeMap::new();
        for watcher in inner
            .watchers
            .values()
            .filter(|w| w.node.cluster == *cluster && w.node.seat == seat)
        {
            let since = nodes
                .entry(watcher.node.node.clone())
                .or_insert(watcher.since);
            *since = watcher.since.min(*since);
        }
        nodes
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_event(memory: &Memory, since: Option<u64>) -> (u64, WatchEvent) {
    let revision = memory.state.revision;
    if since == Some(revision) {
        return (revision, WatchEvent::Heartbeat { revision });
    }
    let event = match since.and_then(|from| Some((from, memory.log.since(from)?))) {
        Some((from, changes)) => WatchEvent::Delta {
            delta: Delta {
                from,
                to: revision,
                changes,
            },
        },
        None => WatchEvent::Snapshot {
            snapshot: Box::new(memory.state.snapshot()),
        },
    };
    (revision, event)
}

impl Subscription {
    /// The next frame; `None` when the stream has been cut or the watcher is too slow.
    pub async fn next(&mut self) -> Option<Arc<Frame>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let frame = tokio::select! {
                biased;
                _ = &mut self.cut => return None,
                frame = self.frames.recv() => frame.ok()?,
            };
            match frame.to {
                Some(to) if to <= self.at => {}
                Some(to) => {
                    self.at = to;
                    return Some(frame);
                }
                None => return Some(frame),
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.inner().watchers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Decision, Effect, Note, Seat};
    use crate::store::sqlite;
    use crate::store::sqlite::{Birth, Sqlite};
    use subsea_api::snapshot::BrokerInfo;

    fn store(dir: &std::path::Path) -> Store {
        let path = dir.join("s.db");
        let identity = crate::registry::Identity {
            fleet: "f1".parse().unwrap(),
            epoch: "e".into(),
            ula: "fd12:3456:789a::/48".parse().unwrap(),
            pools: crate::ipam::default_pools(),
        };
        let birth = Birth {
            identity: &identity,
            fleet: &[],
            at: UnixMillis(1),
        };
        Sqlite::create(&path, &birth).unwrap();
        sqlite::check(&path).unwrap();
        Store::open(Box::new(Sqlite::open(&path).unwrap())).unwrap()
    }

    fn change(store: &Store, n: usize) {
        let broker = BrokerInfo {
            urls: vec![format!("https://b{n}:1")],
            ca_pem: String::new(),
        };
        let note = Note::new("broker.address", "", "");
        let decision = Decision::changed((), vec![Effect::Broker(broker)], note);
        store.put("broker", UnixMillis(1), decision).unwrap();
    }

    fn node(name: &str) -> NodeKey {
        NodeKey {
            cluster: "east".parse().unwrap(),
            seat: Seat::Gateway,
            node: name.parse().unwrap(),
        }
    }

    async fn open(hub: &Arc<Hub>, store: &Store, epoch: Option<&str>, since: u64) -> Subscription {
        let position = Position {
            epoch: epoch.map(str::to_owned),
            since,
        };
        hub.open(store, node("gw-1"), &position, UnixMillis(1), |_| Ok(()))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_node_has_so_many_streams_and_the_oldest_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let store = store(tmp.path());
        let hub = Arc::new(Hub::new(0));
        let mut oldest = open(&hub, &store, None, 0).await;
        let mut others = Vec::new();
        for _ in 0..PER_NODE {
            others.push(open(&hub, &store, None, 0).await);
        }
        assert_eq!(hub.count(), PER_NODE as u64);
        assert!(oldest.next().await.is_some(), "what it was promised");
        assert!(oldest.next().await.is_none());
        let position = Position {
            epoch: None,
            since: 0,
        };
        let other = hub.open(&store, node("gw-2"), &position, UnixMillis(1), |_| Ok(()));
        let _other = other.await.unwrap();
        assert_eq!(hub.count(), PER_NODE as u64 + 1, "each node its own");
    }

    #[tokio::test]
    async fn a_watcher_that_lags_is_cut_and_a_quick_one_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let store = store(tmp.path());
        let hub = Arc::new(Hub::new(0));
        let mut slow = open(&hub, &store, None, 0).await;
        let mut quick = open(&hub, &store, None, 0).await;
        quick.next().await.unwrap();
        for n in 0..=BACKLOG {
            change(&store, n);
            hub.publish(&store);
            quick.next().await.unwrap();
        }
        slow.next().await.unwrap();
        assert!(slow.next().await.is_none());
        drop(slow);
        assert_eq!(hub.count(), 1);
    }

    #[tokio::test]
    async fn those_who_come_back_together_share_one_frame() {
        let tmp = tempfile::tempdir().unwrap();
        let store = store(tmp.path());
        change(&store, 0);
        let hub = Arc::new(Hub::new(store.read().state.revision));
        change(&store, 1);
        hub.publish(&store);
        let mut first = open(&hub, &store, Some("e"), 1).await;
        let mut second = open(&hub, &store, Some("e"), 1).await;
        let (a, b) = (first.next().await.unwrap(), second.next().await.unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(a.to, Some(2));
        // What is cached is not served once it is out of date.
        change(&store, 2);
        hub.publish(&store);
        let mut third = open(&hub, &store, Some("e"), 1).await;
        assert_eq!(third.next().await.unwrap().to, Some(3));
    }

    #[tokio::test]
    async fn a_refused_watcher_leaves_no_trace_and_a_cut_one_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let store = store(tmp.path());
        let hub = Arc::new(Hub::new(0));
        let position = Position {
            epoch: None,
            since: 0,
        };
        let refuse = |_: &Memory| Err(Problem::new(Code::NotMember, "no"));
        assert!(
            hub.open(&store, node("x"), &position, UnixMillis(1), refuse)
                .await
                .is_err()
        );
        assert_eq!(hub.count(), 0);
        let mut watcher = open(&hub, &store, None, 0).await;
        watcher.next().await.unwrap();
        hub.cut(&Cut::Node(node("other")));
        assert_eq!(hub.count(), 1);
        hub.cut(&Cut::Cluster("east".parse().unwrap()));
        assert!(watcher.next().await.is_none());
    }
}
