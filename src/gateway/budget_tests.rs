use super::super::echo::{Kind, Own};
use super::super::health::Health;
use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn counts(hot: u32, awaited: u32, idle: u32) -> Counts {
    Counts { hot, awaited, idle }
}

#[test]
fn a_small_fleet_gets_all_it_wants() {
    let timing = Timing::default();
    let wanted = Paces {
        hot: ms(250),
        awaited: ms(250),
        idle: ms(2_000),
    };
    assert_eq!(plan(counts(0, 0, 0), &timing), wanted);
    assert_eq!(plan(counts(100, 100, 100), &timing), wanted);
    let quick = plan(counts(10, 10, 10), &Timing::every(ms(50)));
    assert_eq!((quick.hot, quick.idle), (ms(50), ms(2_000)));
}

#[test]
fn who_carries_traffic_goes_first() {
    let paces = plan(counts(200, 600, 198), &Timing::default());
    assert_eq!((paces.hot, paces.idle), (ms(250), ms(2_000)));
    assert!(paces.awaited > ms(250) && paces.awaited < ms(2_000));
    let paces = plan(counts(230, 670, 98), &Timing::default());
    assert!(paces.hot > ms(250) && paces.hot < ms(320));
    assert!(paces.awaited >= ms(1_999));
}

/// The figures at the head of the file.
#[test]
fn the_largest_fleets_are_as_they_are_told() {
    let timing = Timing::default();
    // Every gateway has a path to both gateways of every other cluster.
    let clusters = |hot_percent| largest(hot_percent, &timing) / 2 + 1;
    assert_eq!((clusters(100), clusters(50), clusters(10)), (137, 252, 779));
    assert_eq!(largest(0, &timing), 3_272);
    let hot = (0..998).take_while(|hot| plan(counts(*hot, 0, 998 - hot), &timing).hot == ms(250));
    assert_eq!(hot.last(), Some(206));
    let all = plan(counts(998, 0, 0), &timing);
    let bound = timing.bound(all.hot, ms(100));
    assert!(ms(1_355) < bound && bound < ms(1_365), "{bound:?}");
}

#[test]
fn the_bucket_lets_no_more_through_in_any_second() {
    let mut bucket = Bucket::new(ms(0));
    let mut sent = Vec::new();
    for at in 0..40_000 {
        // Everybody wants to, all the time, but for a pause.
        let now = Duration::from_micros(at * 100);
        if (1_000..2_500).contains(&now.as_millis()) {
            continue;
        }
        while bucket.take(now) {
            sent.push(now);
        }
    }
    for (first, at) in sent.iter().enumerate() {
        let within = sent[first..]
            .iter()
            .take_while(|other| **other < *at + ms(1_000));
        assert!(within.count() <= 2_000);
    }
    assert!(sent.len() > 4_500);
    assert!(!bucket.take(ms(0)), "time does not go back");
    let next = bucket.next();
    assert!(bucket.take(next));
}

/// A gateway of a fleet of 500 clusters of two gateways, a part of whose paths carry traffic: for half a minute no
/// second has more probes than the budget, and when a site fails it is found within the bound.
#[test]
fn the_budget_holds_with_five_hundred_clusters() {
    const PATHS: u64 = 998;
    const HOT: u64 = 206;
    const DEAD: std::ops::Range<u64> = 10..12;
    let timing = Timing::default();
    let own = Own::default();
    let mut paths: Vec<Health> = (0..PATHS)
        .map(|at| Health::new(timing, ms(0), at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let paces = plan(counts(206, 0, 792), &timing);
    let mut bucket = Bucket::new(ms(0));
    let mut sent: Vec<Duration> = Vec::new();
    let mut busiest_tick = 0;
    for at in 0..6_000 {
        let now = ms(at * 5);
        let before = sent.len();
        for (number, health) in (0..).zip(&mut paths) {
            if at == 0 {
                health.pace(if number < HOT { paces.hot } else { paces.idle }, now);
            }
            if health.due() > now {
                continue;
            }
            let Some(probe) = health.poll(now, own, bucket.left() > 0) else {
                // Looks alone cost nothing; they fill the bucket in the next try.
                continue;
            };
            assert!(bucket.take(now));
            sent.push(now);
            if at < 5_000 || !DEAD.contains(&number) {
                let reply = super::super::echo::Echo {
                    kind: Kind::Reply,
                    heard: Some(Duration::ZERO),
                    ..probe
                };
                health.receive(&reply, now + ms(2), own);
            }
        }
        bucket.refill(now);
        if at > 2_000 {
            busiest_tick = busiest_tick.max(sent.len() - before);
        }
        let bound = at - 5_000.min(at) > 695 / 5 + 1;
        if at < 5_000 || bound {
            for (number, health) in (0..).zip(&paths) {
                let cut = bound && DEAD.contains(&number);
                assert!(
                    health.state().works() != cut || at < 400,
                    "{number} at {now:?}"
                );
            }
        }
    }
    let mut first = 0;
    for (last, at) in sent.iter().enumerate() {
        while sent[first] + ms(1_000) <= *at {
            first += 1;
        }
        assert!(
            last + 1 - first <= 2_000,
            "{} in a second",
            last + 1 - first
        );
    }
    // Evenly they would be 9 in 5 ms.
    assert!(busiest_tick <= 30, "a burst of {busiest_tick}");
}

#[test]
fn echo_is_no_traffic() {
    let id = |node: &str| PathId {
        cluster: "west".parse().unwrap(),
        node: node.parse().unwrap(),
    };
    let mut traffic = Traffic::default();
    let mut observe = |at: u64, counters: &[(&str, u64, u64)]| {
        let counters = counters
            .iter()
            .map(|(node, all, echo)| (id(node), *all, *echo));
        traffic.observe(ms(at * 1_000), counters);
        traffic
            .hot(ms(at * 1_000))
            .into_iter()
            .map(|id| id.node.to_string())
            .collect::<Vec<_>>()
    };
    assert!(
        observe(0, &[("a", 10_000, 0), ("b", 5_000, 5_000)]).is_empty(),
        "from before"
    );
    assert!(observe(1, &[("a", 10_100, 0), ("b", 9_000, 8_900)]).is_empty());
    assert_eq!(
        observe(2, &[("a", 40_000, 0), ("b", 90_000, 89_700)]),
        ["a"]
    );
    assert_eq!(
        observe(61, &[("a", 40_000, 0), ("b", 95_000, 89_000)]),
        ["a", "b"]
    );
    assert_eq!(
        observe(62, &[("a", 40_000, 0), ("b", 95_000, 89_000)]),
        ["b"]
    );
    assert_eq!(
        observe(63, &[("a", 0, 0)]),
        [""; 0],
        "counters of a new tunnel"
    );
    assert_eq!(observe(64, &[("a", 4_000, 0)]), ["a"]);
}
