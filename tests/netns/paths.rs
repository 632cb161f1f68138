//! What `status` says about a path, and several gateways of one cluster.

use std::time::Duration;

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::wait::{LONG, until};
use crate::world::World;

/// Drops the transport data, not the handshakes, that come from an address.
fn deafen(space: &Namespace, from: std::net::Ipv4Addr) {
    space.nft(&format!(
        "table inet deaf {{ chain in {{ type filter hook input priority 0; ip saddr {from} udp dport 51820 @th,64,8 4 drop; }}; }}"
    ));
}

#[test]
fn a_path_that_works_one_way_only_is_not_connected() {
    let world = World::fleet(&["east", "west"]);
    let (east, west) = (world.site("east"), world.site("west"));
    deafen(&west.host, east.underlay());
    until("east sees that it is not heard", LONG, || {
        east.path_state("west").as_deref() == Some("one-way")
    });
    until("west hears nothing", LONG, || {
        west.path_state("east").as_deref() == Some("down")
    });
    for site in [east, west] {
        let text = site.subsea("status --wait 1s").fails_with(1);
        let other = if site.name == "east" { "west" } else { "east" };
        assert!(text.contains(other), "{text}");
        let why = site.path_to(other).expect("a path")["why"].clone();
        assert!(
            why.as_str().is_some_and(|w| !w.is_empty()),
            "it does not say why"
        );
    }
    west.host.run("nft delete table inet deaf").ok();
    until("they hear each other", LONG, || {
        east.path_state("west").as_deref() == Some("connected")
            && west.path_state("east").as_deref() == Some("connected")
    });
    east.reaches(west);
}

#[test]
fn a_peer_that_cannot_be_reached_is_down_with_a_reason_and_comes_back() {
    let world = World::fleet(&["east", "west", "north"]);
    let east = world.site("east");
    world.site("west").host.ip("link set u0 down");
    until("west is down", LONG, || {
        east.path_state("west").as_deref() == Some("down")
    });
    let text = east.subsea("status").ok();
    assert!(
        text.contains("down") && text.contains("192.0.2.102"),
        "{text}"
    );
    east.reaches(world.site("north"));
    world.site("west").host.ip("link set u0 up");
    world
        .site("west")
        .host
        .ip("route replace default via 192.0.2.254");
    until("west is back", LONG, || {
        east.path_state("west").as_deref() == Some("connected")
    });
    east.reaches(world.site("west"));
}

#[test]
fn a_long_silence_ends_sessions_and_both_sides_find_each_other_again() {
    // 90 s without an answer, and boringtun gives a session up for good: a driver must begin anew.
    let world = World::fleet(&["east", "west"]);
    let (east, west) = (world.site("east"), world.site("west"));
    west.host.nft("table inet wall { chain in { type filter hook input priority 0; udp dport 51820 drop; }; chain out { type filter hook output priority 0; udp dport 51820 drop; }; }");
    until("west is down", LONG, || {
        east.path_state("west").as_deref() == Some("down")
    });
    std::thread::sleep(Duration::from_secs(100));
    west.host.run("nft delete table inet wall").ok();
    let took = until("they are connected", LONG, || {
        east.path_state("west").as_deref() == Some("connected")
            && west.path_state("east").as_deref() == Some("connected")
    });
    eprintln!("connected {} ms after a silence of 100 s", took.as_millis());
    east.reaches(west);
}

#[test]
fn a_second_gateway_enrols_with_a_gateway_token() {
    let world = World::fleet(&["east", "west"]);
    let second = world.stranger("east-gw2", "192.0.2.150");
    let (token, state) = (world.path("second.yaml"), world.path("state-second"));
    world
        .broker
        .admin(&format!(
            "token create --cluster east --role gateway -o {}",
            token.display()
        ))
        .ok();
    let program = env!("CARGO_BIN_EXE_subsea");
    let flags = format!("--node gw-2 --state-dir {}", state.display());
    second
        .run(&format!("{program} join {} {flags}", token.display()))
        .ok();
    let mut command = second.command(program);
    command.arg("gateway").arg("--state-dir").arg(&state);
    let daemon = Daemon::start(command, &world.path("gateway-second.log"));
    let gateways = |from: &str, of: &str| {
        let status = world.site(from).status()?;
        let members = status["members"].as_array()?.clone();
        let member = members.into_iter().find(|m| m["cluster"] == of)?;
        let states = member["gateways"]
            .as_array()?
            .iter()
            .map(|g| g["state"].clone());
        Some(states.collect::<Vec<_>>())
    };
    until("west is connected with both", LONG, || {
        gateways("west", "east").is_some_and(|s| s.len() == 2 && s.iter().all(|s| s == "connected"))
    });
    world.site("west").subsea("status --wait 30s").ok();
    // Both carry the cluster's blocks.
    let status = world.site("west").status().expect("a status");
    let carrying = status["members"][0]["gateways"]
        .as_array()
        .expect("gateways")
        .iter();
    let both = carrying.filter(|g| g["cidrs"] != serde_json::json!([]) && g["in_use"] == true);
    assert_eq!(both.count(), 2, "{status}");
    assert!(daemon.stop().success());
    until("west sees that one is down", LONG, || {
        gateways("west", "east").is_some_and(|s| s.contains(&"down".into()))
    });
}
