//! Several sessions with one gateway.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::Value;

use crate::interop::StockPeer;
use crate::numbered::Flows;
use crate::site::{Family, Site};
use crate::traffic::fetch;
use crate::wait::{LONG, bounded, until};
use crate::world::World;

const FLOWS: usize = 32;
/// How soon flows leave a stripe that goes silent.
const LEFT: Duration = Duration::from_secs(5);

/// The kernel's WireGuard has no stripes: where the host has it, it would be taken.
fn flags(stripes: u16) -> String {
    format!("--driver userspace --stripes {stripes}")
}

/// Clusters whose gateways have the given stripes; none is waited for.
fn world(stripes: &[(&str, u16)]) -> World {
    let mut world = World::new();
    world.broker.start();
    for (name, count) in stripes {
        world.add(name, Family::V4).join();
        let flags = flags(*count);
        world.site_mut(name).start_gateway(&flags);
    }
    world
}

fn stripes(site: &Site, to: &str) -> Vec<Value> {
    let path = site.path_to(to).unwrap_or_default();
    path["stripe_stats"].as_array().cloned().unwrap_or_default()
}

/// The numbers of the further stripes that are alive.
fn alive(site: &Site, to: &str) -> Vec<u64> {
    let stripes = stripes(site, to);
    let alive = stripes.iter().filter(|stripe| stripe["alive"] == true);
    alive
        .filter_map(|stripe| stripe["stripe"].as_u64())
        .collect()
}

/// Waits until these are alive at both ends; says how long that took.
fn until_alive(world: &World, wanted: &[u64]) -> Duration {
    let (east, west) = (world.site("east"), world.site("west"));
    until(&format!("stripes {wanted:?} are alive"), LONG, || {
        alive(east, "west") == wanted && alive(west, "east") == wanted
    })
}

/// What the broker knows of the listeners of a cluster's one gateway: stripe and port.
fn announced(world: &World, cluster: &str) -> Vec<(u64, u64)> {
    let shown = world.broker.admin_json(&format!("cluster show {cluster}"));
    let gateways = shown["gateways"].as_object().cloned().unwrap_or_default();
    let listeners = gateways.values().next();
    let listeners = listeners.and_then(|gateway| gateway["listeners"].as_array());
    let listeners = listeners.into_iter().flatten();
    listeners
        .filter_map(|listener| Some((listener["stripe"].as_u64()?, listener["port"].as_u64()?)))
        .collect()
}

#[test]
fn flows_spread_over_stripes_in_order_and_leave_one_that_is_blocked() {
    let world = world(&[("east", 3), ("west", 3)]);
    world.wait_connected();
    let (east, west) = (world.site("east"), world.site("west"));
    until_alive(&world, &[1, 2]);
    for site in [east, west] {
        assert_eq!(
            announced(&world, &site.name),
            [(0, 51820), (1, 51821), (2, 51822)]
        );
    }
    let flows = Flows::start(&east.pod, &west.pod, west.pod4(), FLOWS);
    until("all flows flow", LONG, || {
        let (there, back) = flows.seen();
        there.iter().chain(&back).all(|flow| flow.arrived >= 200)
    });
    // 32 flows and three stripes: that one of them gets none is a matter of one to 400,000.
    for (site, to) in [(east, "west"), (west, "east")] {
        let path = site.path_to(to).expect("a path");
        let further = stripes(site, to);
        let sent: Vec<u64> = further
            .iter()
            .filter_map(|stripe| stripe["tx_bytes"].as_u64())
            .collect();
        let first = path["tx_bytes"].as_u64().expect("bytes") - sent.iter().sum::<u64>();
        eprintln!("{} sent by stripe: {first} {sent:?}", site.name);
        assert!(sent.iter().all(|bytes| *bytes > 4_000), "{further:?}");
    }
    let in_order = |when: &str| {
        let (there, back) = flows.seen();
        let disordered: u64 = there.iter().chain(&back).map(|flow| flow.disordered).sum();
        assert_eq!(disordered, 0, "{when}: {there:?} {back:?}");
    };
    in_order("undisturbed");
    let (there, _) = flows.seen();
    for flow in &there {
        assert_eq!(flow.arrived, flow.last, "nothing is lost");
    }

    // Between the two, in the middle of the underlay.
    flows.forget_gaps();
    world.internet.nft(
        "table bridge middle { chain pass { type filter hook forward priority 0; udp dport 51821 drop; }; }",
    );
    until("both see that it is dead", LONG, || {
        for (site, to) in [(east, "west"), (west, "east")] {
            assert_eq!(site.path_state(to).as_deref(), Some("connected"));
        }
        alive(east, "west") == [2] && alive(west, "east") == [2]
    });
    // All flows go again, and the path was connected all the while.
    until("all flows go on", LONG, || {
        let (there, back) = flows.seen();
        std::thread::sleep(Duration::from_millis(300));
        let (there_now, back_now) = flows.seen();
        let before = there.iter().chain(&back);
        let now = there_now.iter().chain(&back_now);
        before
            .zip(now)
            .all(|(before, now)| now.arrived > before.arrived)
    });
    bounded("flows leave a blocked stripe", flows.longest_gap(), LEFT);
    let shown = east.subsea("status").ok();
    assert!(shown.contains("(2 of 3 stripes)"), "{shown}");
    east.subsea("status --wait 1s").ok();
    in_order("blocked");

    flows.forget_gaps();
    world.internet.run("nft delete table bridge middle").ok();
    let took = until_alive(&world, &[1, 2]);
    eprintln!(
        "measured: a stripe is back {} ms after its port is open again",
        took.as_millis()
    );
    std::thread::sleep(Duration::from_secs(1));
    flows.go_on();
    let gap = flows.longest_gap();
    bounded("a stripe is back: flows", gap, Duration::from_secs(1));
    in_order("back");
    assert_eq!(east.path_state("west").as_deref(), Some("connected"));
}

#[test]
fn a_peer_with_one_stripe_and_a_stock_peer_use_the_first_alone() {
    let mut world = world(&[("east", 3), ("west", 1)]);
    let stock = StockPeer::start(&world, "stock", 1);
    until("east has a status", LONG, || {
        world.site("east").status().is_some()
    });
    stock.peer_with(&world, "east", "10.11.0.0/16");
    stock.register(&world, "");
    // The stock peer knows of east alone.
    let connected = |world: &World| {
        world.site("east").subsea("status --wait 30s").ok();
    };
    connected(&world);
    let east = world.site("east");
    until("three are announced", LONG, || {
        announced(&world, "east").len() == 3
    });
    assert_eq!(announced(&world, "west"), [(0, 51820)]);
    east.reaches(world.site("west"));
    world.site("west").reaches(east);
    let address = stock.address().parse().expect("an address");
    east.pings(address, LONG);
    let answer = fetch(&east.pod, address, Duration::from_secs(5)).expect("an answer");
    assert_eq!(answer, format!("pod of stock saw {}\n", east.pod4()));
    for to in ["west", "stock"] {
        let path = east.path_to(to).expect("a path");
        assert_eq!(path["stripes"], 1, "{path}");
        assert!(path["stripe_stats"].is_null(), "{path}");
    }
    // Its device was made for one lane. Started for three, it has them all, and traffic goes on.
    world.site_mut("west").stop_gateway();
    world.site_mut("west").start_gateway(&flags(3));
    connected(&world);
    until_alive(&world, &[1, 2]);
    world.site("west").reaches(world.site("east"));
    world.site("east").reaches(world.site("west"));
    // A device that somebody deletes comes back with a queue for each lane.
    let (east, west) = (world.site("east"), world.site("west"));
    let sent = || -> Vec<u64> {
        let further = stripes(west, "east");
        let sent = further.iter().map(|stripe| stripe["tx_bytes"].as_u64());
        sent.flatten().collect()
    };
    let before = sent();
    west.host.ip("link delete subsea0");
    let flows = Flows::start(&west.pod, &east.pod, east.pod4(), FLOWS);
    until("flows by every stripe", LONG, || {
        let now = sent();
        now.len() == 2
            && before
                .iter()
                .zip(&now)
                .all(|(before, now)| *now > before + 4_000)
    });
    let (there, back) = flows.seen();
    assert!(there.iter().chain(&back).all(|flow| flow.disordered == 0));
}

#[test]
fn a_busy_port_of_a_further_stripe_costs_that_stripe_alone() {
    let mut world = World::new();
    world.broker.start();
    for name in ["east", "west"] {
        world.add(name, Family::V4).join();
    }
    let busy = world
        .site("east")
        .host
        .inside(|| UdpSocket::bind("0.0.0.0:51822"))
        .expect("the port is free");
    for name in ["east", "west"] {
        world.site_mut(name).start_gateway(&flags(3));
    }
    world.wait_connected();
    until_alive(&world, &[1]);
    let problem = |world: &World| {
        let status = world.site("east").status().expect("a status");
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems
            .iter()
            .filter_map(Value::as_str)
            .find(|problem| problem.contains("stripes"))
            .map(str::to_owned)
    };
    let told = problem(&world).expect("a problem");
    assert!(
        told.starts_with("2 of 3 stripes: UDP port 51822 is in use by"),
        "{told}"
    );
    assert_eq!(announced(&world, "east"), [(0, 51820), (1, 51821)]);
    world.site("east").reaches(world.site("west"));
    drop(busy);
    let took = until_alive(&world, &[1, 2]);
    eprintln!(
        "measured: a stripe is there {} ms after its port is free",
        took.as_millis()
    );
    assert_eq!(announced(&world, "east").len(), 3);
    assert_eq!(problem(&world), None);
}
