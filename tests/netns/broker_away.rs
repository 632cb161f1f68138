//! The broker away, back, restored and empty: traffic never depends on it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::site::Family;
use crate::traffic::Pings;
use crate::wait::{LONG, bounded, until};
use crate::world::World;

#[test]
fn a_gateway_killed_while_the_broker_is_away_comes_back_from_its_snapshot() {
    let mut world = World::fleet(&["east", "west", "north"]);
    let key = world.site("east").status().expect("a status")["public_key"].clone();
    world.broker.kill();
    world.site("east").reaches(world.site("west"));
    world.site_mut("east").kill_gateway();
    let restarted = Instant::now();
    world.site_mut("east").start_gateway("");
    let east = world.site("east");
    for other in ["west", "north"] {
        east.pings(world.site(other).pod4(), LONG);
    }
    bounded(
        "tunnels are back after kill -9 and restart without a broker",
        restarted.elapsed(),
        Duration::from_secs(3),
    );
    east.subsea("status --wait 10s").ok();
    let status = east.status().expect("a status");
    assert_eq!(status["public_key"], key);
    assert_eq!(status["snapshot"]["source"], "disk");
    assert_eq!(status["broker"]["state"], "away");
    east.reaches(world.site("west"));
}

#[test]
fn the_broker_comes_back_and_all_is_reconciled_without_a_lost_packet() {
    let mut world = World::fleet(&["east", "west"]);
    world.add("north", Family::V4).join();
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("west").pod4(),
        Duration::from_millis(10),
        world.path("pings.log"),
    );
    world.broker.kill();
    until("east sees it", LONG, || {
        world.site("east").broker_state().as_deref() == Some("away")
    });
    // It waits for the broker: it has joined, but nobody knows its endpoint.
    world.site_mut("north").start_gateway("");
    std::thread::sleep(Duration::from_secs(3));
    world.broker.start();
    for name in ["east", "west", "north"] {
        until("everybody is back", LONG, || {
            world.site(name).broker_state().as_deref() == Some("connected")
        });
    }
    world.wait_connected();
    world.site("north").reaches(world.site("east"));
    assert!(pings.stop_without_loss() > 100);
}

#[test]
fn a_frozen_broker_is_noticed_and_does_no_harm() {
    let mut world = World::fleet(&["east", "west"]);
    world.broker.signal(Signal::STOP);
    // A heartbeat every 10 s, and patience for two of them.
    until("east misses the heartbeat", Duration::from_mins(1), || {
        world.site("east").broker_state().as_deref() == Some("away")
    });
    world.site("east").reaches(world.site("west"));
    world.broker.signal(Signal::CONT);
    until("it is back", LONG, || {
        world.site("east").broker_state().as_deref() == Some("connected")
    });
    assert!(world.broker.is_running());
}

#[test]
fn a_broker_restored_from_an_older_backup_cuts_no_tunnel() {
    let mut world = World::fleet(&["east", "west"]);
    let backup = world.path("backup.db");
    world
        .broker
        .admin(&format!("backup {}", backup.display()))
        .ok();
    world.add("north", Family::V4).enrol();
    world.wait_connected();
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("north").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    world.broker.stop();
    let broker = &world.broker;
    let program = crate::world::broker_program();
    broker
        .space
        .run(&format!(
            "{program} restore {} --data-dir {}",
            backup.display(),
            broker.dir.display()
        ))
        .ok();
    world.broker.start();
    assert_eq!(world.broker.members(), ["east", "west"]);
    until("east keeps north", LONG, || {
        world.site("east").path_state("north").as_deref() == Some("kept")
    });
    until("north is told", LONG, || {
        world.site("north").broker_state().as_deref() == Some("not-member")
    });
    for (from, to) in [
        ("north", "east"),
        ("north", "west"),
        ("east", "west"),
        ("west", "north"),
    ] {
        world.site(from).reaches(world.site(to));
    }
    // A gateway that is started anew meanwhile keeps it too.
    world.site_mut("west").stop_gateway();
    world.site_mut("west").start_gateway("");
    world.site("west").pings(world.site("north").pod4(), LONG);
    pings.stop_without_loss();
}

#[test]
fn a_broker_started_empty_with_the_same_ca_cuts_no_tunnel() {
    let mut world = World::new();
    world.broker.start();
    let empty = world.path("empty.db");
    world
        .broker
        .admin(&format!("backup {}", empty.display()))
        .ok();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("west").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    // This time in the running broker.
    world
        .broker
        .admin(&format!("restore {}", empty.display()))
        .ok();
    assert!(world.broker.members().is_empty());
    for name in ["east", "west"] {
        until("it is told", LONG, || {
            world.site(name).broker_state().as_deref() == Some("not-member")
        });
    }
    world.site("east").reaches(world.site("west"));
    std::thread::sleep(Duration::from_secs(3));
    pings.stop_without_loss();
}

#[test]
fn a_certificate_expired_by_a_long_outage_is_renewed() {
    let mut world = World::new();
    world.broker.flags = "--certificate-lifetime 10s".into();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    let expires = |world: &World| {
        let status = world.site("east").status().expect("a status");
        status["certificate_expires"].as_u64().expect("a time")
    };
    let first = expires(&world);
    until("it renews by itself", LONG, || expires(&world) > first);
    world.broker.stop();
    let last = expires(&world);
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(expires(&world), last, "nobody could have renewed it");
    world.site("east").reaches(world.site("west"));
    // One gateway restarts with its expired certificate, one has been running all the time.
    world.site_mut("west").stop_gateway();
    world.site_mut("west").start_gateway("");
    world.broker.start();
    for name in ["east", "west"] {
        until("connected again", LONG, || {
            world.site(name).broker_state().as_deref() == Some("connected")
        });
    }
    until("it is renewed", LONG, || expires(&world) > last);
    world.site("east").reaches(world.site("west"));
}
