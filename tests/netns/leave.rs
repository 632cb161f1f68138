//! Leaving, forgetting and revoking.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::traffic::Pings;
use crate::wait::{LONG, bounded, until};
use crate::world::World;

/// Everything in a namespace's kernel that a gateway could leave behind.
fn kernel(space: &Namespace) -> BTreeMap<&'static str, String> {
    let mut seen = BTreeMap::new();
    for (what, line) in [
        ("links", "ip -br link"),
        ("addresses", "ip -br address"),
        ("routes", "ip -4 route show table all"),
        ("IPv6 routes", "ip -6 route show table all"),
        ("rules", "ip -4 rule"),
        ("IPv6 rules", "ip -6 rule"),
        ("nftables", "nft list ruleset"),
        (
            "forwarding",
            "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
        ),
        (
            "settings of links",
            "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.cni0.rp_filter net.ipv4.conf.u0.rp_filter \
             net.ipv6.conf.u0.accept_ra net.ipv6.conf.u0.forwarding",
        ),
    ] {
        seen.insert(what, space.run(line).ok());
    }
    seen
}

fn foreign_things(space: &Namespace) {
    space.ip("route add 10.200.0.0/16 via 192.0.2.254");
    space.ip("route add 10.201.0.0/16 via 192.0.2.254 table 77");
    space.ip("rule add pref 500 from 10.201.0.0/16 lookup 77");
    space.nft(
        "table inet foreign { chain post { type nat hook postrouting priority 100; oifname \"u0\" masquerade; }; }",
    );
}

#[test]
fn leave_takes_every_trace_of_ours_and_nothing_else() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", crate::site::Family::Dual);
    foreign_things(&world.site("east").host);
    // Addresses and routes of IPv6 settle a moment after a link is up.
    std::thread::sleep(Duration::from_secs(2));
    let before = kernel(&world.site("east").host);
    world.join("east").ok();
    world.site_mut("east").start_gateway("");
    world.add("west", crate::site::Family::Dual).enrol();
    world.add("north", crate::site::Family::V4).enrol();
    world.wait_connected();
    world.site("east").reaches(world.site("west"));
    assert_ne!(kernel(&world.site("east").host), before);
    let pings = Pings::start(
        &world.site("west").pod,
        world.site("north").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    let ran = world.site("east").subsea("leave");
    let left = Instant::now();
    assert!(
        ran.stderr.contains("stop") || ran.stdout.contains("stop"),
        "it did not say that it stops: {ran}"
    );
    ran.ok();
    until("west drops east", LONG, || {
        world.site("west").path_to("east").is_none()
    });
    bounded(
        "a peer drops a member that left",
        left.elapsed(),
        Duration::from_secs(2),
    );
    let mut daemon = world
        .site_mut("east")
        .gateway
        .take()
        .expect("it was started");
    assert!(daemon.wait(Duration::from_secs(5)).success());
    let after = kernel(&world.site("east").host);
    for (what, text) in &before {
        assert_eq!(text, &after[what], "{what} differ");
    }
    assert!(!world.broker.members().contains(&"east".to_owned()));
    pings.stop_without_loss();
    // The blocks rest, but never against the same cluster.
    world.join("east").ok();
    world.site_mut("east").start_gateway("");
    world.wait_connected();
    world.site("west").reaches(world.site("east"));
}

#[test]
fn a_leave_that_is_refused_does_not_stop_the_gateway() {
    let mut world = World::fleet(&["east", "west"]);
    let file = world.path("second.yaml");
    world
        .broker
        .admin(&format!(
            "token create --cluster west --role gateway -o {}",
            file.display()
        ))
        .ok();
    // A further gateway of west, on a host of its own.
    world.add("north", crate::site::Family::V4);
    let north = world.site_mut("north");
    north
        .subsea(&format!("join {} --node gw-2", file.display()))
        .ok();
    // It does not reach the pods of west, finds that out, and has itself left out.
    north.start_gateway("--inward-probe 10.12.0.10");
    world.wait_connected();
    until("only one carries", LONG, || {
        let status = world.site("east").status().unwrap_or_default();
        let paths = status["members"][0]["gateways"].as_array().cloned();
        let mut paths = paths.into_iter().flatten();
        paths.any(|path| path["gateway"] == "gw-2" && path["in_use"] == false)
    });
    let ran = world.site("west").subsea("leave");
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.stderr.contains("other gateways: gw-2"), "{ran}");
    assert!(!ran.stderr.contains("stopping"), "{ran}");
    assert_eq!(
        world.site("west").path_state("east").as_deref(),
        Some("connected")
    );
    world.site("east").reaches(world.site("west"));
    world.site("west").subsea("leave --force").ok();
    world.site_mut("west").gateway = None;
    assert_eq!(world.broker.members(), ["east"]);
}

#[test]
fn leave_works_without_a_running_gateway_and_after_kill_9() {
    let mut world = World::fleet(&["east", "west"]);
    world.site_mut("east").kill_gateway();
    let east = world.site("east");
    assert!(
        east.host.ip("-br link").contains("subsea0"),
        "the device is persistent"
    );
    east.subsea("leave").ok();
    assert!(!east.host.ip("-br link").contains("subsea0"));
    assert!(!east.host.ip("rule").contains("583"));
    assert_eq!(east.host.ip("route show table 583"), "");
    assert_eq!(east.host.run("nft list ruleset").ok(), "");
    until("west drops east", LONG, || {
        world.site("west").path_to("east").is_none()
    });
    // A second leave has nothing to do and says so.
    let again = east.subsea("leave");
    assert!(again.code == Some(0) || again.code == Some(1), "{again}");
}

#[test]
fn leave_with_a_dead_broker_needs_local() {
    let mut world = World::fleet(&["east", "west"]);
    world.broker.kill();
    let east = world.site("east");
    let text = east.subsea("leave").fails_with(1);
    assert!(text.contains("--local"), "{text}");
    east.reaches(world.site("west"));
    east.subsea("leave --local").ok();
    assert!(!east.host.ip("-br link").contains("subsea0"));
    assert!(!east.host.ip("rule").contains("583"));
    assert_eq!(east.host.run("nft list ruleset").ok(), "");
    world.broker.start();
    assert!(
        world.broker.members().contains(&"east".to_owned()),
        "only an operator can forget it now"
    );
    world.broker.admin("cluster forget east").ok();
    until("west drops east", LONG, || {
        world.site("west").path_to("east").is_none()
    });
}

#[test]
fn a_revoked_member_is_dropped_within_two_seconds() {
    let mut world = World::fleet(&["east", "west", "north"]);
    let pings = Pings::start(
        &world.site("east").pod,
        world.site("north").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    world.broker.admin("cluster revoke west").ok();
    let revoked = Instant::now();
    for name in ["east", "north"] {
        until("west is dropped", LONG, || {
            world.site(name).path_to("west").is_none()
        });
        let what = format!("{name} drops a revoked member");
        bounded(&what, revoked.elapsed(), Duration::from_secs(2));
        assert!(world.site(name).is_cut_from(world.site("west").pod4()));
    }
    assert!(world.site("west").is_cut_from(world.site("east").pod4()));
    until("west knows", LONG, || {
        world.site("west").broker_state().as_deref() == Some("revoked")
    });
    pings.stop_without_loss();
    // Its certificate opens nothing any more, after a restart neither.
    world.site_mut("west").stop_gateway();
    world.site_mut("west").start_gateway("");
    until("west is told again", LONG, || {
        world.site("west").broker_state().as_deref() == Some("revoked")
    });
    assert!(world.site("east").path_to("west").is_none());
}
