//! Joining, waiting, and members that come and move.

use std::time::{Duration, Instant};

use crate::site::Family;
use crate::traffic::{Pings, fetch, fetch_more};
use crate::wait::{LONG, bounded, until};
use crate::world::World;

#[test]
fn without_gateways_nobody_reaches_anybody() {
    let mut world = World::new();
    world.add("east", Family::V4);
    world.add("west", Family::Dual);
    let (east, west) = (world.site("east"), world.site("west"));
    assert!(east.is_cut_from(west.pod4()));
    assert!(west.is_cut_from(east.pod4()));
    // The underlay is whole, and so are the pods' own links.
    for command in [
        "ping -n -q -c 1 -W 2 192.0.2.102",
        "ping -n -q -c 1 -W 2 192.0.2.10",
        "ping -n -q -c 1 -W 2 192.0.2.254",
        "ping -n -q -c 1 -W 2 10.11.0.10",
    ] {
        east.host.run(command).ok();
    }
    west.host.run("ping -n -q -c 1 -W 2 2001:db8::10").ok();
    let page = fetch(&west.host, west.pod6(), LONG);
    assert_eq!(page.expect("an answer"), "pod of west saw fd00:1:2::1\n");
}

#[test]
fn three_clusters_join_and_reach_each_other_in_every_direction() {
    let mut world = World::new();
    world.broker.start();
    for name in ["east", "west", "north"] {
        let said = world.add(name, Family::V4).join();
        assert!(
            said.contains("registered, not connected: start `subsea gateway "),
            "{said}"
        );
    }
    for name in ["east", "west", "north"] {
        world.site_mut(name).start_gateway("");
    }
    world.wait_connected();
    for from in world.sites.values() {
        for to in world.sites.values().filter(|to| to.name != from.name) {
            from.reaches(to);
            let status = from.path_to(&to.name).expect("a path");
            assert_eq!(status["state"], "connected", "{status}");
            assert!(
                status["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0),
                "{status}"
            );
            assert!(
                status["rx_bytes"].as_u64().is_some_and(|n| n > 0),
                "{status}"
            );
            assert!(status["latest_handshake"].as_u64().is_some(), "{status}");
        }
        // What the kernel sends on every device by itself is no drop.
        assert_eq!(from.drops(None, "outbound-source"), 0);
        let text = from.subsea("status").ok();
        for other in world.sites.keys().filter(|n| **n != from.name) {
            assert!(text.contains(other), "{text}");
        }
    }
    assert_eq!(world.broker.members(), ["east", "north", "west"]);
}

#[test]
fn a_megabyte_passes_both_ways_although_the_tunnel_is_narrower_than_the_pods_links() {
    let world = World::fleet(&["east", "west"]);
    for (from, to) in [("east", "west"), ("west", "east")] {
        let text = fetch_more(&world.site(from).pod, world.site(to).pod4(), 1 << 20, LONG);
        assert!(text.expect("an answer").len() > 1 << 20);
    }
}

#[test]
fn two_dual_stack_clusters_and_one_without_ipv6() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::Dual).enrol();
    world.add("west", Family::Dual).enrol();
    world.add("north", Family::V4).enrol();
    world.wait_connected();
    for from in world.sites.values() {
        for to in world.sites.values().filter(|to| to.name != from.name) {
            from.reaches(to);
        }
    }
    let page = fetch_more(
        &world.site("east").pod,
        world.site("west").pod6(),
        1 << 20,
        LONG,
    );
    assert!(page.expect("an answer").len() > 1 << 20);
}

#[test]
fn the_gateway_itself_and_processes_on_it_reach_remote_pods() {
    let world = World::fleet(&["east", "west"]);
    let (east, west) = (world.site("east"), world.site("west"));
    let ran = east
        .host
        .run(&format!("ping -n -c 3 -i 0.2 -W 2 {}", west.pod4()));
    ran.ok();
    let answer = fetch(&east.host, west.pod4(), Duration::from_secs(5));
    let text = answer.expect("an answer");
    // The preferred source: the host's own address inside its pod block.
    assert_eq!(text, "pod of west saw 10.11.0.1\n");
}

#[test]
fn an_overlapping_join_is_refused_and_the_same_file_works_with_other_blocks() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4);
    let token = world.broker.token("west").display().to_string();
    let west = world.site("west");
    let wrong =
        format!("{token} --cluster west --pod-cidr 10.11.128.0/17 --service-cidr 10.92.0.0/20");
    for verb in ["preflight", "join"] {
        let line = format!("{verb} {wrong}");
        let ran = if verb == "join" {
            west.subsea(&line)
        } else {
            west.host
                .run(&format!("{} {line}", env!("CARGO_BIN_EXE_subsea")))
        };
        let text = ran.fails_with(2);
        for word in ["east", "west", "10.11.0.0/16", "10.11.128.0/17"] {
            assert!(text.contains(word), "{verb} does not name {word}: {text}");
        }
    }
    assert_eq!(world.broker.members(), ["east"]);
    let line = format!("join {token} {}", west.join_flags());
    west.subsea(&line).ok();
    // A repeat has the same result, and a later one with the spent token from elsewhere has not.
    west.subsea(&line).ok();
    let elsewhere = world.path("elsewhere");
    let program = env!("CARGO_BIN_EXE_subsea");
    let ran = west.host.run(&format!(
        "{program} {line} --state-dir {}",
        elsewhere.display()
    ));
    assert!(ran.fails_with(1).contains("used"));
    assert_eq!(world.broker.members(), ["east", "west"]);
}

#[test]
fn status_wait_names_the_member_that_has_no_gateway() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    world.add("north", Family::V4).join();
    // Before that, all that east knows of may be connected.
    until("east knows of north", LONG, || {
        let status = world.site("east").status();
        status.is_some_and(|status| {
            let members = status["members"].as_array().expect("members");
            members.iter().any(|member| member["cluster"] == "north")
        })
    });
    let start = Instant::now();
    let text = world.site("east").subsea("status --wait 8s").fails_with(1);
    assert!(start.elapsed() >= Duration::from_secs(8), "it did not wait");
    assert!(text.contains("north"), "{text}");
    world.site_mut("north").start_gateway("");
    world.site("east").subsea("status --wait 30s").ok();
}

#[test]
fn status_wait_waits_for_a_daemon_and_fails_without_one() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).join();
    let text = world.site("east").subsea("status --wait 2s").fails_with(1);
    assert!(
        text.contains("subsea gateway"),
        "it does not say what to start: {text}"
    );
    world.site("east").subsea("status").fails_with(1);
}

#[test]
fn a_fleet_of_one_says_so() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    let text = world.site("east").subsea("status --wait 20s").ok();
    assert!(text.contains("no other") || text.contains("only"), "{text}");
}

#[test]
fn a_new_member_is_there_within_two_seconds_and_disturbs_nobody() {
    let mut world = World::fleet(&["east", "west"]);
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("west").pod4(),
        Duration::from_millis(10),
        world.path("pings.log"),
    );
    world.add("north", Family::V4).join();
    world.site_mut("north").start_gateway("");
    let north = world.site("north").pod4();
    until("the broker has the gateway of north", LONG, || {
        world.broker.admin_json("cluster show north")["gateways"]
            .as_object()
            .is_some_and(|g| !g.is_empty())
    });
    let took = world.site("east").pings(north, LONG);
    bounded(
        "a new member is reached after its gateway's registration",
        took,
        Duration::from_secs(2),
    );
    std::thread::sleep(Duration::from_secs(1));
    assert!(pings.stop_without_loss() > 20);
}

#[test]
fn a_moved_endpoint_is_followed() {
    let mut world = World::fleet(&["east", "west", "north"]);
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("north").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    let before = world.site("west").status().expect("a status")["public_key"].clone();
    world.site_mut("west").stop_gateway();
    let west = world.site("west");
    west.host.ip("address flush dev u0");
    west.host.ip("address add 192.0.2.177/24 dev u0");
    west.host.ip("route add default via 192.0.2.254");
    world.site_mut("west").start_gateway("--listen-port 51999");
    until("the broker has the new endpoint", LONG, || {
        world
            .broker
            .admin("cluster show west")
            .ok()
            .contains("192.0.2.177:51999")
    });
    // Only east speaks: it must learn the endpoint from the broker.
    let east = world.site("east");
    let took = east.pings(world.site("west").pod4(), LONG);
    bounded("a moved endpoint is followed", took, Duration::from_secs(2));
    let path = east.path_to("west").expect("a path");
    assert_eq!(path["endpoint"], "192.0.2.177:51999");
    assert_eq!(path["public_key"], before, "the key is another");
    pings.stop_without_loss();
}

#[test]
fn an_endpoint_of_the_operators_choice_and_another_port() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).join();
    world
        .site_mut("west")
        .start_gateway("--driver userspace --listen-port 4500 --endpoint 192.0.2.102:4500");
    world.wait_connected();
    world.site("east").reaches(world.site("west"));
    let path = world.site("east").path_to("west").expect("a path");
    assert_eq!(path["endpoint"], "192.0.2.102:4500");
}
