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
            },
        )]),
        revision: 7,
    }
}

async fn becomes(prober: &Prober, wanted: &BTreeSet<PathId>) {
    let mut usable = prober.usable();
    let seen = usable.wait_for(|usable| usable == wanted);
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
    let (at_east, at_west) = (Prober::start(clock), Prober::start(clock));
    at_east.aim(targets(east, west, "west"));
    at_west.aim(targets(west, east, "east"));
    becomes(&at_east, &BTreeSet::from([id("west")])).await;
    becomes(&at_west, &BTreeSet::from([id("east")])).await;
    let report = at_east.reports(clock.now().mono)[&id("west")];
    assert_eq!((report.state, report.revision), (State::Connected, Some(7)));
    assert!(report.peer_hears_us && report.rtt.is_some());

    // A new device: the sockets are opened anew, and the path goes on.
    at_east.aim(Targets {
        generation: 2,
        ..targets(east, west, "west")
    });
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(*at_east.usable().borrow(), BTreeSet::from([id("west")]));

    drop(at_west);
    becomes(&at_east, &BTreeSet::new()).await;
    assert_eq!(
        at_east.reports(clock.now().mono)[&id("west")].state,
        State::Down
    );
    at_east.aim(Targets::default());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(at_east.reports(clock.now().mono).is_empty());
}
