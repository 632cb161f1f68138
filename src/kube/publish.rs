//! Writes what a gateway shows to the API server of its cluster. Shell.
//!
//! The data plane knows nothing of it: the status is asked for twice a second, as `subsea status` asks for it. An API server
//! that is away, refuses or forgets is a state, shown in the status, and asked again with growing pauses for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
    Preconditions,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::connect::connect;
use super::fault::Fault;
use super::labels;
use super::node;
use super::reflect::events::{NAMESPACE, event};
use super::reflect::ledger::{Ledger, Op, Outcome, Seen};
use super::reflect::object::{
    Body, Kind, MANAGER, Writer, is_whole, main_patch, status_patch, surplus,
};
use super::reflect::shown::{Shown, shown, stopped};
use super::resources;
use crate::control::around::Around;
use crate::gateway::status::Status;
use crate::membership::clock::{Clock, random};
use crate::membership::{backoff, chain};

/// How often the status is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked at what the server has, though nothing is known to have changed.
const LIST: Duration = Duration::from_mins(1);
/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest and the longest pause after the server could not be asked, or took nothing.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// At the end, so long is spent on saying so.
const FAREWELL: Duration = Duration::from_secs(3);

/// Publishes until `stop` turns true and that was said, too.
pub async fn run(around: Around<Status>, stop: watch::Receiver<bool>) {
    around.notes.kubernetes(|_| {});
    let mut failures = 0_u32;
    let client = loop {
        match connect(None).await {
            Ok(client) => break client,
            Err(error) => {
                failures = failures.saturating_add(1);
                let problem = format!("Kubernetes: {}", chain(&error));
                around
                    .notes
                    .kubernetes(|status| status.problem = Some(problem));
                let pause = backoff::delay(failures, RETRY.0, RETRY.1, random());
                let mut stop = stop.clone();
                let stopped = async move {
                    // The sender gone means the same.
                    let _ = stop.wait_for(|stop| *stop).await;
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stopped => return,
                }
            }
        }
    };
    with(client, around, stop).await;
}

/// The same with a client.
pub async fn with(client: Client, around: Around<Status>, stop: watch::Receiver<bool>) {
    around.notes.kubernetes(|status| status.problem = None);
    let publisher = Publisher {
        client,
        clock: Clock::start(),
        around,
        ledger: Ledger::default(),
        writer: Writer::default(),
        shown: None,
        problems: BTreeMap::new(),
        failures: BTreeMap::new(),
        listed: Duration::ZERO,
        asking: JoinSet::new(),
    };
    publisher.run(stop).await;
}

/// What a problem is about: the server, or one of its kinds.
type About = Option<Kind>;

struct Publisher {
    client: Client,
    clock: Clock,
    around: Around<Status>,
    ledger: Ledger,
    writer: Writer,
    shown: Option<Shown>,
    problems: BTreeMap<About, String>,
    failures: BTreeMap<About, (u32, Duration)>,
    listed: Duration,
    asking: JoinSet<(Op, Result<Option<String>, Fault>)>,
}

impl Publisher {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let stopped = async move {
            // The sender gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let mut stopped = std::pin::pin!(stopped);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.look().await,
                Some(done) = self.asking.join_next(), if !self.asking.is_empty() => {
                    self.take(done);
                    self.ask();
                }
                () = &mut stopped => break,
            }
        }
        if tokio::time::timeout(FAREWELL, self.farewell())
            .await
            .is_err()
        {
            tracing::debug!("not all that is shown says that this gateway was stopped");
        }
    }

    /// Looks at the status, and at the server when that is due, and asks for what is to be done.
    async fn look(&mut self) {
        let Some(daemon) = self.around.door.daemon() else {
            return;
        };
        let now = self.clock.now();
        // Off the threads that others wait for: the kernel may be asked.
        let asking = tokio::task::spawn_blocking(move || daemon.status());
        let Ok(status) = asking.await else {
            return;
        };
        let new = shown(&status, now.wall);
        self.ledger.want(&new, now.mono, now.wall);
        self.shown = Some(new);
        if now.mono.saturating_sub(self.listed) >= LIST && self.asking.is_empty() {
            for kind in Kind::ALL {
                self.ledger.doubt(kind);
            }
        }
        if !self.is_away(now.mono) && !self.ledger.unlisted(now.mono).is_empty() {
            self.list(status.node.as_str()).await;
        }
        self.ask();
    }

    fn is_away(&self, now: Duration) -> bool {
        self.failures
            .get(&None)
            .is_some_and(|(_, until)| *until > now)
    }

    /// Asks for what is due.
    fn ask(&mut self) {
        let now = self.clock.now().mono;
        if self.is_away(now) {
            return;
        }
        for op in self.ledger.next(now) {
            let (client, writer) = (self.client.clone(), self.writer.clone());
            self.asking.spawn(async move {
                let asked = tokio::time::timeout(PATIENCE, perform(&client, &writer, &op)).await;
                let late = || Fault::Away(format!("no answer within {} s", PATIENCE.as_secs()));
                let result = asked.unwrap_or_else(|_| Err(late()));
                (op, result)
            });
        }
    }

    /// Takes in what became of a request.
    fn take(&mut self, done: Result<(Op, Result<Option<String>, Fault>), tokio::task::JoinError>) {
        let (op, result) = match done {
            Ok(done) => done,
            Err(error) => {
                // None panics; what it was about is looked at anew.
                tracing::error!(%error, "a request to the API server failed");
                self.ledger = Ledger::default();
                return;
            }
        };
        let now = self.clock.now();
        let outcome = match result {
            Ok(uid) => {
                self.around
                    .notes
                    .kubernetes(|status| status.last_write = Some(now.wall));
                match op {
                    Op::Tell(..) => self.around.notes.problem("kubernetes-events", None),
                    Op::Create(..) | Op::Status(..) | Op::Delete(..) => {
                        self.fine(Some(op.key().kind));
                    }
                }
                Outcome::Done(uid)
            }
            Err(fault) => self.fault(&op, &fault),
        };
        self.ledger.done(op, &outcome, now.mono, random());
    }

    fn fault(&mut self, op: &Op, fault: &Fault) -> Outcome {
        let kind = op.key().kind;
        let what = what(op);
        match (fault, op) {
            (Fault::Away(_), _) => {
                self.failed(None, fault.describe(&what));
                for kind in Kind::ALL {
                    self.ledger.doubt(kind);
                }
                Outcome::Away
            }
            // What is shown is worth more than what is told of it.
            (_, Op::Tell(..)) => {
                let problem = fault.describe(&what);
                self.around
                    .notes
                    .problem("kubernetes-events", Some(problem));
                Outcome::Refused
            }
            (Fault::Forbidden(_) | Fault::NoKind(_), _) => {
                self.failed(Some(kind), fault.describe(&what));
                self.ledger.doubt(kind);
                Outcome::Away
            }
            (Fault::Missing, _) => Outcome::Missing,
            (Fault::Conflict, _) => {
                self.ledger.doubt(kind);
                Outcome::Refused
            }
            (Fault::Invalid(_), _) => {
                self.problem(Some(kind), Some(fault.describe(&what)));
                Outcome::Refused
            }
        }
    }

    /// Notes that the server, or a kind, cannot be asked, and leaves it in peace for a while.
    fn failed(&mut self, about: About, problem: String) {
        let now = self.clock.now().mono;
        let (failures, until) = self.failures.get(&about).copied().unwrap_or_default();
        // Of several that were under way at once, one counts.
        if until > now {
            return;
        }
        let failures = failures.saturating_add(1);
        let until = now + backoff::delay(failures, RETRY.0, RETRY.1, random());
        self.failures.insert(about, (failures, until));
        if let Some(kind) = about {
            self.ledger.hold(kind, until);
        }
        self.problem(about, Some(problem));
    }

    fn fine(&mut self, about: About) {
        for about in [None, about] {
            self.failures.remove(&about);
            self.problem(about, None);
        }
    }

    fn problem(&mut self, about: About, problem: Option<String>) {
        let before = self.problems.get(&about);
        if before == problem.as_ref() {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::warn!(problem, "what kubectl shows of this gateway");
                self.problems.insert(about, problem);
            }
            None => {
                self.problems.remove(&about);
            }
        }
        let all: Vec<String> = self.problems.values().cloned().collect();
        let all = (!all.is_empty()).then(|| all.join("; "));
        self.around.notes.kubernetes(|status| status.problem = all);
    }

    /// Looks at what the server has.
    async fn list(&mut self, node: &str) {
        let now = self.clock.now().mono;
        self.listed = now;
        let Some(shown) = self.shown.clone() else {
            return;
        };
        self.writer.node.clone_from(&shown.node);
        match asked(node::read(&self.client, node), false).await {
            Ok(facts) => {
                self.writer.owner = facts.and_then(|facts| facts.owner(node));
                self.around.notes.problem("kubernetes-node", None);
            }
            Err(fault @ Fault::Away(_)) => {
                return self.failed(None, fault.describe("get node"));
            }
            Err(fault) => {
                // Without an owner, what is written outlives the node.
                let problem = fault.describe(&format!("get node {node}"));
                self.around.notes.problem("kubernetes-node", Some(problem));
            }
        }
        for kind in self.ledger.unlisted(now) {
            // Whoever leads cares for the others' as well.
            let all = shown.leads || kind == Kind::Cluster;
            match asked(list(&self.client, kind, &self.writer, all), false).await {
                Ok(seen) => {
                    self.ledger.observe([(kind, seen)].into(), &shown);
                    self.failures.remove(&None);
                    self.problem(None, None);
                }
                Err(fault) => {
                    let problem =
                        fault.describe(&format!("list {}.{}", kind.plural(), resources::GROUP));
                    let about = (!matches!(fault, Fault::Away(_))).then_some(kind);
                    self.failed(about, problem);
                    if about.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Says that the gateway was stopped: itself first, then as many of its connections as time allows.
    async fn farewell(&mut self) {
        let Some(before) = self.shown.clone() else {
            return;
        };
        while let Some(done) = self.asking.join_next().await {
            self.take(done);
        }
        let now = self.clock.now();
        let shown = Shown {
            objects: stopped(&before, now.wall),
            // What is not shown any more is not stale for that.
            known: false,
            ..before
        };
        self.ledger.want(&shown, now.mono, now.wall);
        loop {
            self.ask();
            match self.asking.join_next().await {
                Some(done) => self.take(done),
                None if self.ledger.waiting(self.clock.now().mono) == 0 => return,
                None => tokio::time::sleep(LOOK / 5).await,
            }
        }
    }
}

/// A request within its time, and what its failure means.
async fn asked<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
    named: bool,
) -> Result<T, Fault> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(result) => result.map_err(|error| Fault::of(&error, named)),
        Err(_) => Err(Fault::Away(format!(
            "no answer within {} s",
            PATIENCE.as_secs()
        ))),
    }
}

/// What is being done, as `kubectl auth can-i` would be asked.
fn what(op: &Op) -> String {
    let kind = op.key().kind.plural();
    let (group, name) = (resources::GROUP, &op.key().name);
    match op {
        Op::Create(..) => format!("patch {kind}.{group} `{name}`"),
        Op::Status(..) => format!("patch {kind}.{group}/status `{name}`"),
        Op::Delete(..) => format!("delete {kind}.{group} `{name}`"),
        Op::Tell(..) => format!("create events.events.k8s.io in namespace {NAMESPACE}"),
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Gateway => ApiResource::erase::<resources::Gateway>(&()),
        Kind::Connection => ApiResource::erase::<resources::Connection>(&()),
        Kind::Cluster => ApiResource::erase::<resources::Cluster>(&()),
    }
}

fn api(client: &Client, kind: Kind) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(kind))
}

/// Does it, and gives the uid of the object.
async fn perform(client: &Client, writer: &Writer, op: &Op) -> Result<Option<String>, Fault> {
    let fault = |error: kube::Error| Fault::of(&error, true);
    let apply = PatchParams::apply(MANAGER).force();
    match op {
        Op::Create(key, body) => {
            let (api, patch) = (api(client, key.kind), main_patch(key, body, writer));
            let made = api.patch(&key.name, &apply, &Patch::Apply(patch)).await;
            made.map(|object| object.metadata.uid).map_err(fault)
        }
        Op::Status(key, body) => {
            let (api, patch) = (api(client, key.kind), status_patch(key, body));
            let applied = Patch::Apply(&patch);
            let made = api.patch_status(&key.name, &apply, &applied).await;
            let mut made = made.map_err(fault)?;
            if let Some(surplus) = surplus(&patch, &made.data) {
                let plain = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let surplus = Patch::Merge(&surplus);
                let cleaned = api.patch_status(&key.name, &plain, &surplus).await;
                made = cleaned.map_err(fault)?;
            }
            Ok(made.metadata.uid)
        }
        Op::Delete(key, uid) => {
            let parameters = DeleteParams::default().preconditions(Preconditions {
                uid: uid.clone(),
                ..Preconditions::default()
            });
            let deleted = api(client, key.kind).delete(&key.name, &parameters).await;
            deleted.map(|_| None).map_err(fault)
        }
        Op::Tell(happened, uid) => {
            let event = event(happened, uid, &writer.node, random());
            let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
            let made = api.create(&PostParams::default(), &event).await;
            made.map(|_| None).map_err(fault)
        }
    }
}

/// What the server has of a kind that is ours.
async fn list(
    client: &Client,
    kind: Kind,
    writer: &Writer,
    all: bool,
) -> Result<Vec<Seen>, kube::Error> {
    let selector = if all {
        format!("{}={MANAGER}", labels::MANAGED_BY)
    } else {
        format!("{}={}", labels::NODE, writer.node)
    };
    let mut parameters = ListParams::default().labels(&selector).limit(PAGE);
    let mut seen = Vec::new();
    loop {
        let page = api(client, kind).list(&parameters).await?;
        seen.extend(page.items.into_iter().filter_map(|object| {
            let name = object.metadata.name.clone()?;
            let uid = object.metadata.uid.clone()?;
            let labels = object.metadata.labels.as_ref();
            Some(Seen {
                name,
                uid,
                node: labels.and_then(|labels| labels.get(labels::NODE).cloned()),
                body: Body::parse(kind, &object.data),
                whole: is_whole(kind, &object.metadata, writer),
            })
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(seen),
        }
    }
}
