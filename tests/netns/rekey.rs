//! New sessions under load. `WireGuard` renews a session after 120 s; a flag for tests does so sooner.

use std::time::Duration;

use crate::flows::{Datagrams, Pump};
use crate::site::{Family, Site};
use crate::wait::bounded;
use crate::world::World;

/// How long the flows go on, and how often the session is renewed meanwhile.
const TIME: Duration = Duration::from_secs(30);
const REKEY: u64 = 5;
/// What the product promises of a renewal.
const STALL: Duration = Duration::from_millis(200);

/// What a gateway dropped, of the path and of no peer, for any reason but that too much came.
fn drops_but_queue(site: &Site, other: &str) -> Vec<String> {
    let places = [site.path_to(other), site.status()];
    let drops = places.into_iter().flat_map(|place| {
        let place = place.expect("a status");
        let drops = place["drops"].as_object().expect("drops").clone();
        drops.into_iter().filter(|(reason, _)| reason != "queue")
    });
    drops.map(|(reason, n)| format!("{reason} {n}")).collect()
}

#[test]
fn sessions_are_renewed_under_load_without_a_stall_or_a_loss() {
    let mut world = World::new();
    world.broker.start();
    for name in ["east", "west"] {
        world.add(name, Family::Dual).join();
        let flags = format!("--rekey-after {REKEY}");
        world.site_mut(name).start_gateway(&flags);
    }
    world.wait_connected();
    let (east, west) = (world.site("east"), world.site("west"));
    let before: Vec<_> = [(east, "west"), (west, "east")]
        .map(|(site, other)| drops_but_queue(site, other))
        .into();
    let handshakes = || {
        let logs = [east, west].map(Site::gateway_output);
        logs.map(|log| log.matches("handshake completed").count())
    };
    let first = handshakes();
    let pumps = [
        ("IPv4", Pump::start(&east.pod, (&west.pod, west.pod4()))),
        ("IPv6", Pump::start(&west.pod, (&east.pod, east.pod6()))),
    ];
    let every = Duration::from_millis(5);
    let datagrams = [
        Datagrams::start(&east.pod, (&west.pod, west.pod4()), 200, every),
        Datagrams::start(&west.pod, (&east.pod, east.pod4()), 200, every),
        Datagrams::start(&west.pod, (&east.pod, east.pod6()), 1_200, every),
    ];
    std::thread::sleep(TIME);
    let renewed = handshakes();
    let tallies = datagrams.map(Datagrams::stop);
    for (family, pump) in pumps {
        let (bytes, stall) = pump.stop();
        assert!(bytes > 10 << 20, "{bytes} bytes in {TIME:?}");
        bounded(
            &format!("a full {family} TCP flow stalls while sessions are renewed"),
            stall,
            STALL,
        );
    }
    for tally in tallies {
        assert_eq!(tally.received, tally.sent, "datagrams were lost: {tally:?}");
        bounded(
            "a UDP flow beside it stalls while sessions are renewed",
            tally.longest_gap,
            STALL,
        );
    }
    let least = usize::try_from(TIME.as_secs() / REKEY).expect("few") - 1;
    for (before, after) in first.iter().zip(renewed) {
        assert!(after >= before + least, "{first:?} then {renewed:?}");
    }
    for ((site, other), before) in [(east, "west"), (west, "east")].into_iter().zip(before) {
        assert_eq!(drops_but_queue(site, other), before, "{}", site.name);
    }
}
