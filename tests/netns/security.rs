//! Attackers on the underlay and inside the tunnel.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::interop::StockPeer;
use crate::site::Family;
use crate::traffic::{Capture, Pings};
use crate::wait::{LONG, until};
use crate::world::World;

#[test]
fn random_bytes_and_replays_on_the_wireguard_port_change_nothing() {
    let world = World::fleet(&["east", "west"]);
    let (east, west) = (world.site("east"), world.site("west"));
    let target = SocketAddr::from((east.underlay(), 51820));
    let attacker = world.stranger("attacker", "192.0.2.66");
    let capture = Capture::start(&east.host, "u0", world.path("record.pcap"));
    let pings = Pings::start(
        &east.pod,
        west.pod4(),
        Duration::from_millis(10),
        world.path("pings.log"),
    );
    std::thread::sleep(Duration::from_secs(2));
    let captured = capture.stop();
    let from_west = SocketAddr::from((west.underlay(), 51820));
    let recorded: Vec<_> = captured
        .datagrams()
        .into_iter()
        .filter(|(from, _)| *from == from_west)
        .collect();
    assert!(recorded.len() > 50, "only {} recorded", recorded.len());

    let socket = attacker
        .inside(|| UdpSocket::bind("0.0.0.0:0"))
        .expect("a socket");
    let before = east.drops(None, "replay") + east.drops(Some("west"), "replay");
    for (n, (_, datagram)) in recorded.iter().enumerate() {
        socket.send_to(datagram, target).expect("sent");
        if n % 20 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    until("the replays are counted", LONG, || {
        east.drops(None, "replay") + east.drops(Some("west"), "replay") >= before + 40
    });

    // Every length, and every message type among them, from a small generator with a fixed seed.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..6_000_usize {
        let mut datagram = vec![0; n % 1500];
        for byte in &mut datagram {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *byte = seed.to_le_bytes()[3];
        }
        if n % 2 == 0 {
            for (byte, value) in
                datagram
                    .iter_mut()
                    .zip([(1 + n / 2 % 4).to_le_bytes()[0], 0, 0, 0])
            {
                *byte = value;
            }
        }
        if n % 3 == 0 {
            // The right length for its type.
            datagram.resize([148, 92, 64, 32][n / 2 % 4], 7);
        }
        socket.send_to(&datagram, target).expect("sent");
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    until("the noise is counted", LONG, || {
        let of = |reason| east.drops(None, reason) + east.drops(Some("west"), reason);
        of("unknown")
            + of("unauthentic")
            + of("malformed")
            + of("rate-limited")
            + of("unknown-peer")
            > 1_000
    });
    let path = east.path_to("west").expect("a path");
    assert_eq!(
        path["endpoint"],
        from_west.to_string(),
        "a replay moved the endpoint"
    );
    assert_eq!(path["state"], "connected");
    pings.stop_without_loss();
    west.reaches(east);
}

#[test]
fn inner_packets_of_foreign_source_or_destination_are_dropped_and_counted() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    // A member whose WireGuard does not check what it sends.
    let rogue = StockPeer::start(&world, "rogue", 1);
    rogue.register(&world, "");
    rogue.peer_with(&world, "east", "0.0.0.0/0");
    for address in ["10.12.0.66/32", "8.8.8.8/32"] {
        rogue
            .space
            .ip(&format!("address add {address} dev {}", rogue.device));
    }
    for block in [
        "10.11.0.0/16",
        "10.12.0.0/16",
        "10.99.0.0/16",
        "192.0.2.77/32",
    ] {
        rogue
            .space
            .ip(&format!("route replace {block} dev {}", rogue.device));
    }
    let east = world.site("east");
    let own = rogue.address();
    until("the rogue's own traffic passes", LONG, || {
        rogue
            .space
            .run(&format!("ping -n -q -c 1 -W 1 -I {own} {}", east.pod4()))
            .code
            == Some(0)
    });
    let inside = Capture::start(&east.host, "cni0", world.path("inside.pcap"));
    let outside = Capture::start(&east.host, "u0", world.path("outside.pcap"));
    let at_west = Capture::start(&world.site("west").host, "cni0", world.path("west.pcap"));
    let attack = |source: &str, target: &str, reason: &str| {
        let before = east.drops(Some("rogue"), reason);
        let line = format!("ping -n -q -c 5 -i 0.05 -W 0.2 -I {source} {target}");
        assert_eq!(
            rogue.space.run(&line).code,
            Some(1),
            "{source} to {target} was answered"
        );
        until(
            &format!("{reason} is counted for {source} to {target}"),
            LONG,
            || east.drops(Some("rogue"), reason) >= before + 5,
        );
    };
    attack("10.12.0.66", "10.11.0.10", "foreign-source");
    attack("8.8.8.8", "10.11.0.10", "foreign-source");
    // Through us into a third cluster, to nobody, and out to the internet.
    attack(&own, "10.12.0.10", "foreign-destination");
    attack(&own, "10.99.0.1", "foreign-destination");
    attack(&own, "192.0.2.77", "foreign-destination");
    assert_eq!(
        inside
            .stop()
            .lines("icmp and (src 10.12.0.66 or src 8.8.8.8)"),
        Vec::<String>::new()
    );
    assert_eq!(
        outside.stop().lines("icmp or host 192.0.2.77"),
        Vec::<String>::new()
    );
    assert_eq!(
        at_west.stop().lines(&format!("icmp and src {own}")),
        Vec::<String>::new()
    );
    east.reaches(world.site("west"));
}

#[test]
fn a_pod_cannot_send_with_a_foreign_source() {
    let world = World::fleet(&["east", "west"]);
    let (east, west) = (world.site("east"), world.site("west"));
    // The pod takes an address outside its cluster, and the host lets it.
    east.pod.ip("address add 10.50.0.1/32 dev lo");
    for setting in [
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.cni0.rp_filter=0",
    ] {
        east.host.sysctl(setting);
    }
    let capture = Capture::start(&west.host, "cni0", world.path("inner.pcap"));
    let before = east.drops(None, "outbound-source") + east.drops(Some("west"), "outbound-source");
    let line = format!(
        "ping -n -q -c 5 -i 0.05 -W 0.2 -I 10.50.0.1 {}",
        west.pod4()
    );
    east.pod.run(&line).fails_with(1);
    until("it is counted", LONG, || {
        east.drops(None, "outbound-source") + east.drops(Some("west"), "outbound-source")
            >= before + 5
    });
    assert_eq!(capture.stop().lines("src 10.50.0.1"), Vec::<String>::new());
}

#[test]
fn only_wireguard_and_the_brokers_tls_are_on_the_underlay() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::Dual);
    let capture = Capture::start(&world.site("east").host, "u0", world.path("all.pcap"));
    world.join("east").ok();
    world.site_mut("east").start_gateway("");
    world.add("west", Family::Dual).enrol();
    world.wait_connected();
    world.site("east").reaches(world.site("west"));
    world.site("west").reaches(world.site("east"));
    let captured = capture.stop();
    let known = "arp or icmp6 or ip6 dst net ff02::/16 or igmp or udp port 51820 or (tcp port 7443 and host 192.0.2.10)";
    assert!(captured.lines("udp port 51820").len() > 20);
    assert_eq!(
        captured.lines(&format!("not ({known})")),
        Vec::<String>::new()
    );
}

#[test]
fn secrets_are_in_files_of_mode_0600_and_nowhere_else() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4);
    let token = world.broker.token("east");
    let east = world.site("east");
    let said = east.subsea(&format!("join {} {}", token.display(), east.join_flags()));
    let said = format!("{} {}", said.stdout, said.stderr);
    world.site_mut("east").start_gateway("");
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    let east = world.site("east");
    let mode = |path: &std::path::Path| {
        std::fs::symlink_metadata(path)
            .expect("it exists")
            .permissions()
            .mode()
            & 0o777
    };
    for dir in [&east.state, &world.broker.dir] {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
        for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
            assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
        }
    }
    assert_eq!(mode(&token), 0o600);
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("readable");
    let key = read(east.state.join("wireguard.key")).trim().to_owned();
    let join_file = read(token);
    let secret = join_file
        .lines()
        .find_map(|l| l.strip_prefix("token:"))
        .expect("a token");
    let secret = secret.trim().trim_matches(['"', '\'']).to_owned();
    let places = [
        ("what join said", said),
        ("the log of the gateway", east.gateway_output()),
        ("the log of the broker", world.broker.output()),
        ("status", east.subsea("status -o json").ok()),
        (
            "the audit log",
            world.broker.admin("audit list -o json").ok(),
        ),
        (
            "the token list",
            world.broker.admin("token list -o json").ok(),
        ),
    ];
    for (place, text) in places {
        assert!(!text.is_empty(), "{place} is empty");
        assert!(!text.contains(&key), "{place} has the WireGuard key");
        assert!(!text.contains(&secret), "{place} has the token");
        assert!(!text.contains("PRIVATE KEY"), "{place} has a TLS key");
    }
}
