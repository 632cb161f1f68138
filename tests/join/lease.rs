//! The lease of a gateway that runs, in a namespace of its own.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::EAST;
use crate::fleet::{Fleet, in_namespace};
use crate::gateway::{gateway, until};

fn revision(fleet: &Fleet) -> Value {
    fleet.admin("status -o json").exits(0).json()["revision"].clone()
}

/// The gateway as it is listed.
fn listed(fleet: &Fleet) -> Value {
    fleet.admin("gateway list -o json").exits(0).json()[0].clone()
}

fn is_expired(fleet: &Fleet) -> bool {
    listed(fleet)["expired"].is_u64()
}

/// Whether nothing changes in the fleet for so long.
#[track_caller]
fn rests(fleet: &Fleet, time: Duration) {
    let (start, before) = (Instant::now(), revision(fleet));
    while start.elapsed() < time {
        assert_eq!(revision(fleet), before, "after {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_gateway_keeps_its_lease_while_it_lives() {
    let name = "lease::a_gateway_keeps_its_lease_while_it_lives";
    if !in_namespace(name, "") {
        return;
    }
    let lease = Duration::from_secs(3);
    let mut fleet = Fleet::with(&["--fleet", "harbour", "--lease", "3s"]);
    fleet.join("east", EAST).exits(0);
    let dir = fleet.path("east");
    let running = gateway(&dir);
    until("it is registered", || listed(&fleet).is_object());
    rests(&fleet, lease * 3);
    assert!(!is_expired(&fleet));
    // The broker is not there to hear of it for longer than a lease: nobody's is over for that.
    fleet.signal("STOP");
    std::thread::sleep(lease * 2);
    fleet.signal("CONT");
    rests(&fleet, lease * 2);
    assert!(!is_expired(&fleet));
    // After a restart it renews again. How soon it finds the broker has little to do with a lease as short as this one.
    fleet.down();
    std::thread::sleep(Duration::from_secs(1));
    fleet.up();
    until("it watches", || listed(&fleet)["watching"].is_u64());
    std::thread::sleep(Duration::from_millis(1_500));
    until("it is valid", || !is_expired(&fleet));
    rests(&fleet, lease * 2);
    let text = fleet.admin("gateway list").exits(0).out;
    assert!(text.contains("valid"), "{text}");
    // It dies, and the fleet hears of it once.
    drop(running);
    let before = revision(&fleet).as_u64().expect("a number");
    until("it is expired", || is_expired(&fleet));
    assert_eq!(revision(&fleet), before + 1);
    for (verb, words) in [
        ("gateway list", "expired "),
        ("cluster show east", "expired "),
        ("cluster list", "1 (1 expired)"),
        ("status", "1 (1 expired)"),
    ] {
        let text = fleet.admin(verb).exits(0).out;
        assert!(text.contains(words), "{verb}:\n{text}");
    }
    rests(&fleet, lease);
    let running = gateway(&dir);
    until("it is back", || !is_expired(&fleet));
    assert_eq!(revision(&fleet), before + 2, "by its lease alone");
    rests(&fleet, lease * 2);
    // An operator ends it, while it still runs.
    fleet
        .admin("gateway forget --cluster east --node gw-1")
        .exits(0);
    assert!(listed(&fleet).is_null());
    rests(&fleet, lease);
    drop(running);
}
