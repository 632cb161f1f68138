//! A fleet in simulated time: what its gateways think of each other, and where they send flows, while the network
//! loses, delays, doubles, reorders and cuts, and gateways die, drain and come back.
//!
//! Only what decides runs, as in the daemon: `gateway::prober_paths` with the health, budget and steering below it. The
//! choice for a flow is made here as the data plane makes it. A seed gives the same run every time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use subsea::gateway::echo::{Echo, Flags};
use subsea::gateway::health::State;
use subsea::gateway::health_timing::Timing;
use subsea::gateway::mesh::PathId;
use subsea::gateway::prober_paths::{Paths, Target, Targets};
use subsea::gateway::steering::Steering;

const STEP: u64 = 5;
/// In milliseconds: everything comes up, things go wrong, nothing happens any more.
const CALM: u64 = 5_000;
const STORM: u64 = 60_000;
/// The longest hold-down and what it takes to notice.
const SETTLE: u64 = 70_000;
const REST: u64 = 20_000;
const FLOWS: u64 = 4;
/// The longest way of a packet.
const LONGEST: u64 = 30;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap_or(0) % limit
    }

    fn in_hundred(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// A gateway, while it runs.
struct Gateway {
    paths: Paths,
    steering: Steering,
    /// Where each flow goes, by cluster.
    flows: BTreeMap<(usize, u64), usize>,
    /// Since when each path has carried flows.
    hot: BTreeMap<usize, u64>,
    /// When each path was last switched to or away from.
    usable: BTreeMap<usize, (u64, bool)>,
    flags: Flags,
}

struct Fleet {
    now: u64,
    random: Random,
    clusters: usize,
    each: usize,
    gateways: Vec<Option<Gateway>>,
    /// Ordered pairs that nothing passes, and since when.
    cut: BTreeMap<(usize, usize), u64>,
    /// Since when a gateway is down.
    down: BTreeMap<usize, u64>,
    flying: BTreeMap<(u64, u64), (usize, usize, Echo)>,
    sent: u64,
    loss: u64,
    /// Flows moved.
    moves: u64,
}

fn inner(number: usize) -> IpAddr {
    let number = u8::try_from(number).expect("a small fleet");
    [198, 19, 0, number].into()
}

impl Fleet {
    fn new(seed: u64, clusters: usize, each: usize) -> Self {
        let mut fleet = Self {
            now: 0,
            random: Random(seed),
            clusters,
            each,
            gateways: Vec::new(),
            cut: BTreeMap::new(),
            down: BTreeMap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            loss: 3,
            moves: 0,
        };
        for number in 0..clusters * each {
            let gateway = fleet.start(number);
            fleet.gateways.push(Some(gateway));
        }
        fleet
    }

    fn id(&self, number: usize) -> PathId {
        PathId {
            cluster: format!("c{}", self.cluster(number))
                .parse()
                .expect("a cluster id"),
            node: format!("n{number}").parse().expect("a node name"),
        }
    }

    fn cluster(&self, number: usize) -> usize {
        number / self.each
    }

    fn others(&self, number: usize) -> impl Iterator<Item = usize> + use<> {
        let own = self.cluster(number);
        let each = self.each;
        (0..self.clusters * each).filter(move |other| other / each != own)
    }

    fn start(&mut self, number: usize) -> Gateway {
        let target = |other| Target {
            inner: vec![inner(other)],
            device: "subsea0".to_owned(),
            ceiling: Some(1420),
            road: None,
        };
        let targets = Targets {
            own: vec![inner(number)],
            paths: self
                .others(number)
                .map(|other| (self.id(other), target(other)))
                .collect(),
            ..Targets::default()
        };
        let mut paths = Paths::new(Timing::default(), ms(self.now));
        paths.aim(&targets, ms(self.now), || self.random.next());
        Gateway {
            paths,
            steering: Steering::default(),
            flows: BTreeMap::new(),
            hot: BTreeMap::new(),
            usable: BTreeMap::new(),
            flags: Flags::default(),
        }
    }

    fn send(&mut self, from: usize, to: usize, echo: Echo) {
        if self.cut.contains_key(&(from, to)) || self.random.in_hundred(self.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.in_hundred(2));
        for _ in 0..copies {
            let at = self.now + 1 + self.random.next() % LONGEST;
            self.sent += 1;
            self.flying.insert((at, self.sent), (from, to, echo));
        }
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            let late = self.flying.split_off(&(self.now + 1, 0));
            let come = std::mem::replace(&mut self.flying, late);
            for (from, to, echo) in come.into_values() {
                let now = ms(self.now);
                let gateway = self.gateways[to].as_mut();
                let reply =
                    gateway.and_then(|gateway| gateway.paths.receive(inner(from), &echo, now));
                if let Some(reply) = reply {
                    self.send(to, from, reply);
                }
            }
            for number in 0..self.gateways.len() {
                self.poll(number);
            }
            if self.now.is_multiple_of(50) {
                for number in 0..self.gateways.len() {
                    self.check(number);
                }
            }
        }
    }

    fn poll(&mut self, number: usize) {
        let now = ms(self.now);
        let Some(gateway) = self.gateways[number].as_mut() else {
            return;
        };
        if gateway.paths.due().is_some_and(|due| due <= now) {
            for out in gateway.paths.poll(now) {
                let IpAddr::V4(to) = out.to else {
                    unreachable!()
                };
                self.send(number, usize::from(to.octets()[3]), out.echo);
            }
        }
        let Some(gateway) = self.gateways[number].as_mut() else {
            return;
        };
        if let Some(steering) = gateway.paths.steer() {
            gateway.steering = steering.clone();
        }
    }

    /// Since when nothing passes between the two in one direction or the other.
    fn broken(&self, one: usize, other: usize) -> Option<u64> {
        let cuts = [(one, other), (other, one)].map(|pair| self.cut.get(&pair).copied());
        let downs = [one, other].map(|number| self.down.get(&number).copied());
        cuts.into_iter().chain(downs).flatten().min()
    }

    /// The invariants, at one gateway.
    fn check(&mut self, number: usize) {
        let now = self.now;
        let ids: BTreeMap<PathId, usize> = self
            .others(number)
            .map(|other| (self.id(other), other))
            .collect();
        let broken: BTreeMap<usize, u64> = ids
            .values()
            .filter_map(|other| Some((*other, self.broken(number, *other)?)))
            .collect();
        let each = self.each;
        let Some(gateway) = self.gateways[number].as_mut() else {
            return;
        };
        let reports = gateway.paths.reports(ms(now));
        let works: BTreeMap<usize, bool> = reports
            .iter()
            .map(|(id, report)| (ids[id], report.health.state.works()))
            .collect();
        let in_use: BTreeSet<usize> = gateway.steering.in_use.iter().map(|id| ids[id]).collect();

        for (id, report) in &reports {
            let other = ids[id];
            let health = &report.health;
            // A dead path is known to be dead in time: the last answer may have been on its way for a while.
            let bound = health.bound + ms(2 * LONGEST + 4 * STEP);
            // The bound is another one since the path carries flows.
            let hot = gateway.hot.get(&other).copied().unwrap_or(0);
            if broken
                .get(&other)
                .is_some_and(|since| ms(now - since.max(&hot)) > bound)
            {
                assert!(
                    !health.state.works(),
                    "{now}: {number} takes {other} for alive"
                );
            }
            // No oscillation.
            let (at, was) = *gateway.usable.get(&other).unwrap_or(&(0, false));
            if was != health.usable {
                let first = !gateway.usable.contains_key(&other);
                assert!(
                    first || was || now - at >= 1_950,
                    "{now}: {number} returns to {other} after {}",
                    now - at
                );
                gateway.usable.insert(other, (now, health.usable));
            }
        }

        for cluster in 0..self.clusters {
            if cluster == number / each {
                continue;
            }
            let gateways = || (cluster * each..(cluster + 1) * each).filter(|n| in_use.contains(n));
            for flow in 0..FLOWS {
                let weight = |n: &usize| {
                    (flow * 31 + *n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
                };
                let best = gateways().max_by_key(weight);
                let best = best.expect("a gateway of each cluster is always in use");
                let kept = gateway.flows.get(&(cluster, flow)).copied();
                let goes = kept.filter(|kept| in_use.contains(kept)).unwrap_or(best);
                self.moves += u64::from(kept.is_some_and(|kept| kept != goes));
                gateway.flows.insert((cluster, flow), goes);
                let others = (cluster * each..(cluster + 1) * each).any(|n| works[&n]);
                assert!(
                    works[&goes] || !others,
                    "{now}: {number} sends to {goes}, which is known to be dead"
                );
            }
        }

        let carrying: BTreeSet<usize> = gateway.flows.values().copied().collect();
        gateway.hot.retain(|other, _| carrying.contains(other));
        for other in &carrying {
            gateway.hot.entry(*other).or_insert(now);
        }
        let carrying = ids
            .into_iter()
            .filter(|(_, other)| carrying.contains(other));
        let carrying = carrying.map(|(id, _)| id).collect();
        gateway.paths.carry(Some(carrying), ms(now));
    }

    /// Something goes wrong, or right again.
    fn disturb(&mut self) {
        let all = self.gateways.len();
        let one = self.random.below(all);
        let other = self.others(one).nth(self.random.below(all - self.each));
        let Some(other) = other else { return };
        let now = self.now;
        match self.random.below(7) {
            0 => {
                self.cut.insert((one, other), now);
            }
            1 => {
                self.cut.entry((one, other)).or_insert(now);
                self.cut.entry((other, one)).or_insert(now);
            }
            // Two clusters lose each other.
            2 => {
                let (a, b) = (self.cluster(one), self.cluster(other));
                for one in a * self.each..(a + 1) * self.each {
                    for other in b * self.each..(b + 1) * self.each {
                        self.cut.entry((one, other)).or_insert(now);
                        self.cut.entry((other, one)).or_insert(now);
                    }
                }
            }
            3 => {
                self.gateways[one] = None;
                self.down.entry(one).or_insert(now);
            }
            4 => self.revive(one),
            5 => {
                if let Some(gateway) = &mut self.gateways[one] {
                    gateway.flags.draining = !gateway.flags.draining;
                    gateway.paths.say(gateway.flags, ms(now));
                }
            }
            _ => {
                let heal = self.random.below(3);
                let left = std::mem::take(&mut self.cut);
                self.cut = left.into_iter().skip(heal * 2).collect();
            }
        }
    }

    /// A link that is there and not there.
    fn flap(&mut self) {
        let (one, other) = (0, self.gateways.len() - 1);
        for _ in 0..8 {
            for pair in [(one, other), (other, one)] {
                self.cut.insert(pair, self.now);
            }
            self.run(900);
            self.cut.clear();
            self.run(1_700);
        }
    }

    fn revive(&mut self, number: usize) {
        if self.gateways[number].is_none() {
            self.down.remove(&number);
            let gateway = self.start(number);
            self.gateways[number] = Some(gateway);
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        for number in 0..self.gateways.len() {
            self.revive(number);
            if let Some(gateway) = &mut self.gateways[number] {
                gateway.flags = Flags::default();
                gateway.paths.say(gateway.flags, ms(self.now));
            }
        }
    }

    fn everybody_reaches_everybody(&self) {
        for (number, gateway) in self.gateways.iter().enumerate() {
            let gateway = gateway.as_ref().expect("all run again");
            for (id, report) in gateway.paths.reports(ms(self.now)) {
                assert!(
                    report.health.state.works() && report.health.usable,
                    "{number} to {id:?}: {report:?}"
                );
                assert!(report.health.state != State::Suspect || self.loss > 0);
                assert!(gateway.steering.in_use.contains(&id));
            }
            assert_eq!(gateway.steering.reached.len(), self.clusters - 1);
        }
    }
}

fn live(seed: u64, clusters: usize, each: usize) {
    let mut fleet = Fleet::new(seed, clusters, each);
    fleet.run(CALM);
    fleet.everybody_reaches_everybody();
    let end = fleet.now + STORM;
    while fleet.now < end {
        fleet.disturb();
        let pause = 100 + fleet.random.next() % 3_000;
        fleet.run(pause.next_multiple_of(STEP));
    }
    fleet.heal();
    fleet.run(SETTLE);
    fleet.flap();
    fleet.run(SETTLE);
    fleet.everybody_reaches_everybody();
    let moves = fleet.moves;
    assert_eq!(moves > 0, each > 1, "flows move where they can");
    fleet.run(REST);
    fleet.everybody_reaches_everybody();
    assert_eq!(fleet.moves, moves, "flows move though nothing happens");
}

#[test]
fn three_clusters_of_two_gateways() {
    for seed in [583, 4_851] {
        live(seed, 3, 2);
    }
}

#[test]
fn two_clusters_of_three_gateways() {
    for seed in [1, 2] {
        live(seed, 2, 3);
    }
}

#[test]
fn five_clusters_of_which_each_has_one_gateway() {
    for seed in [11, 12] {
        live(seed, 5, 1);
    }
}

#[test]
fn four_clusters_of_two_gateways() {
    live(99, 4, 2);
}
