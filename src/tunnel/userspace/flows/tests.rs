use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Members 0 to n-1, all in use; their indices are made from `first`.
struct World {
    group: Group,
    used: Vec<Arc<AtomicBool>>,
    flows: Flows,
    start: Instant,
    now: Duration,
}

fn key(n: usize) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..8].copy_from_slice(&mix(n as u64 + 1).to_le_bytes());
    bytes[31] = 1;
    PublicKey::from_bytes(bytes).unwrap()
}

fn group(used: &[Arc<AtomicBool>], first: u32) -> Group {
    let members = (0..).zip(used);
    let members = members.map(|(n, used)| {
        let at = usize::try_from(n).unwrap();
        Member::new(at, first + n, &key(at), used)
    });
    Group::new(members.collect())
}

impl World {
    fn new(members: usize, secret: u64) -> Self {
        let used: Vec<_> = (0..members)
            .map(|_| Arc::new(AtomicBool::new(true)))
            .collect();
        let start = Instant::now();
        Self {
            group: group(&used, 7 + (u32::try_from(secret % 100).unwrap() << 8)),
            used,
            flows: Flows::new(secret, start),
            start,
            now: Duration::ZERO,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn tick(&self) -> Tick {
        self.flows.tick(self.start + self.now)
    }

    /// Which member carries a packet of a flow now.
    fn carrier(&self, flow: u64) -> Option<usize> {
        let here = mix(flow ^ self.flows.key());
        let everywhere = || mix(flow);
        self.group
            .carrier(&self.flows, here, self.tick(), everywhere)
    }

    /// A packet comes by a member; the answers to it are of this flow.
    fn came_by(&self, flow: u64, member: usize) {
        let index = self.group.0[member].index;
        let here = mix(flow ^ self.flows.key());
        self.flows.put(here, index, self.tick());
    }

    fn carriers(&self, flows: u64) -> Vec<usize> {
        (0..flows).map(|flow| self.carrier(flow).unwrap()).collect()
    }

    fn steer(&self, member: usize, in_use: bool) {
        self.used[member].store(in_use, Ordering::Relaxed);
    }

    /// Calls for the sweeps of so many seconds, at the present time.
    fn sweep(&self, seconds: usize) {
        (0..seconds).for_each(|_| self.flows.sweep(self.tick()));
    }
}

#[test]
fn flows_spread_evenly() {
    for members in [2, 3, 8] {
        let world = World::new(members, 1);
        let carriers = world.carriers(8_000);
        for member in 0..members {
            let share = carriers.iter().filter(|carrier| **carrier == member);
            let (share, even) = (share.count(), 8_000 / members);
            assert!(
                (even * 9 / 10..even * 11 / 10).contains(&share),
                "{share} of 8,000 by {member} of {members}"
            );
        }
    }
}

#[test]
fn only_the_flows_of_a_member_that_goes_move_and_none_on_its_return() {
    let mut world = World::new(3, 1);
    let before = world.carriers(3_000);
    world.steer(1, false);
    let during = world.carriers(3_000);
    for (before, during) in before.iter().zip(&during) {
        assert_ne!(*during, 1);
        assert!(*before == 1 || before == during);
    }
    let took_over = |member| (0..3_000).any(|flow| before[flow] == 1 && during[flow] == member);
    assert!(took_over(0) && took_over(2), "the others share them");
    world.steer(1, true);
    // Active flows stay for as long as they are.
    for _ in 0..20 {
        world.pass(30 * SECOND);
        assert_eq!(world.carriers(3_000), during);
    }
    // New ones go to it, and those that were idle go where they were before.
    assert!((3_000..3_100).any(|flow| world.carrier(flow) == Some(1)));
    world.pass(64 * SECOND);
    assert_eq!(world.carriers(3_000), before);
}

#[test]
fn idle_flows_are_forgotten_after_60_to_64_seconds_and_stay_so() {
    for offset in 0..8 {
        let mut world = World::new(2, 3);
        world.pass(offset * SECOND / 2);
        world.steer(0, false);
        assert!(world.carriers(100).iter().all(|carrier| *carrier == 1));
        world.steer(0, true);
        world.pass(60 * SECOND);
        let kept = World {
            now: world.now,
            ..world
        };
        assert!(kept.carriers(50).iter().all(|carrier| *carrier == 1));
        let mut later = kept;
        later.pass(4 * SECOND);
        assert!((50..100).any(|flow| later.carrier(flow) == Some(0)));
    }
    // Units of time begin anew: what is swept does not become young again.
    let mut world = World::new(2, 3);
    world.carriers(1_000);
    assert_eq!(world.flows.len(), 1_000);
    world.sweep(128);
    assert_eq!(world.flows.len(), 1_000, "none is idle");
    world.pass(64 * SECOND);
    world.sweep(127);
    assert!(world.flows.len() < 20);
    world.sweep(1);
    assert_eq!(world.flows.len(), 0);
}

#[test]
fn answers_keep_the_road_of_their_flow_while_it_is_in_use() {
    let world = World::new(3, 1);
    for flow in 0..1_000 {
        let member = usize::try_from(flow % 3).unwrap();
        world.came_by(flow, member);
        assert_eq!(world.carrier(flow), Some(member));
    }
    world.steer(2, false);
    let all: Vec<_> = (0..1_000)
        .map(|flow| world.carrier(flow).unwrap())
        .collect();
    for (flow, carrier) in all.iter().enumerate() {
        let came_by = flow % 3;
        assert!(if came_by == 2 {
            *carrier != 2
        } else {
            *carrier == came_by
        });
    }
    // A flow that moves at the other end moves here, too.
    world.came_by(1, 0);
    assert_eq!(world.carrier(1), Some(0));
}

#[test]
fn all_gateways_choose_alike_whatever_they_know_peers_by() {
    let (one, other) = (World::new(5, 1), World::new(5, 99));
    assert_eq!(one.carriers(2_000), other.carriers(2_000));
    for world in [&one, &other] {
        world.steer(3, false);
    }
    assert_eq!(one.carriers(4_000), other.carriers(4_000));
}

#[test]
fn a_group_that_none_of_is_in_use_carries_nothing_and_remembers_nothing() {
    let world = World::new(2, 1);
    world.steer(0, false);
    world.steer(1, false);
    assert_eq!(world.carrier(5), None);
    assert_eq!(world.flows.len(), 0);
}

#[test]
fn the_memory_is_bounded_and_full_of_the_newest() {
    let mut world = World::new(2, 1);
    world.carriers(300_000);
    assert_eq!(world.flows.len(), SETS * WAYS);
    world.pass(8 * SECOND);
    // So few that each finds room among those that are older.
    for flow in 0..5_000 {
        world.came_by(1_000_000 + flow, 0);
    }
    assert!((0..5_000).all(|flow| world.carrier(1_000_000 + flow) == Some(0)));
    assert_eq!(world.flows.len(), SETS * WAYS);
}

#[test]
fn threads_that_disagree_about_a_flow_leave_a_member() {
    let world = World::new(4, 1);
    thread::scope(|scope| {
        for member in 0..4 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..20_000_u64 {
                    world.came_by(round % 64, member);
                    assert!(world.carrier(round % 64).is_some());
                    if round % 1_000 == 0 {
                        world.flows.sweep(world.tick());
                    }
                }
            });
        }
    });
    assert!(world.flows.len() >= 64);
    let settled = world.carriers(64);
    assert_eq!(world.carriers(64), settled);
}

#[test]
fn a_clock_that_is_read_by_two_threads_forgets_nothing() {
    let mut world = World::new(2, 1);
    world.pass(100 * SECOND);
    world.came_by(1, 0);
    world.came_by(2, 1);
    world.pass(Duration::ZERO);
    world.now -= 2 * SECOND;
    assert_eq!((world.carrier(1), world.carrier(2)), (Some(0), Some(1)));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Steer(usize, bool),
    Packet(u64),
    CameBy(u64, usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_usize..4, any::<bool>()).prop_map(|(member, used)| Step::Steer(member, used)),
        6 => (0_u64..40).prop_map(Step::Packet),
        3 => (0_u64..40, 0_usize..4).prop_map(|(flow, member)| Step::CameBy(flow, member)),
        2 => (1_u64..100).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Against a memory without bounds and with exact times.
    #[test]
    fn a_flow_stays_while_its_member_is_in_use_and_it_is_not_idle(
        steps in proptest::collection::vec(step(), 1..300),
        secret in any::<u64>(),
    ) {
        let mut world = World::new(4, secret);
        let mut used: BTreeSet<usize> = (0..4).collect();
        // Who carried a flow last, and when.
        let mut model: BTreeMap<u64, (usize, Duration)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Steer(member, in_use) => {
                    world.steer(member, in_use);
                    if in_use { used.insert(member); } else { used.remove(&member); }
                }
                Step::Pass(seconds) => {
                    for _ in 0..seconds {
                        world.pass(SECOND);
                        world.sweep(1);
                    }
                }
                // The caller notes nothing of a peer that is not in use.
                Step::CameBy(flow, member) if used.contains(&member) => {
                    world.came_by(flow, member);
                    model.insert(flow, (member, world.now));
                }
                Step::CameBy(..) => {}
                Step::Packet(flow) => {
                    let carrier = world.carrier(flow);
                    prop_assert_eq!(carrier.is_none(), used.is_empty());
                    let Some(carrier) = carrier else { continue };
                    prop_assert!(used.contains(&carrier));
                    let best = used.iter().max_by_key(|member| {
                        mix(mix(flow) ^ world.group.0[**member].weight)
                    });
                    let kept = model.get(&flow).filter(|(member, _)| used.contains(member));
                    let idle = kept.map(|(_, at)| world.now.saturating_sub(*at));
                    match kept.zip(idle) {
                        Some((kept, idle)) if idle <= 60 * SECOND => prop_assert_eq!(carrier, kept.0),
                        Some((kept, idle)) if idle < 64 * SECOND => {
                            prop_assert!(carrier == kept.0 || Some(&carrier) == best);
                        }
                        _ => prop_assert_eq!(Some(&carrier), best),
                    }
                    model.insert(flow, (carrier, world.now));
                }
            }
        }
        prop_assert!(world.flows.len() <= 40);
    }

    /// Whatever stands in the memory, also of another group whose peers have other indices.
    #[test]
    fn only_members_in_use_carry(
        hashes in proptest::collection::vec((any::<u64>(), any::<u32>(), any::<u8>()), 1..200),
        used in proptest::collection::vec(any::<bool>(), 2..6),
        now in any::<u8>(),
    ) {
        let world = World::new(used.len(), 1);
        for (member, used) in used.iter().enumerate() {
            world.steer(member, *used);
        }
        let other = group(&world.used, 1 << 20);
        for (hash, index, then) in &hashes {
            world.flows.put(*hash, *index, Tick(*then));
        }
        for (hash, index, _) in hashes {
            for (at, group) in [(7 + (1 << 8), &world.group), (1 << 20, &other)] {
                let carrier = group.carrier(&world.flows, hash, Tick(now), || hash);
                prop_assert_eq!(carrier.is_none(), used.iter().all(|used| !used));
                prop_assert!(carrier.is_none_or(|at| used[at]));
                // And a member by its index, as if it had come by it.
                world.flows.put(hash, at + index % 6, Tick(now));
            }
        }
    }
}
