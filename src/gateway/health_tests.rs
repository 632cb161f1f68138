use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(25);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two ends and what is on its way between them.
struct World {
    now: Duration,
    ends: [Health; 2],
    /// When it arrives, at which end.
    flying: Vec<(Duration, usize, Echo)>,
    delay: Duration,
    /// Whether the next packet towards end 0 or 1 is lost.
    lose: Box<dyn FnMut(usize) -> bool>,
    /// When end 0 last had an answer to a probe of its own.
    two_way: Option<Duration>,
    was_down: bool,
}

impl World {
    fn new(delay: Duration, lose: impl FnMut(usize) -> bool + 'static) -> Self {
        let start = ms(1_000);
        let ends = [Health::new(start, 7), Health::new(start + ms(40), 1_000)];
        Self {
            now: start,
            ends,
            flying: Vec::new(),
            delay,
            lose: Box::new(lose),
            two_way: None,
            was_down: false,
        }
    }

    fn send(&mut self, to: usize, echo: Echo) {
        if !(self.lose)(to) {
            self.flying.push((self.now + self.delay, to, echo));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += ms(5);
            let now = self.now;
            let (arrived, flying) = self.flying.drain(..).partition(|(at, ..)| *at <= now);
            self.flying = flying;
            let arrived: Vec<(Duration, usize, Echo)> = arrived;
            for (_, at, echo) in arrived {
                if at == 0 && echo.kind == Kind::Reply {
                    self.two_way = Some(now);
                }
                if let Some(reply) = self.ends[at].receive(&echo, now, Flags::default(), 3) {
                    self.send(1 - at, reply);
                }
            }
            if now.as_millis().is_multiple_of(TICK.as_millis()) {
                for at in 0..2 {
                    if let Some(probe) = self.ends[at].poll(now, Flags::default(), 3) {
                        self.send(1 - at, probe);
                    }
                }
            }
            self.was_down |= self.state() == State::Down;
        }
    }

    fn state(&self) -> State {
        self.ends[0].report(self.now).state
    }
}

/// A generator good enough to lose packets by, the same in every run.
fn random(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 11
    }
}

#[test]
fn a_good_path_is_connected_and_measured() {
    let mut world = World::new(ms(10), |_| false);
    world.run(ms(400));
    let report = world.ends[0].report(world.now);
    assert_eq!(
        (report.state, report.peer_hears_us),
        (State::Connected, true)
    );
    assert_eq!(report.rtt, Some(ms(20)));
    assert_eq!(report.revision, Some(3));
    world.run(ms(60_000));
    assert!(!world.was_down);
}

#[test]
fn the_reason_shows_which_direction_is_cut() {
    let mut deaf = World::new(ms(10), |to| to == 0);
    deaf.run(ms(5_000));
    assert_eq!(deaf.state(), State::Connecting, "we hear nothing");
    assert_eq!(
        deaf.ends[1].report(deaf.now).state,
        State::OneWay,
        "it hears us, we do not hear it"
    );
    assert!(!deaf.ends[1].report(deaf.now).peer_hears_us);
}

#[test]
fn a_path_that_dies_is_found_within_the_bound_and_comes_back() {
    let cut = std::rc::Rc::new(std::cell::Cell::new(false));
    let seen = cut.clone();
    let mut world = World::new(ms(1), move |_| seen.get());
    world.run(ms(10_000));
    cut.set(true);
    let bound = world.ends[0].bound();
    assert!(bound <= ms(850), "{bound:?}");
    for _ in 0..bound.as_millis() / 5 {
        world.run(ms(5));
        assert_ne!(
            world.state(),
            State::OneWay,
            "nothing is heard after the cut"
        );
    }
    assert_eq!(world.state(), State::Down);
    world.run(ms(200_000));
    assert_eq!(world.state(), State::Down);
    cut.set(false);
    world.run(ms(600));
    assert_eq!(world.state(), State::Connected);
}

#[test]
fn five_percent_loss_does_not_flap_a_path() {
    // Ten minutes. Five losses in a row are expected once in hours.
    let mut random = random(583);
    let mut world = World::new(ms(20), move |_| random() % 100 < 5);
    world.run(ms(600_000));
    assert!(!world.was_down);
    assert_eq!(world.state(), State::Connected);
}

#[test]
fn a_long_path_is_no_dead_path() {
    let mut world = World::new(ms(450), |_| false);
    world.run(ms(120_000));
    assert!(!world.was_down);
    assert_eq!(world.state(), State::Connected);
}

#[test]
fn copies_and_answers_to_others_prove_nothing() {
    let now = ms(1_000);
    let mut health = Health::new(now, 7);
    let probe = health.poll(now, Flags::default(), 0).unwrap();
    let answer = Echo {
        kind: Kind::Reply,
        heard: Some(Duration::ZERO),
        ..probe
    };
    for forged in [
        Echo {
            sequence: 8,
            ..answer
        },
        Echo {
            sent: answer.sent + 1,
            ..answer
        },
        Echo {
            sequence: 0,
            sent: 0,
            ..answer
        },
    ] {
        health.receive(&forged, now + ms(1), Flags::default(), 0);
        assert_eq!(health.report(now + ms(1)).state, State::Connecting);
    }
    assert_eq!(
        health.receive(&answer, now + ms(2), Flags::default(), 0),
        None
    );
    assert_eq!(health.report(now + ms(2)).state, State::Connected);
    let last = health.report(now + ms(2)).last_heard;
    health.receive(&answer, now + ms(900), Flags::default(), 0);
    assert_eq!(
        health.report(now + ms(900)).last_heard,
        last,
        "a copy is not heard"
    );
}

#[test]
fn an_answer_that_nobody_polled_after_does_not_stay_fresh() {
    let now = ms(1_000);
    let mut health = Health::new(now, 7);
    let probe = health.poll(now, Flags::default(), 0).unwrap();
    let answer = Echo {
        kind: Kind::Reply,
        heard: Some(Duration::ZERO),
        ..probe
    };
    health.receive(&answer, now + ms(2), Flags::default(), 0);
    assert_eq!(health.report(now + ms(60_000)).state, State::Down);
}

#[test]
fn a_peer_that_says_it_does_not_hear_us_is_not_connected() {
    let now = ms(1_000);
    let mut health = Health::new(now, 7);
    let probe = health.poll(now, Flags::default(), 0).unwrap();
    let answer = Echo {
        kind: Kind::Reply,
        heard: None,
        ..probe
    };
    health.receive(&answer, now + ms(2), Flags::default(), 0);
    assert_ne!(health.report(now + ms(2)).state, State::Connected);
}

proptest! {
    /// Whatever is lost: connected only with a two-way echo within the bound and a stall.
    #[test]
    fn never_connected_without_a_fresh_two_way_echo(
        seed in 1_u64..u64::MAX, loss in 0_u64..100, delay in 0_u64..300, steps in 1_usize..60,
    ) {
        let mut random = random(seed);
        let mut world = World::new(ms(delay), move |_| random() % 100 < loss);
        for _ in 0..steps {
            world.run(ms(200));
            if world.state() == State::Connected {
                let age = world.two_way.map(|at| world.now.saturating_sub(at));
                prop_assert!(age.is_some_and(|age| age <= world.ends[0].bound() + STALL), "{age:?}");
            }
        }
    }

    /// Fewer losses in a row than it takes never end `connected`.
    #[test]
    fn a_few_losses_in_a_row_do_not_flap(runs in proptest::collection::vec((1_usize..5, 1_usize..6), 1..30)) {
        let losses: Vec<bool> = runs
            .into_iter()
            .flat_map(|(lost, kept)| [vec![true; lost], vec![false; kept]].concat())
            .collect();
        let mut at = 0;
        let mut world = World::new(ms(5), |_| false);
        world.run(ms(1_000));
        // Only what goes to end 0 may be lost, so that a loss is a loss of its own answers.
        let mut answers = losses.into_iter().cycle();
        world.lose = Box::new(move |to| {
            at += 1;
            to == 0 && at > 0 && answers.next().unwrap_or(false)
        });
        // End 1 sends no probes of its own: each packet towards end 0 is an answer.
        world.ends[1].next_probe = ms(1_000_000_000);
        world.run(ms(30_000));
        prop_assert!(!world.was_down);
    }

    /// Any packets in any order do no harm.
    #[test]
    fn any_packet_is_survived(packets in proptest::collection::vec((any::<bool>(), any::<u64>(), any::<u64>(), 0_u64..10_000), 0..50)) {
        let mut now = ms(0);
        let mut health = Health::new(now, u64::MAX - 2);
        for (probe, sequence, sent, wait) in packets {
            now += ms(wait);
            let kind = if probe { Kind::Probe } else { Kind::Reply };
            let echo = Echo { kind, flags: Flags::default(), sequence, sent, heard: None, revision: 0 };
            health.receive(&echo, now, Flags::default(), 0);
            health.poll(now, Flags::default(), 0);
            prop_assert_ne!(health.report(now).state, State::Connected);
            prop_assert!(health.waiting.len() <= MAX_WAITING);
        }
    }
}
