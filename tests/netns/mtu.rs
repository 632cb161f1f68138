//! Packets that are too big for the way: in the underlay and towards the pods.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use serde_json::Value;

use crate::flows::{Pump, pair, transfer};
use crate::namespace::Namespace;
use crate::site::{Family, Site};
use crate::traffic::Capture;
use crate::wait::{LONG, bounded, until};
use crate::world::World;

/// What a TLS client says first when it offers a post-quantum key.
const FIRST_FLIGHT: usize = 2_000;
const BULK: usize = 5 << 20;

/// Two clusters of both families that have not joined.
fn two() -> World {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::Dual);
    world.add("west", Family::Dual);
    world
}

/// Joins both and starts their gateways, which others find at an address of one family.
fn start(world: &mut World, endpoints: [&str; 2]) {
    for (name, endpoint) in ["east", "west"].into_iter().zip(endpoints) {
        world.join(name).ok();
        let flags = format!("--endpoint {endpoint}");
        world.site_mut(name).start_gateway(&flags);
    }
    world.wait_connected();
}

const V4: [&str; 2] = ["192.0.2.101:51820", "192.0.2.102:51820"];
const V6: [&str; 2] = ["[2001:db8::1:1]:51820", "[2001:db8::2:1]:51820"];

fn pods(site: &Site) -> [IpAddr; 2] {
    [site.pod4(), site.pod6()]
}

/// The MTU of the live route to a block, if it has one of its own.
fn route_mtu(host: &Namespace, block: &str) -> Option<u64> {
    let family = if block.contains(':') { "-6" } else { "-4" };
    let routes = host.ip_json(&format!("{family} route show {block} table 583 metric 100"));
    routes[0]["metrics"][0]["mtu"].as_u64()
}

/// Both sides know that their path takes 1,300 bytes, and their routes say what that leaves.
fn both_know_of_1300(world: &World, mtus: [Option<u64>; 2]) {
    for (site, other, block4, block6) in [
        ("east", "west", "10.12.0.0/16", "fd00:1:2::/48"),
        ("west", "east", "10.11.0.0/16", "fd00:1:1::/48"),
    ] {
        let site = world.site(site);
        until("status has the path MTU", LONG, || {
            site.path_to(other).is_some_and(|p| p["path_mtu"] == 1_300)
        });
        until("the routes have it", LONG, || {
            [block4, block6].map(|b| route_mtu(&site.host, b)) == mtus
        });
        // On a loaded machine a search of its own may lose probes, and say less for a moment.
        until("the operator sees it", LONG, || {
            site.subsea("status").ok().contains(" 1300 ")
        });
    }
}

/// The MSS options of the packets in a capture, by their flags.
fn mss(lines: &[String], flags: &str) -> Vec<u32> {
    let with_flags = lines
        .iter()
        .filter(|l| l.contains(&format!("Flags [{flags}]")));
    with_flags
        .map(|l| {
            let option = l.split("mss ").nth(1).expect("an MSS option");
            let digits = option.split([',', ']']).next().expect("a number");
            digits.parse().expect("a number")
        })
        .collect()
}

#[test]
fn the_mss_of_syn_and_syn_ack_is_that_of_the_tunnel() {
    let mut world = two();
    start(&mut world, V4);
    let (east, west) = (world.site("east"), world.site("west"));
    let captures = [east, west].map(|site| {
        let file = world.path(&format!("mss-{}.pcap", site.name));
        Capture::start(&site.pod, "eth0", file)
    });
    for address in pods(west) {
        transfer(&east.pod, (&west.pod, address), 1, LONG);
    }
    for address in pods(east) {
        transfer(&west.pod, (&east.pod, address), 1, LONG);
    }
    // What a pod sends has its own MSS, what it gets that of the tunnel.
    for (site, captured) in [east, west].into_iter().zip(captures.map(Capture::stop)) {
        for (address, own, clamped) in [(site.pod4(), 1_460, 1_380), (site.pod6(), 1_440, 1_360)] {
            for (direction, want) in [("src", own), ("dst", clamped)] {
                let lines = captured.lines(&format!("tcp and {direction} host {address}"));
                for flags in ["S", "S."] {
                    assert_eq!(mss(&lines, flags), [want], "{flags} {direction} {address}");
                }
            }
        }
    }
}

fn first_flights(world: &World, what: &str) {
    let (east, west) = (world.site("east"), world.site("west"));
    for (from, to) in [(east, west), (west, east)] {
        for address in pods(to) {
            let took = transfer(&from.pod, (&to.pod, address), FIRST_FLIGHT, LONG);
            bounded(
                &format!("a first flight of 2,000 bytes to {address} over {what}"),
                took,
                Duration::from_secs(1),
            );
        }
    }
}

fn bulk(world: &World) {
    let (east, west) = (world.site("east"), world.site("west"));
    for (from, to) in [(east, west), (west, east)] {
        for address in pods(to) {
            transfer(&from.pod, (&to.pod, address), BULK, LONG);
        }
    }
}

fn an_underlay_of_1300(endpoints: [&str; 2], mtu: u64, what: &str) {
    let mut world = two();
    for name in ["east", "west"] {
        world.site(name).host.ip("link set u0 mtu 1300");
    }
    start(&mut world, endpoints);
    first_flights(&world, what);
    bulk(&world);
    // The device has the 1,280 that IPv6 needs.
    both_know_of_1300(&world, [Some(mtu), None]);
    // Somebody's own idea of it goes.
    let (east, west) = (world.site("east"), world.site("west"));
    east.host.ip(
        "route change 10.12.0.0/16 dev subsea0 table 583 proto 83 scope link src 10.11.0.1 metric 100 mtu 1270",
    );
    both_know_of_1300(&world, [Some(mtu), None]);
    // A connection that begins now never has anything too big.
    let capture = Capture::start(&west.pod, "eth0", world.path("narrow.pcap"));
    transfer(&east.pod, (&west.pod, west.pod4()), 1, LONG);
    let syn = mss(&capture.stop().lines("tcp"), "S");
    assert_eq!(u64::from(syn[0]), mtu - 40);
}

#[test]
fn an_ipv4_underlay_of_1300_from_the_start() {
    an_underlay_of_1300(V4, 1_240, "an IPv4 underlay of 1,300");
}

#[test]
fn an_ipv6_underlay_of_1300_from_the_start() {
    an_underlay_of_1300(V6, 1_220, "an IPv6 underlay of 1,300");
}

/// A router between the internet and a cluster; both ends of its link to the internet.
struct Router {
    space: Namespace,
    port: String,
}

/// The other end of a device of `space` on the internet.
fn port_of(world: &World, space: &Namespace, device: &str) -> String {
    let index = space.ip_json(&format!("link show {device}"))[0]["link_index"].clone();
    let links = world.internet.ip_json("link show");
    let port = links.iter().find(|l| l["ifindex"] == index);
    port.expect("the other end")["ifname"]
        .as_str()
        .expect("a name")
        .to_owned()
}

impl Router {
    /// Puts a cluster that has not joined behind a router.
    fn before(world: &World, site: &Site) -> Self {
        let space = world.stranger("router", "192.0.2.60");
        let internet = &world.internet;
        let port = port_of(world, &space, "u0");
        for line in [
            format!("link set {port} nomaster"),
            format!("address add 203.0.113.1/30 dev {port}"),
            format!("address add 2001:db8:f::1/64 dev {port} nodad"),
        ] {
            internet.ip(&line);
        }
        for line in [
            "address flush dev u0 scope global",
            "address add 203.0.113.2/30 dev u0",
            "address add 2001:db8:f::2/64 dev u0 nodad",
            "route add default via 203.0.113.1",
            "-6 route add default via 2001:db8:f::1",
        ] {
            space.ip(line);
        }
        let inward = port_of(world, &site.host, "u0");
        internet.ip(&format!(
            "link set {inward} nomaster netns {}",
            space.name()
        ));
        for line in [
            format!("address add 198.51.100.254/24 dev {inward}"),
            format!("address add 2001:db8:2::fe/64 dev {inward} nodad"),
            format!("link set {inward} up"),
        ] {
            space.ip(&line);
        }
        for line in [
            "address flush dev u0 scope global",
            "address add 198.51.100.102/24 dev u0",
            "address add 2001:db8:2::102/64 dev u0 nodad",
            "route add default via 198.51.100.254",
            "-6 route replace default via 2001:db8:2::fe",
        ] {
            site.host.ip(line);
        }
        internet.ip("route add 198.51.100.0/24 via 203.0.113.2");
        internet.ip("-6 route add 2001:db8:2::/64 via 2001:db8:f::2");
        for router in [internet, &space] {
            router.sysctl("net.ipv4.ip_forward=1");
            router.sysctl("net.ipv6.conf.all.forwarding=1");
        }
        Self { space, port }
    }

    /// Sets the MTU of its link to the internet.
    fn narrow(&self, world: &World, mtu: u32) {
        self.space.ip(&format!("link set u0 mtu {mtu}"));
        world
            .internet
            .ip(&format!("link set {} mtu {mtu}", self.port));
    }
}

fn a_router_that_says_too_big(endpoints: [&str; 2], mtus: [u64; 2], what: &str) {
    let mut world = two();
    let router = Router::before(&world, world.site("west"));
    start(&mut world, endpoints);
    let (east, west) = (world.site("east"), world.site("west"));
    let pumps = [
        Pump::start(&east.pod, (&west.pod, west.pod4())),
        Pump::start(&west.pod, (&east.pod, east.pod6())),
    ];
    let path = east.path_to("west").expect("a path");
    // Padded echo has found that all of the tunnel's packets pass, or is about to.
    let whole = path["path_mtu"].as_u64().is_none_or(|mtu| mtu >= 1_480);
    assert!(whole, "nothing was too big: {path}");
    assert_eq!(route_mtu(&east.host, "10.12.0.0/16"), None);
    router.narrow(&world, 1_300);
    let before = pumps.each_ref().map(Pump::received);
    until("both flows go on", LONG, || {
        let now = pumps.each_ref().map(Pump::received);
        before.iter().zip(now).all(|(b, now)| now > b + (2 << 20))
    });
    both_know_of_1300(&world, mtus.map(Some));
    for pump in pumps {
        let (_, stall) = pump.stop();
        bounded(
            &format!("a TCP flow stalls when a router of {what} narrows to 1,300"),
            stall,
            Duration::from_secs(5),
        );
    }
    first_flights(&world, what);
    bulk(&world);
    for site in [east, west] {
        assert_eq!(site.drops(None, "kernel"), 0);
    }
}

#[test]
fn too_big_from_a_router_of_the_ipv4_underlay_is_honoured() {
    let endpoints = ["192.0.2.101:51820", "198.51.100.102:51820"];
    a_router_that_says_too_big(endpoints, [1_240, 1_280], "the IPv4 underlay");
}

#[test]
fn too_big_from_a_router_of_the_ipv6_underlay_is_honoured() {
    let endpoints = ["[2001:db8::1:1]:51820", "[2001:db8:2::102]:51820"];
    a_router_that_says_too_big(endpoints, [1_220, 1_280], "the IPv6 underlay");
}

impl Router {
    /// Has nobody tell what is too big.
    fn mute(&self, world: &World) {
        for space in [&self.space, &world.internet] {
            space.nft(
                "table inet mute { chain out { type filter hook output priority 0; \
                 icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }",
            );
        }
    }
}

/// A link narrows and nobody says so: padded echo finds it, and flows go on.
fn a_black_hole(endpoints: [&str; 2], mtu: u64, what: &str) {
    let mut world = two();
    let router = Router::before(&world, world.site("west"));
    router.mute(&world);
    start(&mut world, endpoints);
    let (east, west) = (world.site("east"), world.site("west"));
    let pump = Pump::start(&east.pod, (&west.pod, west.pod4()));
    let before = pump.received();
    until("the flow goes", LONG, || {
        pump.received() > before + (2 << 20)
    });
    assert_eq!(route_mtu(&east.host, "10.12.0.0/16"), None);
    router.narrow(&world, 1_300);
    let found = until("the routes have the new path MTU", LONG, || {
        route_mtu(&east.host, "10.12.0.0/16") == Some(mtu)
            && route_mtu(&west.host, "10.11.0.0/16") == Some(mtu)
    });
    bounded(
        &format!("both ends of a black hole of {what} know the path MTU"),
        found,
        Duration::from_secs(2),
    );
    let before = pump.received();
    until("the flow goes on", LONG, || {
        pump.received() > before + (2 << 20)
    });
    both_know_of_1300(&world, [Some(mtu), Some(1_280)]);
    let (_, stall) = pump.stop();
    bounded(
        &format!("a TCP flow stalls in a black hole of {what}"),
        stall,
        Duration::from_secs(3),
    );
}

#[test]
fn a_black_hole_in_the_ipv4_underlay_is_found() {
    let endpoints = ["192.0.2.101:51820", "198.51.100.102:51820"];
    a_black_hole(endpoints, 1_240, "the IPv4 underlay");
}

#[test]
fn a_black_hole_in_the_ipv6_underlay_is_found() {
    let endpoints = ["[2001:db8::1:1]:51820", "[2001:db8:2::102]:51820"];
    a_black_hole(endpoints, 1_220, "the IPv6 underlay");
}

fn never_fragment(socket: &UdpSocket, address: IpAddr) {
    match address {
        IpAddr::V4(_) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO),
        IpAddr::V6(_) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO),
    }
    .expect("path MTU discovery");
}

/// What the pod's kernel believes of the path to an address.
fn believed_mtu(pod: &Namespace, to: IpAddr) -> Value {
    pod.ip_json(&format!("route get {to}"))[0]["metrics"][0]["mtu"].clone()
}

#[test]
fn too_big_towards_the_pods_comes_from_an_address_that_the_peer_lets_in() {
    let mut world = two();
    start(&mut world, V4);
    let (east, west) = (world.site("east"), world.site("west"));
    let drops = || {
        [(east, "west"), (west, "east")].map(|(site, other)| {
            let of_path = ["foreign-source", "foreign-destination", "malformed"];
            let of_path = of_path.map(|reason| site.drops(Some(other), reason));
            (of_path, site.drops(None, "outbound-source"))
        })
    };
    // An echo can come before its destination knows its own inner address.
    let before = drops();
    let capture = Capture::start(&east.pod, "eth0", world.path("too-big.pcap"));
    // Below 1,280 there is no IPv6.
    for (mtu, addresses) in [
        (1_280, vec![west.pod4(), west.pod6()]),
        (1_200, vec![west.pod4()]),
    ] {
        // TCP that began while the way was wide: the handshake says nothing of what comes.
        let pumps: Vec<Pump> = addresses
            .iter()
            .map(|address| Pump::start(&east.pod, (&west.pod, *address)))
            .collect();
        west.host.ip(&format!("link set cni0 mtu {mtu}"));
        let before: Vec<u64> = pumps.iter().map(Pump::received).collect();
        until("the flows go on", LONG, || {
            let now = pumps.iter().map(Pump::received);
            before.iter().zip(now).all(|(b, now)| now > b + (2 << 20))
        });
        for (pump, address) in pumps.into_iter().zip(&addresses) {
            let (_, stall) = pump.stop();
            bounded(
                &format!("a TCP flow to {address} stalls when the pod's link narrows to {mtu}"),
                stall,
                Duration::from_secs(5),
            );
            assert_eq!(believed_mtu(&east.pod, *address), mtu, "{address}");
        }
        east.pod.ip("route flush cache");
        east.pod.ip("-6 route flush cache");
        for address in addresses {
            let header = if address.is_ipv4() { 28 } else { 48 };
            let (sender, receiver) = pair(&east.pod, (&west.pod, address));
            never_fragment(&sender, address);
            receiver.set_read_timeout(Some(LONG)).expect("a timeout");
            let big = vec![1; 1_300];
            let took = until("EMSGSIZE", LONG, || match sender.send(&big) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => true,
                Err(error) => panic!("{address}: {error}"),
            });
            bounded(
                &format!("EMSGSIZE for UDP with DF to {address}"),
                took,
                Duration::from_secs(2),
            );
            assert_eq!(believed_mtu(&east.pod, address), mtu, "{address}");
            // The ICMP message is an error of its own on the socket, beside that of the call.
            drop(sender.take_error());
            let fits = vec![2; mtu - header];
            sender.send(&fits).expect("it fits");
            let mut room = [0; 2_000];
            let got: io::Result<usize> = receiver.recv(&mut room);
            assert_eq!(got.expect("it arrives"), fits.len(), "{address}");
        }
    }
    let captured = capture.stop();
    for (what, from) in [
        ("icmp[0] == 3 and icmp[1] == 4", "10.12.0.1"),
        ("icmp6 and ip6[40] == 2", "fd00:1:2::1"),
    ] {
        let all = captured.lines(what);
        let ours = captured.lines(&format!("{what} and src host {from}"));
        assert!(!all.is_empty(), "no too-big: {what}");
        assert_eq!(all.len(), ours.len(), "{all:?}");
    }
    assert_eq!(drops(), before, "{:?}", [east.status(), west.status()]);
}
