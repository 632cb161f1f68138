//! When what is written.

use std::collections::BTreeMap;
use std::time::Duration;

use subsea_api::UnixMillis;

use super::ledger::{BUDGET, IN_FLIGHT, Ledger, Op, Outcome, Seen};
use super::object::{Body, Key, Kind};
use super::shown::{Shown, shown};
use crate::gateway::status::{ClusterGateway, PathState, Status};

fn status(paths: usize) -> Status {
    let mut status = crate::gateway::status::tests::example();
    let path = status.members[0].gateways.remove(0);
    for number in 0..paths {
        let mut path = path.clone();
        path.gateway = format!("gw-{number:03}").parse().unwrap();
        status.members[0].gateways.push(path);
    }
    status
}

/// A server that takes everything.
struct World {
    ledger: Ledger,
    server: BTreeMap<Key, (String, Option<Body>)>,
    node: BTreeMap<Key, String>,
    now: Duration,
    /// Every request, with its time.
    requests: Vec<(Duration, Op)>,
    made: u32,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            server: BTreeMap::new(),
            node: BTreeMap::new(),
            now: Duration::ZERO,
            requests: Vec::new(),
            made: 0,
        }
    }

    fn at(&self) -> UnixMillis {
        UnixMillis(1_000_000).plus(self.now)
    }

    fn list(&mut self, shown: &Shown) {
        let mut all: BTreeMap<Kind, Vec<Seen>> =
            Kind::ALL.into_iter().map(|kind| (kind, vec![])).collect();
        for (key, (uid, body)) in &self.server {
            all.get_mut(&key.kind).unwrap().push(Seen {
                name: key.name.clone(),
                uid: uid.clone(),
                node: self.node.get(key).cloned(),
                body: body.clone(),
                whole: true,
            });
        }
        self.ledger.observe(all, shown);
    }

    fn answer(&mut self, op: Op) {
        let key = op.key().clone();
        let outcome = match &op {
            Op::Create(_, body) => {
                self.made += 1;
                let uid = format!("uid-{}", self.made);
                self.server.insert(key.clone(), (uid.clone(), None));
                if !matches!(body, Body::Cluster(_)) {
                    self.node.insert(key, "gw-1".to_owned());
                }
                Outcome::Done(Some(uid))
            }
            Op::Status(_, body) => match self.server.get_mut(&key) {
                Some((_, stored)) => {
                    *stored = Some(body.clone());
                    Outcome::Done(None)
                }
                None => Outcome::Missing,
            },
            Op::Delete(..) => {
                self.server.remove(&key);
                Outcome::Done(None)
            }
            Op::Tell(..) => Outcome::Done(None),
        };
        self.requests.push((self.now, op.clone()));
        self.ledger.done(op, &outcome, self.now, 0);
    }

    /// Lives with this status for so long, in steps as the shell does.
    fn live(&mut self, status: &Status, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let shown = shown(status, self.at());
            if !self.ledger.unlisted(self.now).is_empty() {
                self.list(&shown);
            }
            self.ledger.want(&shown, self.now, self.at());
            for op in self.ledger.next(self.now) {
                self.answer(op);
            }
            self.now += Duration::from_millis(100);
        }
    }

    fn take(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.requests)
            .into_iter()
            .map(|(_, op)| op)
            .collect()
    }

    fn reason(&self, kind: Kind, name: &str) -> String {
        let key = Key {
            kind,
            name: name.to_owned(),
        };
        let body = self.server[&key].1.as_ref().unwrap();
        body.condition("Ready").unwrap().reason.clone()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn everything_is_made_once_and_then_left_alone() {
    let mut world = World::new();
    let status = status(2);
    world.live(&status, 3 * SECOND);
    assert_eq!(
        world.server.len(),
        5,
        "a gateway, two connections, two clusters"
    );
    assert!(world.server.values().all(|(_, body)| body.is_some()));
    assert_eq!(
        world.take().len(),
        10,
        "each is made, and its status written"
    );
    world.live(&status, 60 * SECOND);
    assert_eq!(world.take(), []);
}

#[test]
fn a_state_is_written_at_once_and_figures_at_their_pace() {
    let mut world = World::new();
    let mut status = status(1);
    world.live(&status, 3 * SECOND);
    world.take();
    // Trembling figures, five times a second.
    for turn in 0..200 {
        let path = &mut status.members[0].gateways[0];
        let echo = path.echo.as_mut().unwrap();
        echo.rtt_smoothed_ms = Some(if turn % 2 == 0 { 10.0 } else { 20.0 });
        world.live(&status, 2 * SECOND / 10);
    }
    let times: Vec<Duration> = world.requests.iter().map(|(at, _)| *at).collect();
    assert!((3..=5).contains(&times.len()), "in 40 s: {times:?}");
    assert!(
        times
            .windows(2)
            .all(|pair| pair[0] + 10 * SECOND <= pair[1])
    );
    world.take();
    status.members[0].gateways[0].state = PathState::Connected;
    let start = world.now;
    world.live(&status, SECOND);
    let (at, first) = &world.requests[0];
    assert_eq!(*at, start, "at once");
    assert!(matches!(first, Op::Status(..)));
    let told = world.take().into_iter().any(
        |op| matches!(op, Op::Tell(what, uid) if what.reason == "Connected" && !what.warning && !uid.is_empty()),
    );
    assert!(told);
}

#[test]
fn a_storm_stays_within_the_budget_and_the_oldest_goes_first() {
    let mut world = World::new();
    let mut status = status(100);
    world.live(&status, 60 * SECOND);
    let first: BTreeMap<u64, usize> = world.requests.iter().fold(BTreeMap::new(), |mut all, r| {
        *all.entry(r.0.as_secs()).or_default() += 1;
        all
    });
    let most = usize::try_from(BUDGET).unwrap();
    assert!(
        first
            .iter()
            .all(|(second, count)| *count <= if *second == 0 { 2 * most } else { most + 1 }),
        "{first:?}"
    );
    assert_eq!(world.server.len(), 103);
    world.take();
    for (number, path) in status.members[0].gateways.iter_mut().enumerate() {
        if number == 99 {
            path.state = PathState::Down;
        }
    }
    world.live(&status, Duration::from_millis(100));
    for path in &mut status.members[0].gateways {
        path.state = PathState::Connected;
    }
    world.live(&status, 30 * SECOND);
    let order: Vec<String> = world
        .take()
        .iter()
        .filter(|op| matches!(op, Op::Status(..)))
        .map(|op| op.key().name.clone())
        .collect();
    assert_eq!(order[0], "gw-1.west.gw-099", "its change came first");
    assert!(order.len() >= 101);
}

#[test]
fn what_changed_while_the_server_was_away_is_written_once() {
    let mut world = World::new();
    let mut status = status(1);
    world.live(&status, 3 * SECOND);
    world.take();
    for state in [PathState::Down, PathState::Connected, PathState::Down] {
        status.members[0].gateways[0].state = state;
        for _ in 0..50 {
            let shown = shown(&status, world.at());
            world.ledger.want(&shown, world.now, world.at());
            for op in world.ledger.next(world.now) {
                world.ledger.done(op, &Outcome::Away, world.now, 0);
            }
            for kind in Kind::ALL {
                world.ledger.doubt(kind);
            }
            world.now += SECOND;
        }
    }
    world.live(&status, 3 * SECOND);
    let ops = world.take();
    let writes = ops
        .iter()
        .filter(|op| matches!(op, Op::Status(key, _) if key.kind == Kind::Connection));
    assert_eq!(writes.count(), 1, "{ops:?}");
    assert_eq!(world.reason(Kind::Connection, "gw-1.west.gw-000"), "Dead");
}

#[test]
fn what_is_ours_and_not_shown_goes_and_what_others_wrote_stays() {
    let mut world = World::new();
    let mut both = status(2);
    both.cluster_gateways.push(ClusterGateway {
        node: "gw-2".parse().unwrap(),
        expired: None,
    });
    world.live(&both, 3 * SECOND);
    let body = world.server[&Key {
        kind: Kind::Connection,
        name: "gw-1.west.gw-000".to_owned(),
    }]
        .1
        .clone();
    let of = |name: &str| Key {
        kind: Kind::Connection,
        name: name.to_owned(),
    };
    for (name, node) in [("gw-2.west.gw-000", "gw-2"), ("gw-9.west.gw-000", "gw-9")] {
        world
            .server
            .insert(of(name), ("x".to_owned(), body.clone()));
        world.node.insert(of(name), node.to_owned());
    }
    both.members[0].gateways.remove(1);
    world.take();
    for kind in Kind::ALL {
        world.ledger.doubt(kind);
    }
    world.live(&both, 3 * SECOND);
    let gone: Vec<Op> = world
        .take()
        .into_iter()
        .filter(|op| matches!(op, Op::Delete(..)))
        .collect();
    let names: Vec<&str> = gone.iter().map(|op| op.key().name.as_str()).collect();
    assert_eq!(names, ["gw-1.west.gw-001", "gw-9.west.gw-000"]);
    assert!(gone.iter().all(|op| matches!(op, Op::Delete(_, Some(_)))));

    // The broker has not heard of the other one for long.
    both.cluster_gateways[1].expired = Some(UnixMillis(7));
    world.live(&both, 3 * SECOND);
    assert_eq!(world.reason(Kind::Connection, "gw-2.west.gw-000"), "Lost");
    // Without a fleet nothing is stale.
    let mut nothing = status(0);
    nothing.snapshot.source = crate::gateway::status::SnapshotSource::None;
    nothing.members.clear();
    world.take();
    world.live(&nothing, 20 * SECOND);
    assert!(world.take().iter().all(|op| !matches!(op, Op::Delete(..))));
}

#[test]
fn what_somebody_removed_comes_back() {
    let mut world = World::new();
    let status = status(1);
    world.live(&status, 3 * SECOND);
    world.take();
    let key = Key {
        kind: Kind::Gateway,
        name: "gw-1".to_owned(),
    };
    world.server.remove(&key);
    for kind in Kind::ALL {
        world.ledger.doubt(kind);
    }
    world.live(&status, 3 * SECOND);
    assert!(world.server.contains_key(&key));
    assert_eq!(world.take().len(), 2);
}

#[test]
fn a_refused_object_holds_up_no_other_and_is_tried_less_and_less() {
    let mut ledger = Ledger::default();
    let status = status(1);
    let mut tries = 0;
    for tenth in 0..600 {
        let now = Duration::from_millis(tenth * 100);
        let at = UnixMillis(tenth * 100);
        let shown = shown(&status, at);
        if !ledger.unlisted(now).is_empty() {
            ledger.observe(Kind::ALL.map(|kind| (kind, Vec::new())).into(), &shown);
        }
        ledger.want(&shown, now, at);
        let ops = ledger.next(now);
        assert!(ops.len() <= IN_FLIGHT);
        for op in ops {
            let refused = op.key().kind == Kind::Gateway;
            tries += u32::from(refused);
            let outcome = if refused {
                Outcome::Refused
            } else {
                Outcome::Done(Some("u".to_owned()))
            };
            ledger.done(op, &outcome, now, 1_000);
        }
    }
    assert!((5..=8).contains(&tries), "in a minute: {tries}");
    assert_eq!(ledger.waiting(Duration::from_mins(1)), 1);
}

#[test]
fn a_kind_that_is_held_waits_alone() {
    let mut world = World::new();
    world.ledger.hold(Kind::Connection, 20 * SECOND);
    let status = status(1);
    world.live(&status, 19 * SECOND);
    let kinds = |ops: &[Op]| -> Vec<Kind> { ops.iter().map(|op| op.key().kind).collect() };
    let first = kinds(&world.take());
    assert!(
        first.len() == 6 && !first.contains(&Kind::Connection),
        "{first:?}"
    );
    world.live(&status, 3 * SECOND);
    assert_eq!(kinds(&world.take()), [Kind::Connection; 2]);
}
