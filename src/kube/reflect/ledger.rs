//! What was written, what is to be written, and what of that now. PURE: time is an argument.
//!
//! A change of state is written at once, other figures at most every [`PACE`], all within a budget of [`BUDGET`] requests a
//! second, of which the oldest want comes first. So an API server that was away gets what changed meanwhile, once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use subsea_api::UnixMillis;

use super::change::{Change, carry, change};
use super::events::{Happened, Told};
use super::object::{Body, Key, Kind};
use super::shown::{Shown, lost};

/// Requests a second, and at once after a rest.
pub const BUDGET: u32 = 10;
/// The requests that may be under way at once.
pub const IN_FLIGHT: usize = 4;
/// Between two writes of an object whose state is the same.
pub const PACE: Duration = Duration::from_secs(10);
/// The same, when only numbers in a text went on.
const WORDS: Duration = Duration::from_mins(1);
/// The events that wait at most; the oldest goes.
const EVENTS: usize = 256;
/// An event that could not be written for so long is no news any more.
const NEWS: Duration = Duration::from_mins(10);
/// The pause before an object that was refused is tried again, which doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

/// What is to be asked of the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Make the object, or mend what stands in it beside its status.
    Create(Key, Body),
    /// Write its status.
    Status(Key, Body),
    /// Remove it, if it still is the one with this uid.
    Delete(Key, Option<String>),
    /// Say what happened to the object with this uid.
    Tell(Happened, String),
}

impl Op {
    /// Which object.
    pub fn key(&self) -> &Key {
        match self {
            Self::Create(key, _) | Self::Status(key, _) | Self::Delete(key, _) => key,
            Self::Tell(happened, _) => &happened.key,
        }
    }
}

/// What became of an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; the uid of the object, where the answer has it.
    Done(Option<String>),
    /// There is no such object any more.
    Missing,
    /// The server does not take this one: it is tried again later.
    Refused,
    /// It could not be asked, or takes nothing at all.
    Away,
}

/// An object as the server has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whose it is: the label of a node.
    pub node: Option<String>,
    /// What stands in it; none when that is not understood.
    pub body: Option<Body>,
    /// Whether its labels and owner are as we write them.
    pub whole: bool,
}

/// What is known of an object.
#[derive(Debug, Default)]
struct Entry {
    /// What it should be; none: not at all.
    wanted: Option<Body>,
    /// Its status as the server has it.
    written: Option<Body>,
    /// Whether it is there, as far as we know, with labels and owner.
    exists: bool,
    uid: Option<String>,
    /// Of which node it is, if it is another one's.
    other: Option<String>,
    /// Since when a write is due.
    due: Option<Duration>,
    last: Option<Duration>,
    in_flight: bool,
    failures: u32,
    retry_at: Duration,
}

/// What was written and is to be written.
#[derive(Debug)]
pub struct Ledger {
    entries: BTreeMap<Key, Entry>,
    told: Told,
    events: VecDeque<(Duration, Happened)>,
    telling: usize,
    tokens: u32,
    refilled: Duration,
    /// The kinds of which it is known what the server has.
    listed: BTreeSet<Kind>,
    /// The kinds that the server takes nothing of, until when.
    held: BTreeMap<Kind, Duration>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            told: Told::default(),
            events: VecDeque::new(),
            telling: 0,
            tokens: BUDGET,
            refilled: Duration::ZERO,
            listed: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// Takes in what the server has of each kind. What is under way is left alone.
    pub fn observe(&mut self, objects: BTreeMap<Kind, Vec<Seen>>, shown: &Shown) {
        for (kind, seen) in objects {
            self.listed.insert(kind);
            let mut seen: BTreeMap<String, Seen> =
                seen.into_iter().map(|s| (s.name.clone(), s)).collect();
            let known = self.entries.iter_mut();
            for (key, entry) in known.filter(|(key, entry)| key.kind == kind && !entry.in_flight) {
                if let Some(seen) = seen.remove(&key.name) {
                    entry.observe(seen, shown);
                } else {
                    entry.forget();
                }
            }
            for (name, seen) in seen {
                let mut entry = Entry::default();
                entry.observe(seen, shown);
                self.entries.insert(Key { kind, name }, entry);
            }
        }
        self.entries
            .retain(|_, entry| entry.exists || entry.in_flight || entry.wanted.is_some());
    }

    /// Takes in what is to be shown now.
    pub fn want(&mut self, shown: &Shown, now: Duration, at: UnixMillis) {
        for (key, entry) in &mut self.entries {
            if shown.objects.contains_key(key) {
                continue;
            }
            let fate = fate(key, entry, shown, at);
            match fate {
                Fate::Left => {
                    entry.wanted = None;
                    entry.due = None;
                }
                Fate::Gone => {
                    entry.wanted = None;
                    entry.due.get_or_insert(now);
                }
                Fate::Kept(body) => entry.want(*body, now),
            }
        }
        for (key, body) in &shown.objects {
            let entry = self.entries.entry(key.clone()).or_default();
            // Before the first look at the server nobody knows what is a change.
            let before = entry.wanted.clone().or_else(|| entry.written.clone());
            entry.want(body.clone(), now);
            let after = entry.wanted.as_ref();
            if let (Some(before), Some(after)) = (before, after)
                && let Some(happened) = self.told.transition(key, &before, after, now, at)
            {
                if self.events.len() >= EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back((now, happened));
            }
        }
        self.entries
            .retain(|_, entry| entry.exists || entry.in_flight || entry.wanted.is_some());
    }

    /// What to do now, within the budget; whoever gets it says by [`Ledger::done`] what became of each.
    pub fn next(&mut self, now: Duration) -> Vec<Op> {
        self.refill(now);
        self.held.retain(|_, until| *until > now);
        self.events
            .retain(|(since, _)| now.saturating_sub(*since) < NEWS);
        let mut due: Vec<(Duration, Key)> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| {
                let due = entry.due.filter(|due| *due <= now)?;
                let may = self.listed.contains(&key.kind) && !self.held.contains_key(&key.kind);
                (may && !entry.in_flight && entry.retry_at <= now).then(|| (due, key.clone()))
            })
            .collect();
        due.sort();
        let busy = self
            .entries
            .values()
            .filter(|entry| entry.in_flight)
            .count()
            + self.telling;
        let mut room = IN_FLIGHT.saturating_sub(busy);
        let mut ops = Vec::new();
        for (_, key) in due {
            if room == 0 || self.tokens == 0 {
                break;
            }
            if let Some(entry) = self.entries.get_mut(&key) {
                ops.push(entry.op(&key));
                room -= 1;
                self.tokens -= 1;
            }
        }
        while room > 0 && self.tokens > 0 {
            let Some(event) = self.next_event() else {
                break;
            };
            ops.push(event);
            room -= 1;
            self.tokens -= 1;
        }
        ops
    }

    /// The oldest event whose object is there.
    fn next_event(&mut self) -> Option<Op> {
        let ready = |(_, happened): &(Duration, Happened)| {
            let entry = self.entries.get(&happened.key);
            entry.is_some_and(|entry| entry.uid.is_some())
        };
        let found = self.events.iter().position(ready)?;
        let (_, happened) = self.events.remove(found)?;
        let uid = self.entries.get(&happened.key)?.uid.clone()?;
        self.telling += 1;
        Some(Op::Tell(happened, uid))
    }

    /// What became of something. `random` spreads the pause after a refusal.
    pub fn done(&mut self, op: Op, outcome: &Outcome, now: Duration, random: u64) {
        let key = match op {
            Op::Tell(happened, _) => {
                self.telling = self.telling.saturating_sub(1);
                if *outcome == Outcome::Away && self.events.len() < EVENTS {
                    self.events.push_front((now, happened));
                }
                return;
            }
            Op::Create(ref key, _) | Op::Status(ref key, _) | Op::Delete(ref key, _) => key.clone(),
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.in_flight = false;
        if matches!(outcome, Outcome::Done(_)) {
            entry.failures = 0;
        }
        match (op, outcome) {
            (Op::Delete(..), Outcome::Done(_) | Outcome::Missing) => {
                entry.forget();
                entry.due = entry.wanted.is_some().then_some(now);
            }
            (Op::Create(..), Outcome::Done(uid)) => {
                entry.exists = true;
                entry.uid.clone_from(uid);
                // Its status is next, and due as long as it was.
            }
            (Op::Status(_, body), Outcome::Done(_)) => {
                entry.written = Some(body);
                entry.last = Some(now);
                entry.due = entry.due_now(now);
            }
            (_, Outcome::Missing) => entry.forget(),
            (_, Outcome::Refused) => {
                entry.failures = entry.failures.saturating_add(1);
                let pause =
                    crate::membership::backoff::delay(entry.failures, RETRY.0, RETRY.1, random);
                entry.retry_at = now + pause;
            }
            (_, Outcome::Away) | (Op::Tell(..), _) => {}
        }
        if entry.wanted.is_none() && !entry.exists {
            self.entries.remove(&key);
        }
    }

    /// What the server has of this kind may be other than we believe: nothing is written before it was looked at again.
    pub fn doubt(&mut self, kind: Kind) {
        self.listed.remove(&kind);
    }

    /// The server takes nothing of this kind: it is left in peace until then.
    pub fn hold(&mut self, kind: Kind, until: Duration) {
        self.held.insert(kind, until);
    }

    /// The kinds that are to be looked at.
    pub fn unlisted(&self, now: Duration) -> Vec<Kind> {
        let held = |kind: &Kind| self.held.get(kind).is_some_and(|until| *until > now);
        let all = Kind::ALL.into_iter();
        all.filter(|kind| !self.listed.contains(kind) && !held(kind))
            .collect()
    }

    /// How many objects wait for a write that is due.
    pub fn waiting(&self, now: Duration) -> usize {
        let due = |entry: &&Entry| entry.due.is_some_and(|due| due <= now);
        self.entries.values().filter(due).count()
    }

    fn refill(&mut self, now: Duration) {
        let each = Duration::from_secs(1) / BUDGET;
        while self.tokens < BUDGET && self.refilled + each <= now {
            self.tokens += 1;
            self.refilled += each;
        }
        if self.tokens == BUDGET {
            self.refilled = now;
        }
    }
}

/// What is to become of an object that the gateway does not show of itself.
enum Fate {
    /// It is not for us.
    Left,
    /// It is stale.
    Gone,
    /// Its gateway is lost: it says so.
    Kept(Box<Body>),
}

fn fate(key: &Key, entry: &Entry, shown: &Shown, at: UnixMillis) -> Fate {
    if !shown.known {
        return Fate::Left;
    }
    match (&entry.other, key.kind) {
        (_, Kind::Cluster) if shown.leads => Fate::Gone,
        (_, Kind::Cluster) => Fate::Left,
        (None, _) => Fate::Gone,
        (Some(_), _) if !shown.leads => Fate::Left,
        (Some(node), _) if !shown.others.contains(node) => Fate::Gone,
        (Some(node), _) => match (shown.lost.get(node), &entry.written) {
            (Some(since), Some(body)) => Fate::Kept(Box::new(lost(body, *since, at))),
            (Some(_), None) | (None, _) => Fate::Left,
        },
    }
}

impl Entry {
    fn observe(&mut self, seen: Seen, shown: &Shown) {
        self.other = seen.node.filter(|node| *node != shown.node);
        // What another one wrote is as it is; only ours must be whole.
        self.exists = seen.whole || self.other.is_some();
        self.written = seen.body;
        self.uid = Some(seen.uid);
    }

    fn forget(&mut self) {
        self.exists = false;
        self.written = None;
        self.uid = None;
    }

    fn want(&mut self, mut body: Body, now: Duration) {
        if let Some(before) = self.wanted.as_ref().or(self.written.as_ref()) {
            carry(before, &mut body);
        }
        self.wanted = Some(body);
        let due = self.due_now(now);
        // It waits since it began to.
        self.due = due.map(|due| self.due.map_or(due, |since| since.min(due)));
    }

    /// From when on a write is due; none when there is nothing to write.
    fn due_now(&self, now: Duration) -> Option<Duration> {
        let wanted = self.wanted.as_ref()?;
        let (Some(written), true) = (&self.written, self.exists) else {
            return Some(now);
        };
        let last = self.last.unwrap_or_default();
        match change(written, wanted) {
            Change::None => None,
            Change::Words => Some(last + WORDS),
            Change::Figures => Some(last + PACE),
            Change::State => Some(now),
        }
    }

    fn op(&mut self, key: &Key) -> Op {
        let op = match (&self.wanted, self.exists) {
            (None, _) => Op::Delete(key.clone(), self.uid.clone()),
            (Some(body), false) => Op::Create(key.clone(), body.clone()),
            (Some(body), true) => Op::Status(key.clone(), body.clone()),
        };
        self.in_flight = true;
        op
    }
}
