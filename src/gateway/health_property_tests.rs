use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Five minutes of 5 % loss in each direction, and of a varying delay.
    #[test]
    fn five_percent_of_loss_never_kill_a_path(seed in 1_u64..u64::MAX, delay in 0_u64..80, jitter in 1_u64..30) {
        let mut random = random(seed);
        let mut world = World::of(Timing::default(), move |_| Fate {
            lost: random() % 100 < 5,
            delay: ms(delay + random() % jitter),
            twice: false,
        });
        world.run(ms(300_000));
        prop_assert!(!world.died());
        prop_assert_eq!(world.uses.len(), 1);
    }

    /// Whenever it happens, whatever the delay, and whatever was lost before.
    #[test]
    fn a_dead_path_is_found_within_the_bound(
        seed in 1_u64..u64::MAX, loss in 0_u64..10, delay in 0_u64..250, when in 0_u64..2_000, interval in 20_u64..400,
    ) {
        let mut random = random(seed);
        let cut = Rc::new(Cell::new(false));
        let seen = cut.clone();
        let mut world = World::of(Timing::every(ms(interval)), move |_| Fate {
            lost: seen.get() || random() % 100 < loss,
            ..Fate::arrives(ms(delay))
        });
        world.run(ms(20_000 + when));
        prop_assume!(world.state().works());
        cut.set(true);
        // From the last answer, which may still be on its way when the path dies.
        world.run(ms(2 * delay));
        let bound = world.ends[0].bound() + STEP * 3;
        world.run(bound);
        prop_assert!(!world.state().works(), "{:?}", world.report());
        prop_assert!(!world.report().usable);
    }

    /// Whatever is lost: connected only with a two-way echo of late.
    #[test]
    fn never_connected_without_a_fresh_two_way_echo(
        seed in 1_u64..u64::MAX, loss in 0_u64..100, delay in 0_u64..300, steps in 1_usize..60,
    ) {
        let mut random = random(seed);
        let mut world = World::new(ms(delay), move |_| random() % 100 < loss);
        for _ in 0..steps {
            world.run(ms(200));
            if world.state().works() {
                let age = world.two_way.map(|at| world.now.saturating_sub(at));
                let bound = world.ends[0].bound();
                prop_assert!(age.is_some_and(|age| age <= bound + ms(2 * delay)), "{:?} of {:?}", age, bound);
            }
        }
    }

    /// No return closer than the hold-down to the failure before it, and the like in pairs; see `health_hold`.
    #[test]
    fn no_return_is_closer_than_the_hold_down(
        phases in proptest::collection::vec((any::<bool>(), 1_u64..6_000), 1..25), seed in 1_u64..u64::MAX, loss in 0_u64..40,
    ) {
        let mut random = random(seed);
        let cut = Rc::new(Cell::new(false));
        let seen = cut.clone();
        let mut world = World::new(ms(3), move |_| seen.get() || random() % 100 < loss);
        for (is_cut, length) in phases {
            cut.set(is_cut);
            world.run(ms(length));
        }
        for pair in world.uses.windows(2) {
            if pair[1].1 {
                prop_assert!(pair[1].0 >= pair[0].0 + ms(2_000), "{:?}", world.uses);
            }
        }
        for three in world.uses.windows(3) {
            prop_assert!(three[2].0 >= three[0].0 + ms(2_000), "{:?}", world.uses);
        }
    }

    /// Late, twice and out of order, by less than 325 ms: the first of the nine probes that follow up on a missing answer has at
    /// least 225 ms and then 100 ms for its own. A path that varies by more can be taken for dead, though that is seldom.
    #[test]
    fn disorder_does_no_harm(seed in 1_u64..u64::MAX, spread in 1_u64..160) {
        let mut random = random(seed);
        let mut world = World::of(Timing::default(), move |_| Fate {
            lost: false,
            delay: ms(random() % spread),
            twice: random().is_multiple_of(3),
        });
        world.run(ms(60_000));
        prop_assert!(!world.died());
        prop_assert!(world.report().rtt.is_some_and(|rtt| rtt.max <= ms(2 * spread + 10)));
    }

    /// Replies to what was not sent so, in any order, do no harm and prove nothing.
    #[test]
    fn any_packet_is_survived(packets in proptest::collection::vec((any::<bool>(), u64::MAX - 4..=u64::MAX, 1_000_000_u64.., 0_u64..10_000), 0..50)) {
        let mut now = ms(0);
        let own = Own::default();
        let mut health = Health::new(Timing::default(), now, u64::MAX - 2);
        for (probe, sequence, sent, wait) in packets {
            now += ms(wait);
            let kind = if probe { Kind::Probe } else { Kind::Reply };
            let echo = Echo { kind, own, sequence, sent, heard: Some(ms(0)), length: 48 };
            health.receive(&echo, now, own);
            health.poll(now, own, true);
            health.hint(now);
            prop_assert!(!health.report(now).state.works() && !health.is_usable());
            prop_assert!(health.waiting.len() <= MAX_WAITING);
        }
    }
}
