use std::cell::Cell;
use std::rc::Rc;

use super::*;

const STEP: Duration = Duration::from_millis(5);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn own(flags: Flags) -> Own {
    Own {
        flags,
        revision: 3,
        reached: 9,
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
struct Fate {
    lost: bool,
    delay: Duration,
    twice: bool,
}

impl Fate {
    fn arrives(delay: Duration) -> Self {
        Self {
            lost: false,
            delay,
            twice: false,
        }
    }
}

/// Two ends and what is on its way between them.
struct World {
    now: Duration,
    ends: [Health; 2],
    own: [Own; 2],
    /// When it arrives, at which end.
    flying: Vec<(Duration, usize, Echo)>,
    /// What becomes of the next packet towards end 0 or 1.
    fate: Box<dyn FnMut(usize) -> Fate>,
    /// When end 0 last had an answer to a probe of its own.
    two_way: Option<Duration>,
    /// How end 0 was, when that changed.
    states: Vec<(Duration, State)>,
    /// When it went out of use or came back.
    uses: Vec<(Duration, bool)>,
    probes: usize,
}

impl World {
    fn of(timing: Timing, fate: impl FnMut(usize) -> Fate + 'static) -> Self {
        let start = ms(1_000);
        Self {
            now: start,
            ends: [
                Health::new(timing, start, 7),
                Health::new(timing, start + ms(40), 1_000),
            ],
            own: [own(Flags::default()); 2],
            flying: Vec::new(),
            fate: Box::new(fate),
            two_way: None,
            states: Vec::new(),
            uses: Vec::new(),
            probes: 0,
        }
    }

    fn new(delay: Duration, mut lose: impl FnMut(usize) -> bool + 'static) -> Self {
        Self::of(Timing::default(), move |to| Fate {
            lost: lose(to),
            ..Fate::arrives(delay)
        })
    }

    /// With a switch that cuts both directions.
    fn with_cut(timing: Timing, delay: Duration) -> (Self, Rc<Cell<bool>>) {
        let cut = Rc::new(Cell::new(false));
        let seen = cut.clone();
        let world = Self::of(timing, move |_| Fate {
            lost: seen.get(),
            ..Fate::arrives(delay)
        });
        (world, cut)
    }

    /// Where packets wait before they go on their way, for as long as is written there.
    fn with_wait(delay: Duration) -> (Self, Rc<Cell<Duration>>) {
        let wait = Rc::new(Cell::new(Duration::ZERO));
        let waits = wait.clone();
        let world = Self::of(Timing::default(), move |_| {
            Fate::arrives(delay + waits.get())
        });
        (world, wait)
    }

    /// For so long everything that is sent waits, and arrives together at the end.
    fn hold_back(&mut self, wait: &Cell<Duration>, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            wait.set(end.saturating_sub(self.now + STEP));
            self.run(STEP);
        }
    }

    fn send(&mut self, to: usize, echo: Echo) {
        let fate = (self.fate)(to);
        if fate.lost {
            return;
        }
        self.flying.push((self.now + fate.delay, to, echo));
        if fate.twice {
            self.flying.push((self.now + fate.delay * 2, to, echo));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            let now = self.now;
            let (arrived, flying) = self.flying.drain(..).partition(|(at, ..)| *at <= now);
            self.flying = flying;
            let arrived: Vec<(Duration, usize, Echo)> = arrived;
            for (_, at, echo) in arrived {
                if at == 0 && echo.kind == Kind::Reply {
                    self.two_way = Some(now);
                }
                if let Some(reply) = self.ends[at].receive(&echo, now, self.own[at]) {
                    self.send(1 - at, reply);
                }
            }
            for at in 0..2 {
                if self.ends[at].due() > now {
                    continue;
                }
                if let Some(probe) = self.ends[at].poll(now, self.own[at], true) {
                    self.probes += usize::from(at == 0);
                    self.send(1 - at, probe);
                }
            }
            self.note();
        }
    }

    fn note(&mut self) {
        let report = self.report();
        if self
            .states
            .last()
            .is_none_or(|(_, state)| *state != report.state)
        {
            self.states.push((self.now, report.state));
        }
        if self.uses.last().is_some_and(|(_, usable)| *usable) != report.usable {
            self.uses.push((self.now, report.usable));
        }
    }

    fn report(&self) -> Report {
        self.ends[0].report(self.now)
    }

    fn state(&self) -> State {
        self.report().state
    }

    fn died(&self) -> bool {
        self.states.iter().any(|(_, state)| *state == State::Dead)
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
    let report = world.report();
    assert_eq!(
        (report.state, report.reason, report.usable),
        (State::Connected, Reason::Answered, true)
    );
    assert!(report.peer_hears_us);
    let rtt = report.rtt.unwrap();
    assert_eq!((rtt.last, rtt.min, rtt.max), (ms(20), ms(20), ms(20)));
    assert_eq!((report.revision, report.reached), (Some(3), Some(9)));
    world.run(ms(60_000));
    assert_eq!(world.states.len(), 2, "{:?}", world.states);
    assert_eq!(world.report().loss.lost, 0);
    // Up to a tenth more than one every 250 ms.
    assert!((240..=268).contains(&world.probes), "{}", world.probes);
}

#[test]
fn the_reason_shows_which_direction_is_cut() {
    let mut deaf = World::new(ms(10), |to| to == 0);
    deaf.run(ms(5_000));
    assert_eq!(deaf.state(), State::Connecting, "we hear nothing");
    let other = deaf.ends[1].report(deaf.now);
    assert_eq!(
        (other.state, other.reason),
        (State::OneWay, Reason::NotHeard)
    );
    assert!(!other.peer_hears_us);
}

#[test]
fn a_direction_that_is_cut_later_is_found_from_both_sides_within_the_bound() {
    for cut_towards in 0..2 {
        let cut = Rc::new(Cell::new(false));
        let seen = cut.clone();
        let mut world = World::new(ms(1), move |to| seen.get() && to == cut_towards);
        world.run(ms(10_000));
        cut.set(true);
        world.run(world.ends[0].bound().max(world.ends[1].bound()));
        let states = [0, 1].map(|at| world.ends[at].report(world.now).state);
        let mut wanted = [State::OneWay; 2];
        wanted[cut_towards] = State::Dead;
        assert_eq!(
            states, wanted,
            "it hears nothing, and the other one hears it"
        );
        assert!(world.ends.iter().all(|end| !end.is_usable()));
        world.run(ms(20_000));
        let states = [0, 1].map(|at| world.ends[at].report(world.now).state);
        assert_eq!(states, wanted, "and it stays so");
    }
}

#[test]
fn a_path_that_dies_is_found_within_the_bound_and_comes_back() {
    let (mut world, cut) = World::with_cut(Timing::default(), ms(1));
    world.run(ms(10_000));
    cut.set(true);
    let bound = world.ends[0].bound();
    assert_eq!(bound, ms(695));
    world.run(bound);
    let report = world.report();
    assert_eq!(
        (report.state, report.reason, report.usable),
        (State::Dead, Reason::Silent(10), false)
    );
    assert!(
        world
            .states
            .iter()
            .all(|(_, state)| *state != State::OneWay)
    );
    world.run(ms(200_000));
    assert_eq!(world.state(), State::Dead);
    assert!(world.report().loss.percent() > 99.0);
    cut.set(false);
    world.run(ms(1_200));
    let report = world.report();
    assert_eq!(
        (report.state, report.reason),
        (State::Connected, Reason::Returned)
    );
    assert!(!report.usable && report.held_until.is_some(), "held down");
    world.run(ms(2_000));
    assert!(world.report().usable);
}

#[test]
fn shorter_intervals_find_it_sooner() {
    let (mut world, cut) = World::with_cut(Timing::every(ms(50)), ms(1));
    world.run(ms(10_000));
    cut.set(true);
    let bound = world.ends[0].bound();
    assert_eq!(bound, ms(495));
    world.run(bound);
    assert_eq!(world.state(), State::Dead);
}

#[test]
fn an_idle_path_takes_longer_until_it_is_not_idle() {
    let (mut world, cut) = World::with_cut(Timing::default(), ms(1));
    world.run(ms(10_000));
    let (now, before) = (world.now, world.probes);
    world.ends[0].pace(ms(2_000), now);
    world.run(ms(60_000));
    assert!(
        (29..=34).contains(&(world.probes - before)),
        "{}",
        world.probes
    );
    assert_eq!(world.ends[0].bound(), ms(2_445));
    cut.set(true);
    world.run(ms(2_445));
    assert_eq!(world.state(), State::Dead);
    cut.set(false);
    world.run(ms(10_000));
    assert_eq!(world.state(), State::Connected);
    // Two seconds without a probe are no reason to take the path for dead when traffic begins.
    let now = world.now;
    world.ends[0].pace(ms(250), now);
    let states = world.states.len();
    world.run(ms(10_000));
    assert_eq!(world.states.len(), states);
}

#[test]
fn a_hint_is_followed_at_once() {
    let (mut world, cut) = World::with_cut(Timing::default(), ms(1));
    world.run(ms(10_000));
    let now = world.now;
    world.ends[0].hint(now);
    assert_eq!(
        (world.state(), world.report().reason),
        (State::Suspect, Reason::Hinted)
    );
    world.run(ms(20));
    assert_eq!(
        (world.state(), world.report().reason),
        (State::Connected, Reason::Recovered),
        "it was wrong"
    );
    let now = world.now;
    world.ends[0].hint(now);
    assert_eq!(
        world.state(),
        State::Connected,
        "anybody can say so again and again"
    );
    world.run(ms(1_000));
    cut.set(true);
    let now = world.now;
    world.ends[0].hint(now);
    world.run(Timing::default().from_hint(world.ends[0].timeout()));
    assert_eq!(world.state(), State::Dead);
}

#[test]
fn a_gateway_that_declines_is_left_at_once_and_used_again_after_the_hold_down() {
    for flags in [
        Flags {
            draining: true,
            inward_dead: false,
        },
        Flags {
            draining: false,
            inward_dead: true,
        },
    ] {
        let mut world = World::new(ms(1), |_| false);
        world.run(ms(10_000));
        world.own[1] = own(flags);
        let now = world.now;
        world.ends[1].nudge(now);
        world.run(ms(10));
        let report = world.report();
        assert_eq!((report.state, report.usable), (State::Connected, false));
        assert_eq!(report.flags, flags);
        world.own[1] = own(Flags::default());
        world.run(ms(1_900));
        assert!(!world.report().usable);
        world.run(ms(500));
        assert!(world.report().usable);
    }
}

#[test]
fn a_long_path_is_no_dead_path() {
    let mut world = World::new(ms(450), |_| false);
    world.run(ms(120_000));
    assert!(!world.died());
    assert_eq!(world.state(), State::Connected);
    let later = world.states.iter().filter(|(at, _)| *at > ms(30_000));
    assert_eq!(later.count(), 0, "a steady delay makes nobody suspect");
}

#[test]
fn copies_and_answers_to_others_prove_nothing() {
    let now = ms(1_000);
    let own = Own::default();
    let mut health = Health::new(Timing::default(), now, 7);
    let probe = health.poll(now, own, true).unwrap();
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
        Echo {
            length: answer.length + 1,
            ..answer
        },
    ] {
        health.receive(&forged, now + ms(1), own);
        assert_eq!(health.report(now + ms(1)).state, State::Connecting);
    }
    assert_eq!(health.receive(&answer, now + ms(2), own), None);
    assert_eq!(health.report(now + ms(2)).state, State::Connected);
    let last = health.report(now + ms(2)).last_heard;
    health.receive(&answer, now + ms(900), own);
    assert_eq!(
        health.report(now + ms(900)).last_heard,
        last,
        "a copy is not heard"
    );
}

#[test]
fn a_padded_probe_gets_a_padded_reply() {
    let mut health = Health::new(Timing::default(), ms(0), 7);
    let probe = Echo {
        kind: Kind::Probe,
        own: Own::default(),
        sequence: 1,
        sent: 2,
        heard: None,
        length: 1_300,
    };
    let reply = health
        .receive(&probe, ms(1), own(Flags::default()))
        .unwrap();
    let wanted = Echo {
        kind: Kind::Reply,
        own: own(Flags::default()),
        heard: Some(Duration::ZERO),
        ..probe
    };
    assert_eq!(reply, wanted);
}

#[test]
fn an_answer_that_nobody_polled_after_does_not_stay_fresh() {
    let now = ms(1_000);
    let mut health = Health::new(Timing::default(), now, 7);
    let probe = health.poll(now, Own::default(), true).unwrap();
    let answer = Echo {
        kind: Kind::Reply,
        heard: Some(Duration::ZERO),
        ..probe
    };
    health.receive(&answer, now + ms(2), Own::default());
    let report = health.report(now + ms(60_000));
    assert_eq!(
        (report.state, report.reason, report.usable),
        (State::Dead, Reason::Untested, false)
    );
}

#[test]
fn a_process_that_stood_still_looks_before_it_judges() {
    let (mut world, cut) = World::with_cut(Timing::default(), ms(1));
    world.run(ms(10_000));
    let uses = world.uses.len();
    world.flying.clear();
    world.now += ms(5_000);
    world.run(ms(300));
    assert_eq!((world.state(), world.uses.len()), (State::Connected, uses));
    world.flying.clear();
    cut.set(true);
    world.now += ms(5_000);
    let stood = world.now;
    world.run(world.ends[0].bound());
    assert_eq!(world.state(), State::Dead, "since {stood:?}");
}

#[test]
fn a_peer_that_says_it_does_not_hear_us_is_not_connected() {
    let now = ms(1_000);
    let mut health = Health::new(Timing::default(), now, 7);
    let probe = health.poll(now, Own::default(), true).unwrap();
    let answer = Echo {
        kind: Kind::Reply,
        heard: None,
        ..probe
    };
    health.receive(&answer, now + ms(2), Own::default());
    assert_ne!(health.report(now + ms(2)).state, State::Connected);
}

#[test]
fn what_waited_for_the_handshake_says_nothing_of_round_trips() {
    let (mut world, wait) = World::with_wait(ms(2));
    world.hold_back(&wait, ms(600));
    world.run(ms(500));
    let report = world.report();
    assert!(report.usable && report.bound == ms(695), "{report:?}");
}

#[test]
fn what_waited_for_the_end_of_an_outage_says_nothing_of_round_trips() {
    // A host keeps what it sends while nobody answers for the next hop, and sends it when somebody does.
    let (mut world, wait) = World::with_wait(ms(5));
    world.run(ms(3_000));
    let bound = world.report().bound;
    for _ in 0..3 {
        world.hold_back(&wait, ms(2_000));
        assert!(world.ends.iter().all(|end| end.state() == State::Dead));
        world.run(ms(1_990));
        let report = world.report();
        assert!(report.state.works(), "{report:?}");
        assert!(report.bound <= bound + ms(50), "{report:?}");
    }
}

/// The link of the `flap` case: 2 s up, 2 s down, for 2 minutes.
#[test]
fn a_flapping_link_is_switched_away_from_once() {
    let (mut world, cut) = World::with_cut(Timing::default(), ms(1));
    world.run(ms(10_000));
    for _ in 0..30 {
        cut.set(true);
        world.run(ms(2_000));
        cut.set(false);
        world.run(ms(2_000));
    }
    assert_eq!(world.uses.len(), 2, "{:?}", world.uses);
    world.run(ms(4_000));
    assert!(world.report().usable);
}

#[path = "health_property_tests.rs"]
mod properties;
