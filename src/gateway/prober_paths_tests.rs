use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn id(number: u8) -> PathId {
    PathId {
        cluster: format!("c{number}").parse().unwrap(),
        node: "gw".parse().unwrap(),
    }
}

fn inner(number: u8) -> IpAddr {
    [198, 19, 0, number].into()
}

fn targets(numbers: std::ops::Range<u8>) -> Targets {
    let target = |number| Target {
        inner: vec![inner(number)],
        device: "subsea0".to_owned(),
        ceiling: Some(1420),
        road: None,
    };
    Targets {
        own: vec![[198, 19, 1, 1].into()],
        paths: numbers.map(|number| (id(number), target(number))).collect(),
        ..Targets::default()
    }
}

/// Runs until `end`; whoever is in `silent` answers nothing. Gives the probes sent.
fn run(paths: &mut Paths, from: u64, end: u64, silent: &[u8]) -> Vec<(u64, u8, u16)> {
    let mut sent = Vec::new();
    let mut seed = 7_u64;
    for at in from..end {
        if at == 0 {
            paths.aim(&targets(0..4), ms(0), || {
                seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                seed
            });
        }
        for Outgoing { to, echo, .. } in paths.poll(ms(at)) {
            let IpAddr::V4(v4) = to else { unreachable!() };
            let number = v4.octets()[3];
            sent.push((at, number, echo.length));
            if !silent.contains(&number) {
                let reply = Echo {
                    kind: Kind::Reply,
                    heard: Some(Duration::ZERO),
                    ..echo
                };
                assert_eq!(paths.receive(to, &reply, ms(at)), None);
            }
        }
        paths.steer();
    }
    sent
}

fn in_use(paths: &Paths) -> Vec<String> {
    let in_use = paths.steering.in_use.iter();
    in_use.map(|id| id.cluster.to_string()).collect()
}

#[test]
fn idle_paths_are_probed_less_and_busy_ones_at_once() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 5_000, &[]);
    paths.carry(Some(BTreeSet::from([id(1)])), ms(5_000));
    run(&mut paths, 5_000, 8_000, &[]);
    let sent = run(&mut paths, 8_000, 28_000, &[]);
    let of = |number| sent.iter().filter(|(_, n, _)| *n == number).count();
    assert!((10..=12).contains(&of(0)), "{}", of(0));
    // Of these a third is padded.
    assert!((118..=134).contains(&of(1)), "{}", of(1));
    paths.carry(Some(BTreeSet::from([id(0)])), ms(28_000));
    let sent = run(&mut paths, 28_000, 28_251, &[]);
    assert!(sent.iter().any(|(_, number, _)| *number == 0));
}

#[test]
fn a_flag_is_told_to_everybody_at_once() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 5_001, &[]);
    paths.carry(Some(BTreeSet::new()), ms(5_001));
    run(&mut paths, 5_001, 10_001, &[]);
    let flags = Flags {
        draining: true,
        inward_dead: false,
    };
    paths.say(flags, ms(10_001));
    let out = paths.poll(ms(10_001));
    assert_eq!(out.len(), 4);
    assert!(out.iter().all(|out| out.echo.own.flags == flags));
}

#[test]
fn a_hint_finds_a_dead_path_sooner() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 5_000, &[]);
    paths.carry(Some(BTreeSet::new()), ms(5_000));
    run(&mut paths, 5_000, 10_000, &[]);
    paths.hint(&id(2), ms(10_000));
    run(&mut paths, 10_000, 10_346, &[2]);
    let report = paths.reports(ms(10_346))[&id(2)];
    assert_eq!(report.health.state, State::Dead);
    assert_eq!(report.mtu.and_then(|mtu| mtu.size), Some(1420));
}

#[test]
fn the_last_good_one_is_kept_and_clusters_are_no_longer_reached() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 5_000, &[]);
    assert_eq!(paths.steering.reached.len(), 4);
    let digest = paths.own.reached;
    run(&mut paths, 5_000, 7_000, &[1, 2]);
    assert_eq!(in_use(&paths), ["c0", "c1", "c2", "c3"]);
    assert_eq!(paths.steering.reached.len(), 2);
    assert_ne!(paths.own.reached, digest, "others are told");
}

#[test]
fn strangers_are_not_answered() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 100, &[]);
    let probe = Echo {
        kind: Kind::Probe,
        own: Own::default(),
        sequence: 1,
        sent: 1,
        heard: None,
        length: 48,
    };
    assert_eq!(paths.receive([192, 0, 2, 1].into(), &probe, ms(100)), None);
    assert!(paths.receive(inner(1), &probe, ms(100)).is_some());
}

#[test]
fn who_is_no_target_any_more_is_forgotten() {
    let mut paths = Paths::new(Timing::default(), ms(0));
    run(&mut paths, 0, 1_000, &[]);
    paths.aim(&targets(1..3), ms(1_000), || 99);
    paths.steer();
    assert_eq!(in_use(&paths), ["c1", "c2"]);
    let reports = paths.reports(ms(1_000));
    assert!(
        reports
            .values()
            .all(|report| report.health.state == State::Connected)
    );
    paths.aim(&Targets::default(), ms(1_000), || 99);
    assert_eq!(paths.due(), None);
}

/// Everything at once: 998 paths begin, everybody is to know that we drain, and all answers stop.
#[test]
fn the_budget_holds_whatever_happens() {
    let mut all = Targets {
        own: vec![[198, 19, 255, 1].into()],
        ..Targets::default()
    };
    for number in 0..998_u16 {
        let [high, low] = number.to_be_bytes();
        let id = PathId {
            cluster: format!("c{}", number / 2).parse().unwrap(),
            node: format!("n{}", number % 2).parse().unwrap(),
        };
        let target = Target {
            inner: vec![[198, 19, high, low].into()],
            device: "subsea0".to_owned(),
            ceiling: Some(1420),
            road: None,
        };
        all.paths.insert(id, target);
    }
    let mut paths = Paths::new(Timing::default(), ms(0));
    let mut seed = 1_u64;
    paths.aim(&all, ms(0), || {
        seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        seed
    });
    let mut sent: Vec<u64> = Vec::new();
    for at in (0..12_000).step_by(5) {
        if at == 2_000 {
            paths.carry(Some(all.paths.keys().take(206).cloned().collect()), ms(at));
        }
        if at == 6_000 {
            let flags = Flags {
                draining: true,
                inward_dead: false,
            };
            paths.say(flags, ms(at));
        }
        for Outgoing { to, echo, .. } in paths.poll(ms(at)) {
            sent.push(at);
            if at < 8_000 {
                let reply = Echo {
                    kind: Kind::Reply,
                    heard: Some(Duration::ZERO),
                    ..echo
                };
                paths.receive(to, &reply, ms(at));
            }
        }
        paths.steer();
        if at == 7_000 {
            assert_eq!(paths.steering.in_use.len(), 998);
        }
    }
    for (first, at) in sent.iter().enumerate() {
        let within = sent[first..]
            .iter()
            .take_while(|other| **other < at + 1_000);
        assert!(within.count() <= 2_000, "from {at} on");
    }
    let reports = paths.reports(ms(12_000));
    let dead = reports
        .values()
        .filter(|report| report.health.state == State::Dead);
    assert!(dead.count() > 300, "it takes a while, and goes on");
}
