use super::super::health::State;
use super::*;

fn id(cluster: &str) -> PathId {
    PathId {
        cluster: cluster.parse().unwrap(),
        node: "gw-1".parse().unwrap(),
    }
}

fn targets(own: IpAddr, peer: IpAddr, cluster: &str) -> Targets {
    Targets {
        generation: 1,
        own: vec![own],
        paths: BTreeMap::from([(
            id(cluster),
            Target {
                inner: vec![peer],
                device: "lo".to_owned(),
                ceiling: Some(1400),
                road: None,
            },
        )]),
        judged: BTreeMap::from([(id("stock"), true)]),
        revision: 7,
    }
}

/// A prober, what it may be told, and what it told the tunnel last.
struct Bench {
    prober: Prober,
    own: watch::Sender<Flags>,
    steered: watch::Receiver<BTreeSet<PathId>>,
}

fn start(clock: Clock) -> Bench {
    let own = watch::Sender::new(Flags::default());
    let (steer, steered) = watch::channel(BTreeSet::new());
    let prober = Prober::start(Settings {
        clock,
        timing: Timing::default(),
        own: own.subscribe(),
        carrying: watch::channel(None).1,
        steer: Arc::new(move |in_use| {
            steer.send_replace(in_use.clone());
        }),
    });
    Bench {
        prober,
        own,
        steered,
    }
}

async fn reaches(bench: &Bench, clusters: &[&str]) {
    let wanted: BTreeSet<_> = clusters.iter().map(|id| id.parse().unwrap()).collect();
    let mut steering = bench.prober.steering();
    let seen = steering.wait_for(|steering| steering.reached == wanted);
    tokio::time::timeout(Duration::from_secs(10), seen)
        .await
        .unwrap()
        .unwrap();
}

/// Needs the right to bind port 583 and to bind to a device, as the gateway does.
#[tokio::test]
async fn two_probers_find_each_other_and_miss_each_other() {
    let clock = Clock::start();
    let place = random().to_be_bytes();
    let [east, west] = [1, 2].map(|last| IpAddr::from([127, place[0], place[1], last]));
    let (at_east, at_west) = (start(clock), start(clock));
    at_east.prober.aim(targets(east, west, "west"));
    at_west.prober.aim(targets(west, east, "east"));
    reaches(&at_east, &["stock", "west"]).await;
    reaches(&at_west, &["east", "stock"]).await;
    let all = BTreeSet::from([id("stock"), id("west")]);
    assert_eq!(*at_east.steered.borrow(), all);
    let report = at_east.prober.reports(clock.now().mono)[&id("west")];
    let health = report.health;
    assert_eq!((health.state, health.revision), (State::Connected, Some(7)));
    assert!(health.usable && health.peer_hears_us && health.rtt.is_some());
    assert!(report.echo.inner > 0);

    // What the other says of itself is heard without waiting for the next probe.
    at_west.own.send_modify(|flags| flags.draining = true);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let report = at_east.prober.reports(clock.now().mono)[&id("west")];
    assert!(report.health.flags.draining && !report.health.usable);
    assert_eq!(*at_east.steered.borrow(), all, "there is no other");

    // A new device: the sockets are opened anew, and the path goes on.
    at_east.prober.aim(Targets {
        generation: 2,
        ..targets(east, west, "west")
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    at_east.prober.hint(id("west"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let state = || {
        at_east.prober.reports(clock.now().mono)[&id("west")]
            .health
            .state
    };
    assert_eq!(state(), State::Connected);
    let report = at_east.prober.reports(clock.now().mono)[&id("west")];
    assert_eq!(report.mtu.and_then(|mtu| mtu.size), Some(1400));

    drop(at_west);
    let died = async {
        while state() != State::Dead {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), died)
        .await
        .expect("who does not answer is dead");
    reaches(&at_east, &["stock"]).await;
    at_east.prober.aim(Targets::default());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(at_east.prober.reports(clock.now().mono).is_empty());
}
