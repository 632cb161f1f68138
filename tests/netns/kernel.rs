//! The kernel under us: somebody deletes, adds and translates.

use std::time::Duration;

use crate::namespace::Namespace;
use crate::traffic::{Capture, Pings, fetch};
use crate::wait::{LONG, bounded, until};
use crate::world::World;

/// A notification comes for all of these: at once is the promise, and 30 s for the rest.
const AT_ONCE: Duration = Duration::from_secs(2);

fn has_route(host: &Namespace, block: &str) -> bool {
    host.ip_json("route show table 583")
        .iter()
        .any(|r| r["dst"] == block && r["dev"] == "subsea0")
}

fn has_backstop(host: &Namespace, block: &str) -> bool {
    let routes = host.ip_json("route show table 583");
    routes
        .iter()
        .any(|r| r["dst"] == block && r["type"] == "unreachable")
}

fn has_rule(host: &Namespace) -> bool {
    host.ip_json("rule show")
        .iter()
        .any(|r| r["priority"] == 583)
}

/// A word of a listing of nftables: sets change between two names with each replacement, and which one does not count.
pub(crate) fn without_turn(word: &str) -> &str {
    word.trim_end_matches("-a").trim_end_matches("-b")
}

/// The table, word by word; none: there is none.
fn table(host: &Namespace) -> Option<Vec<String>> {
    let listed = host.run("nft list table inet subsea");
    let words = listed.stdout.split_whitespace();
    let words = words.map(|word| without_turn(word).to_owned());
    (listed.code == Some(0)).then(|| words.collect())
}

fn whole(host: &Namespace) -> bool {
    let block = "10.12.0.0/16";
    has_route(host, block) && has_backstop(host, block) && has_rule(host) && table(host).is_some()
}

#[test]
fn what_somebody_deletes_comes_back_at_once() {
    let world = World::fleet(&["east", "west"]);
    let east = world.site("east");
    let host = &east.host;
    assert!(whole(host), "{}", host.ip("route show table 583"));
    for damage in [
        "ip rule del pref 583",
        "ip route del 10.12.0.0/16 dev subsea0 table 583",
        "ip route flush table 583",
        "nft flush table inet subsea",
        "nft delete table inet subsea",
        "nft flush ruleset",
        "ip link set subsea0 down",
        "ip address flush dev subsea0",
    ] {
        let before = table(host);
        let addresses = host.ip("-br address show dev subsea0 scope global");
        host.run(damage).ok();
        let took = until(damage, Duration::from_secs(35), || {
            whole(host)
                && table(host) == before
                && host.ip("-br address show dev subsea0 scope global") == addresses
        });
        bounded(&format!("back after `{damage}`"), took, AT_ONCE);
        east.reaches(world.site("west"));
    }
}

#[test]
fn a_deleted_device_lets_nothing_out_in_clear_and_comes_back() {
    let world = World::fleet(&["east", "west"]);
    let east = world.site("east");
    let index = |host: &Namespace| host.ip_json("link show dev subsea0")[0]["ifindex"].clone();
    let first = index(&east.host);
    let capture = Capture::start(&east.host, "u0", world.path("clear.pcap"));
    let mut flood = east.pod.command("ping");
    flood.args([
        "-n",
        "-q",
        "-i",
        "0.002",
        &world.site("west").pod4().to_string(),
    ]);
    let flood = crate::daemon::Daemon::start(flood, &world.path("flood.txt"));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(500));
        east.host.ip("link del subsea0");
        let took = east.pings(world.site("west").pod4(), LONG);
        bounded(
            "the tunnel is back after its device was deleted",
            took,
            Duration::from_secs(5),
        );
    }
    drop(flood);
    let captured = capture.stop();
    assert!(
        !captured.lines("udp port 51820").is_empty(),
        "the capture saw nothing"
    );
    assert_eq!(captured.lines("net 10.0.0.0/8"), Vec::<String>::new());
    assert_ne!(index(&east.host), first);
    east.subsea("status --wait 20s").ok();
    east.reaches(world.site("west"));
}

#[test]
fn without_daemon_and_device_nothing_leaves_in_clear() {
    let mut world = World::fleet(&["east", "west"]);
    world.site_mut("east").kill_gateway();
    let east = world.site("east");
    let capture = Capture::start(&east.host, "u0", world.path("clear.pcap"));
    assert!(east.is_cut_from(world.site("west").pod4()));
    east.host.ip("link del subsea0");
    assert!(has_backstop(&east.host, "10.12.0.0/16"));
    assert!(east.is_cut_from(world.site("west").pod4()));
    let captured = capture.stop();
    assert_eq!(captured.lines("net 10.0.0.0/8"), Vec::<String>::new());
    world.site_mut("east").start_gateway("");
    world.wait_connected();
    world.site("east").reaches(world.site("west"));
}

#[test]
fn a_foreign_route_for_the_same_block_is_outranked_and_untouched() {
    let world = World::fleet(&["east", "west"]);
    let east = world.site("east");
    east.host
        .ip("route add 10.12.0.0/16 via 192.0.2.254 metric 1");
    east.host.ip("route add 10.12.0.0/24 via 192.0.2.254");
    let main = east.host.ip("route show table main");
    east.reaches(world.site("west"));
    // A change of ours makes a pass over the kernel; theirs must be as before.
    east.host.ip("route flush table 583");
    until("ours are back", LONG, || {
        has_route(&east.host, "10.12.0.0/16")
    });
    east.reaches(world.site("west"));
    assert_eq!(east.host.ip("route show table main"), main);
}

#[test]
fn foreign_masquerading_before_and_after_ours_keeps_the_source_address() {
    let mut world = World::new();
    world.broker.start();
    let masquerade = |name: &str, priority: i32| {
        format!(
            "table ip {name} {{ chain post {{ type nat hook postrouting priority {priority}; policy accept; \
             oifname != \"cni0\" counter masquerade; }}; }}"
        )
    };
    world.add("east", crate::site::Family::V4);
    world.site("east").host.nft(&masquerade("before", 100));
    world.join("east").ok();
    world.site_mut("east").start_gateway("");
    world.add("west", crate::site::Family::V4).enrol();
    world.wait_connected();
    let east = world.site("east");
    east.host.nft(&masquerade("after", 95));
    let foreign = |table: &str| {
        let text = east.host.run(&format!("nft -s list table ip {table}")).ok();
        assert!(text.contains("masquerade"), "{text}");
    };
    // `reaches` compares the address that the other pod saw.
    east.reaches(world.site("west"));
    world.site("west").reaches(east);
    foreign("before");
    foreign("after");
    // Towards elsewhere it still translates.
    let stranger = world.stranger("web", "192.0.2.200");
    let web = crate::traffic::HttpServer::start(&stranger, "web");
    let answer = fetch(&east.pod, [192, 0, 2, 200].into(), Duration::from_secs(5));
    assert_eq!(answer.expect("an answer"), "pod of web saw 192.0.2.101\n");
    drop(web);
}

#[test]
fn a_flow_from_before_the_exemption_gets_its_own_address_back() {
    let mut world = World::fleet(&["east", "west"]);
    // While our table is away a foreign one translates, and conntrack remembers.
    world.site_mut("east").stop_gateway();
    let east = world.site("east");
    east.host.run("nft delete table inet subsea").ok();
    east.host.nft(
        "table ip foreign { chain post { type nat hook postrouting priority 100; oifname != \"cni0\" masquerade; }; }",
    );
    let mut flow = east.pod.command("ping");
    flow.args([
        "-n",
        "-q",
        "-i",
        "0.2",
        &world.site("west").pod4().to_string(),
    ]);
    let flow = crate::daemon::Daemon::start(flow, &world.path("flow.txt"));
    std::thread::sleep(Duration::from_secs(1));
    let capture = Capture::start(&world.site("west").host, "cni0", world.path("inner.pcap"));
    world.site_mut("east").start_gateway("");
    world.wait_connected();
    std::thread::sleep(Duration::from_secs(2));
    drop(flow);
    let captured = capture.stop();
    let own = captured.lines("icmp and src 10.11.0.10");
    assert!(!own.is_empty(), "the old flow kept a foreign address");
}

#[test]
fn a_gateway_in_front_of_services_keeps_the_clients_address() {
    let world = World::fleet(&["east", "west"]);
    let west = world.site("west");
    // As kube-proxy does it for a ClusterIP.
    west.host.nft(
        "table ip kube { chain pre { type nat hook prerouting priority -100; ip daddr 10.92.0.80 dnat to 10.12.0.10; }; }",
    );
    let answer = fetch(
        &world.site("east").pod,
        [10, 92, 0, 80].into(),
        Duration::from_secs(5),
    );
    assert_eq!(answer.expect("an answer"), "pod of west saw 10.11.0.10\n");
}

#[test]
fn a_running_flow_survives_passes_over_the_kernel() {
    let world = World::fleet(&["east", "west"]);
    let east = world.site("east");
    let pings = Pings::start(
        &east.pod,
        world.site("west").pod4(),
        Duration::from_millis(10),
        world.path("pings.log"),
    );
    for n in 0..20 {
        // Foreign things come and go, each a notification.
        east.host
            .ip(&format!("route add 10.250.{n}.0/24 via 192.0.2.254"));
        east.host.nft(&format!("table ip foreign{n} {{ }}"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        east.host
            .ip_json("route show table 583")
            .iter()
            .filter(|r| r["protocol"] != "83")
            .count(),
        0
    );
    pings.stop_without_loss();
}
