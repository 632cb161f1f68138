//! Debian's wireguard-go, set up with `wg`, as the peer of our gateway.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::namespace::{Namespace, run};
use crate::site::Family;
use crate::traffic::{Capture, Captured, HttpServer, Pings, fetch};
use crate::wait::{LONG, until};
use crate::world::World;

static DEVICES: AtomicU32 = AtomicU32::new(0);

/// A host on the internet with wireguard-go ; the "pods" behind it are addresses of its own.
pub(crate) struct StockPeer {
    name: String,
    index: u8,
    pub(crate) device: String,
    public_key: String,
    _http: HttpServer,
    _daemon: Daemon,
    pub(crate) space: Namespace,
}

impl StockPeer {
    /// Starts it; `index` chooses its addresses.
    pub(crate) fn start(world: &World, name: &str, index: u8) -> Self {
        let space = world.stranger(name, &format!("192.0.2.{}", 30 + index));
        // Its control socket is named after the device, in a place that all namespaces share.
        let number = DEVICES.fetch_add(1, Ordering::Relaxed);
        let device = format!("wg{}n{number}", std::process::id());
        let mut command = space.command("wireguard-go");
        command.args(["--foreground", &device]);
        command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        let daemon = Daemon::start(command, &world.path(&format!("wireguard-go-{name}.log")));
        until("wireguard-go is up", LONG, || {
            space.run(&format!("wg show {device}")).code == Some(0)
        });
        let key = run(Command::new("wg").arg("genkey")).ok();
        let file = world.path(&format!("{name}.key"));
        std::fs::write(&file, &key).expect("a key file");
        space
            .run(&format!(
                "wg set {device} private-key {} listen-port 51820",
                file.display()
            ))
            .ok();
        let public_key = space
            .run(&format!("wg show {device} public-key"))
            .ok()
            .trim()
            .to_owned();
        space.ip(&format!(
            "address add 10.{}.0.10/32 dev {device}",
            60 + index
        ));
        space.ip(&format!("link set {device} mtu 1420 up"));
        let http = HttpServer::start(&space, name);
        Self {
            name: name.to_owned(),
            index,
            device,
            public_key,
            _http: http,
            _daemon: daemon,
            space,
        }
    }

    /// An address inside its block.
    pub(crate) fn address(&self) -> String {
        format!("10.{}.0.10", 60 + self.index)
    }

    fn endpoint(&self) -> String {
        format!("192.0.2.{}:51820", 30 + self.index)
    }

    /// Registers it as the only gateway of a cluster of its name.
    pub(crate) fn register(&self, world: &World, flags: &str) {
        let Self {
            name, public_key, ..
        } = self;
        let endpoint = self.endpoint();
        let block = format!("10.{}.0.0/16", 60 + self.index);
        let line = format!(
            "gateway add --cluster {name} --public-key {public_key} --endpoint {endpoint} --pod-cidr {block} {flags}"
        );
        world.broker.admin(&line).ok();
    }

    /// Tells `wg` about a gateway of ours.
    pub(crate) fn peer_with(&self, world: &World, site: &str, allowed: &str) {
        let site = world.site(site);
        let status = site.status().expect("a status");
        let key = status["public_key"].as_str().expect("a key");
        let endpoint = SocketAddr::from((site.underlay(), 51820));
        self.space
            .run(&format!(
                "wg set {} peer {key} endpoint {endpoint} allowed-ips {allowed}",
                self.device
            ))
            .ok();
        self.space.ip(&format!(
            "route replace {} dev {}",
            site.pod_cidr(),
            self.device
        ));
    }

    /// From now on its own handshake initiations get lost: it can only answer.
    fn only_answers(&self) {
        self.space.nft(
            "table inet mute { chain out { type filter hook output priority 0; udp dport 51820 @th,64,8 1 drop; }; }",
        );
    }

    /// From now on handshake initiations do not reach it: it can only initiate.
    fn only_initiates(&self) {
        self.space.nft(
            "table inet deaf { chain in { type filter hook input priority 0; udp dport 51820 @th,64,8 1 drop; }; }",
        );
    }
}

/// How many handshake initiations one host sent to another that were answered.
fn handshakes(captured: &Captured, from: &str, to: &str) -> usize {
    let responses = format!("udp port 51820 and src {to} and dst {from} and udp[8] = 2");
    captured.lines(&responses).len()
}

/// Both roles at once, with one gateway of ours: a rekey comes 120 s after a handshake, from whoever initiated it.
#[test]
fn wireguard_go_in_both_roles_of_the_handshake_and_across_a_rekey() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    let answerer = StockPeer::start(&world, "answerer", 1);
    let initiator = StockPeer::start(&world, "initiator", 2);
    answerer.only_answers();
    initiator.only_initiates();
    until("east has a status", LONG, || {
        world.site("east").status().is_some()
    });
    // Its probe address is asked from our inner address.
    answerer.peer_with(&world, "east", "10.11.0.0/16,198.19.0.0/16");
    answerer
        .space
        .ip(&format!("route add 198.19.0.0/16 dev {}", answerer.device));
    initiator.peer_with(&world, "east", "10.11.0.0/16");
    let east = world.site("east");
    let capture = Capture::start(&east.host, "u0", world.path("handshakes.pcap"));
    answerer.register(&world, &format!("--probe {}", answerer.address()));
    initiator.register(&world, "");

    // The answerer's tunnel is made by us, the initiator's by its own first packet.
    east.pings(answerer.address().parse().expect("an address"), LONG);
    until("the initiator speaks", LONG, || {
        let line = format!(
            "ping -n -q -c 1 -W 1 -I {} {}",
            initiator.address(),
            east.pod4()
        );
        initiator.space.run(&line).code == Some(0)
    });
    let mut pings = Vec::new();
    for peer in [&answerer, &initiator] {
        let to = peer.address().parse().expect("an address");
        let answer = fetch(&east.pod, to, Duration::from_secs(5)).expect("an answer");
        assert_eq!(
            answer,
            format!("pod of {} saw {}\n", peer.name, east.pod4())
        );
        assert_eq!(east.path_state(&peer.name).as_deref(), Some("unprobed"));
        let log = world.path(&format!("pings-{}.log", peer.name));
        pings.push(Pings::start(&east.pod, to, Duration::from_millis(100), log));
    }
    // `--wait` does not wait for an echo that a stock peer cannot send.
    east.subsea("status --wait 30s").ok();
    let path = east.path_to(&answerer.name).expect("a path");
    assert!(
        path["rtt_ms"].as_f64().is_some(),
        "no answer to ping: {path}"
    );

    std::thread::sleep(Duration::from_secs(135));
    for pings in pings {
        assert!(pings.stop_without_loss() > 1_000);
    }
    let captured = capture.stop();
    let (us, a, i) = ("192.0.2.101", "192.0.2.31", "192.0.2.32");
    let (ours, theirs) = (handshakes(&captured, us, a), handshakes(&captured, i, us));
    eprintln!("handshakes that we initiated: {ours}, that wireguard-go initiated: {theirs}");
    assert!(ours >= 2, "no rekey with us as initiator");
    assert!(theirs >= 2, "no rekey with wireguard-go as initiator");
    assert_eq!(handshakes(&captured, a, us), 0, "the answerer initiated");
    for peer in [&answerer, &initiator] {
        let answer = fetch(
            &east.pod,
            peer.address().parse().expect("an address"),
            Duration::from_secs(5),
        );
        answer.expect("an answer after the rekey");
        let path = east.path_to(&peer.name).expect("a path");
        assert!(path["latest_handshake"].as_u64().is_some(), "{path}");
    }
    world.site("west").reaches(east);
}

#[test]
fn a_stock_peer_can_be_forgotten_and_its_key_is_never_given_to_another() {
    let world = World::fleet(&["east"]);
    let stock = StockPeer::start(&world, "stock", 1);
    stock.peer_with(&world, "east", "10.11.0.0/16");
    stock.register(&world, "");
    let east = world.site("east");
    let address = stock.address().parse().expect("an address");
    east.pings(address, LONG);
    world
        .broker
        .admin("gateway forget --cluster stock --name stock")
        .ok();
    until("the path is gone", LONG, || east.path_to("stock").is_none());
    assert!(east.is_cut_from(address));
    let line = format!(
        "gateway add --cluster other --public-key {} --endpoint 192.0.2.31:51820 --pod-cidr 10.70.0.0/16",
        stock.public_key
    );
    world.broker.admin(&line).fails_with(1);
}
