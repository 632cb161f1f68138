//! Agents: their restart, who may speak with them, what is taken from the VXLAN, and what is left of them.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::{ALL, Lab, cable};
use crate::namespace::{Namespace, run};
use crate::node::Node;
use crate::numbered::Flows;
use crate::traffic::Pings;
use crate::wait::{LONG, bounded, until};

/// The promised bound, twice.
const OUTAGE: Duration = Duration::from_secs(2);

#[test]
fn the_restart_of_an_agent_loses_nothing_on_a_plain_node_nor_on_a_gateways() {
    let mut lab = Lab::pair();
    let pairs = [
        ("east/n-1", "west/n-1", 16),
        ("east/gw-1", "west/gw-2", 8),
        ("west/gw-1", "east/n-2", 8),
        ("west/n-1", "east/gw-2", 8),
    ];
    let flows = Flows::between(&lab, pairs);
    let lost = || -> Vec<u64> { flows.iter().map(Flows::lost).collect() };
    for name in ["east/gw-1", "east/n-1", "west/gw-2"] {
        assert_eq!(lost(), [0; 4], "before the restart on {name}");
        lab.node_mut(name).kill_agent();
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(lost(), [0; 4], "while no agent ran on {name}");
        lab.node_mut(name).start_agent();
        std::thread::sleep(Duration::from_secs(3));
        lab.settle();
        assert_eq!(lost(), [0; 4], "after the restart on {name}");
    }
    lab.no_leaks();
}

/// East with two gateways and a node, west with one of each, and pings between them: kube-proxy drops an answer at a gateway that
/// did not see its question.
fn pinged() -> (Lab, [Pings; 2]) {
    let lab = Lab::start(&[("east", &ALL[..3]), ("west", &["gw-1", "n-1"])]);
    let ping = |from: &str, to: &str| {
        let log = lab.world.path(&from.replace('/', "-"));
        let (from, to) = (lab.node(from), lab.node(to));
        Pings::start(&from.pod, to.pod4(), Duration::from_millis(50), log)
    };
    let pings = [ping("west/n-1", "east/n-1"), ping("east/n-1", "west/gw-1")];
    (lab, pings)
}

#[test]
fn while_no_agent_runs_on_a_gateways_node_answers_keep_the_road_of_their_questions() {
    // Each of the two gateways carries some.
    let (mut lab, pings) = pinged();
    for (name, signal, away) in [
        ("east/gw-1", Signal::TERM, 4),
        ("east/gw-2", Signal::KILL, 11),
        ("east/gw-1", Signal::KILL, 11),
        ("east/gw-2", Signal::TERM, 4),
    ] {
        lab.node_mut(name).end_agent(signal);
        std::thread::sleep(Duration::from_secs(away));
        lab.node_mut(name).start_agent();
        std::thread::sleep(Duration::from_secs(4));
        lab.settle();
    }
    for pings in pings {
        assert!(pings.stop_without_loss() > 300);
    }
    lab.no_leaks();
}

#[test]
fn an_agent_that_stood_still_does_not_say_that_the_others_are_silent() {
    let lab = Lab::start(&[("east", &ALL[..3]), ("west", &["gw-1"])]);
    let node = lab.node("east/gw-1");
    std::thread::sleep(Duration::from_secs(2));
    node.freeze_agent(true);
    lab.node("east/n-1").sends_only_by("west", &["gw-2"], LONG);
    std::thread::sleep(Duration::from_secs(2));
    node.freeze_agent(false);
    let both = ["gw-1", "gw-2"];
    lab.node("east/n-1").sends_only_by("west", &both, LONG);
    let said = node.output("agent");
    assert!(!said.contains("verb=InwardDead"), "{said}");
}

/// Waits until the others hear of a gateway of east that it is not to be used, or is.
fn until_declined(lab: &Lab, gateway: &str, wanted: bool) {
    until(&format!("{gateway} is declined: {wanted}"), LONG, || {
        let path = lab.node("west/gw-1").path(lab.node(gateway));
        path.is_some_and(|path| path["echo"]["inward_dead"] == wanted)
    });
}

#[test]
fn an_agent_that_stays_away_takes_its_gateway_out_of_use_until_it_is_back() {
    let (mut lab, pings) = pinged();
    let flows = Flows::between(&lab, [("east/n-1", "west/n-1", 16)]);
    for (name, other) in [("gw-1", "gw-2"), ("gw-2", "gw-1")] {
        let gateway = format!("east/{name}");
        // It has said that it is well.
        std::thread::sleep(Duration::from_secs(8));
        lab.node_mut(&gateway).end_agent(Signal::KILL);
        std::thread::sleep(Duration::from_secs(3));
        let node = lab.node("east/n-1");
        assert_eq!(node.sends_by("west").len(), 2, "it is believed for a while");
        node.sends_only_by("west", &[other], LONG);
        until_declined(&lab, &gateway, true);
        lab.node_mut(&gateway).start_agent();
        until_declined(&lab, &gateway, false);
        let node = lab.node("east/n-1");
        node.sends_only_by("west", &["gw-1", "gw-2"], LONG);
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(flows[0].lost(), 0);
    // Its nodes and the others turn from it within a second and a half of each other: answers that take the other road meanwhile
    // are dropped. Once for each gateway.
    for pings in pings {
        pings.stop_losing(2 * 40);
    }
    lab.no_leaks();
}

#[test]
fn an_agent_that_leaves_a_gateways_node_is_not_believed_any_more() {
    let (mut lab, pings) = pinged();
    lab.node("east/gw-1").subsea("agent", "leave").ok();
    let mut agent = lab.node_mut("east/gw-1").agent.take().expect("it ran");
    assert!(agent.wait(LONG).success());
    let took = lab.node("east/n-1").sends_only_by("west", &["gw-2"], LONG);
    bounded("nodes turn from a gateway without an agent", took, OUTAGE);
    until_declined(&lab, "east/gw-1", true);
    std::thread::sleep(Duration::from_secs(2));
    // Those on their way when the device went: not a second of them, and not the 15 s of one that is believed.
    for pings in pings {
        pings.stop_losing(20);
    }
}

/// A namespace in the LAN of a cluster.
fn neighbour(lab: &Lab, cluster: &str, last: u8) -> Namespace {
    let lan = lab.lan(cluster);
    let space = Namespace::create(format!("{}-{cluster}-{last}", lab.world.prefix()));
    let port = format!("x{last}");
    cable((lan, &port), (&space, "eth0"));
    lan.ip(&format!("link set {port} master lan0"));
    space.ip(&format!("address add 172.20.1.{last}/24 dev eth0"));
    space.ip("route add default via 172.20.1.254");
    space
}

/// What the agent at `address` says to one with this certificate that says to have the pods of east/n-2; empty when it says
/// nothing.
fn session(from: &Namespace, address: Ipv4Addr, certificate: &str, key: &str) -> String {
    let script = format!(
        "(echo '{{\"prefixes\":[\"10.1.12.0/24\"]}}'; sleep 2) |
         timeout 8 openssl s_client -quiet -connect {address}:4852 -cert {certificate} -key {key} 2>/dev/null || true"
    );
    let mut command = from.command("sh");
    run(command.args(["-c", &script])).ok()
}

/// The files of a certificate that nobody vouches for, and of its key.
fn self_made(lab: &Lab, name: &str) -> (String, String) {
    let made = [lab.world.path("made.crt"), lab.world.path("made.key")];
    let [crt, key] = made.each_ref().map(|path| path.display().to_string());
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args([
        "-subj",
        &format!("/CN={name}"),
        "-out",
        &crt,
        "-keyout",
        &key,
    ]);
    run(&mut command).ok();
    (crt, key)
}

#[test]
fn only_agents_of_the_cluster_get_a_session_and_only_prefixes_of_its_pods_are_taken() {
    let mut lab = Lab::build(&[("east", ALL), ("west", &["gw-1", "n-1"])]);
    for name in [
        "east/gw-1",
        "east/gw-2",
        "east/n-1",
        "west/gw-1",
        "west/n-1",
    ] {
        lab.enrol(name, "");
    }
    lab.join("east/n-2", "agent");
    lab.settle();
    let gateway = lab.node("east/gw-1");
    let stranger = neighbour(&lab, "east", 66);
    let of = |name: &str, role: &str, file: &str| {
        let path = lab.node(name).state(role).join(file);
        path.display().to_string()
    };
    let said =
        |certificate: &str, key: &str| session(&stranger, gateway.address(), certificate, key);
    let behind = |name: &str| {
        let status = gateway.status("agent").expect("a status");
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|node| node["node"] == name)
    };

    // An agent and a gateway of another cluster; one's own gateway's certificate is none of an agent; a self-made one.
    let (crt, key) = self_made(&lab, "n-2");
    let wrong = [
        (
            of("west/n-1", "agent", "tls.crt"),
            of("west/n-1", "agent", "tls.key"),
        ),
        (
            of("west/gw-1", "gateway", "tls.crt"),
            of("west/gw-1", "gateway", "tls.key"),
        ),
        (
            of("east/gw-2", "gateway", "tls.crt"),
            of("east/gw-2", "gateway", "tls.key"),
        ),
        (crt, key),
    ];
    for (certificate, key) in &wrong {
        assert_eq!(said(certificate, key), "", "{certificate} got a session");
        assert_eq!(behind("n-2"), None, "{certificate}");
    }
    let log = gateway.output("agent");
    assert!(
        log.contains("session of an agent"),
        "refusals are not in the log: {log}"
    );
    // The right one gets one: the refusals above were for the certificate.
    let crt = of("east/n-2", "agent", "tls.crt");
    let text = said(&crt, &of("east/n-2", "agent", "tls.key"));
    assert!(
        text.contains("\"gateway\""),
        "no word for an agent of the cluster: {text}"
    );

    // What is in no pod block of the cluster, or is another node's, is not taken.
    let prefixes = [
        "10.1.12.0/24",
        "10.2.11.0/24",
        "8.8.8.0/24",
        "10.1.11.128/25",
    ];
    let prefixes: Vec<String> = prefixes.map(str::to_owned).into();
    lab.node_mut("east/n-2").start_agent_for(&prefixes);
    let gateway = lab.node("east/gw-1");
    until("the node is known", LONG, || {
        let status = gateway.status("agent").unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|node| node["node"] == "n-2");
        found.is_some_and(|n| {
            n["prefixes"] == serde_json::json!(["10.1.12.0/24"])
                && n["address"] == "172.20.1.12"
                && n["alive"] == true
        })
    });
    for refused in ["10.2.11.0/24", "8.8.8.0/24", "10.1.11.128/25"] {
        let routes = gateway.space.ip_json("route show table 585");
        assert!(routes.iter().all(|r| r["dst"] != refused), "{routes:?}");
    }
    let log = gateway.output("agent");
    assert!(
        log.contains("8.8.8.0/24 of node n-2 is in no pod block"),
        "{log}"
    );
    lab.settle();
    // The stranger's session did not move the node's pods to the stranger's address.
    let west = lab.node("west/n-1");
    until("pods of the new node", LONG, || {
        crate::traffic::ping(&lab.node("east/n-2").pod, west.pod4())
    });
    lab.no_leaks();
}

fn mac_of(node: &Node, device: &str) -> [u8; 6] {
    let links = node.space.ip_json(&format!("link show {device}"));
    let text = links[0]["address"].as_str().expect("an address").to_owned();
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hex"))
        .collect();
    bytes.try_into().expect("6 bytes")
}

/// A UDP datagram in IPv4 in Ethernet in VXLAN, from one pod to another.
fn encapsulated(macs: ([u8; 6], [u8; 6]), from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(from.octets().iter().chain(&to.octets()));
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    // No checksum: it may be left out over IPv4.
    let udp = [
        port.to_be_bytes(),
        port.to_be_bytes(),
        16_u16.to_be_bytes(),
        [0; 2],
    ]
    .concat();
    let vxlan = [8, 0, 0, 0, 0, 2, 71, 0];
    [
        &vxlan[..],
        &macs.1,
        &macs.0,
        &[8, 0],
        &ip,
        &udp,
        b"forged!!",
    ]
    .concat()
}

#[test]
fn what_is_forged_in_the_vxlan_is_dropped_and_counted() {
    let lab = Lab::start(&[("east", &ALL[..3]), ("west", &["gw-1", "n-1"])]);
    let (gateway, node) = (lab.node("east/gw-1"), lab.node("east/n-1"));
    let macs = (mac_of(node, "subsea.vx"), mac_of(gateway, "subsea.vx"));
    let to = Ipv4Addr::new(10, 2, 11, 10);
    let stranger = neighbour(&lab, "east", 67);
    let send = |space: &Namespace, from: [u8; 4], macs, port| {
        let packet = encapsulated(macs, from.into(), to, port);
        let socket = space
            .inside(|| UdpSocket::bind("0.0.0.0:0"))
            .expect("a socket");
        for _ in 0..10 {
            socket
                .send_to(&packet, (gateway.address(), 4851))
                .expect("sent");
        }
    };
    let counted = |name: &str| gateway.counters("inet subsea-agent")[name];
    let passed = |port: u16| {
        let all = lab.out_of_cluster("east");
        all.keys().any(|tuple| tuple.3 == port)
    };
    lab.watch();
    // What the node itself may send, passes: the packets are well made.
    send(&node.space, [10, 1, 11, 10], macs, 7001);
    until("a pod's own packet passes", LONG, || passed(7001));

    let cases: [(&str, &Namespace, [u8; 4], u16); 4] = [
        ("vxlan-sender", &stranger, [10, 1, 11, 10], 7002),
        ("vxlan-source", &node.space, [8, 8, 8, 8], 7003),
        ("vxlan-source", &node.space, [10, 2, 11, 10], 7004),
        // Of another node of the cluster.
        ("vxlan-source", &node.space, [10, 1, 2, 10], 7005),
    ];
    for (counter, space, from, port) in cases {
        let before = counted(counter);
        send(space, from, macs, port);
        until("it is counted", LONG, || counted(counter) >= before + 10);
        assert!(!passed(port), "{counter}: {from:?} passed");
    }
    // The right source in another node's name.
    let before = counted("vxlan-sender");
    let other = mac_of(lab.node("east/gw-2"), "subsea.vx");
    send(&node.space, [10, 1, 11, 10], (other, macs.1), 7006);
    until("it is counted", LONG, || {
        counted("vxlan-sender") >= before + 10
    });
    assert!(!passed(7006));
    // From a pod, to which a masquerade gives the address of its node: of a plain node in the node's name, and of a
    // gateway's in the gateway's, which may send what comes from other clusters.
    for (from, to, source, port) in [
        (node, gateway, [10, 1, 11, 10], 7007),
        (gateway, node, [10, 2, 11, 10], 7008),
    ] {
        let count = || from.counters("inet subsea-agent")["vxlan-sender"];
        let before = count();
        let macs = (mac_of(from, "subsea.vx"), mac_of(to, "subsea.vx"));
        let to_pod = encapsulated(macs, source.into(), Ipv4Addr::new(10, 1, 11, 10), port);
        let socket = from.pod.inside(|| UdpSocket::bind("0.0.0.0:0"));
        let socket = socket.expect("a socket");
        for _ in 0..10 {
            socket.send_to(&to_pod, (to.address(), 4851)).expect("sent");
        }
        until("its node drops it", LONG, || count() >= before + 10);
    }
    node.reaches(lab.node("west/n-1"));
    lab.no_leaks();
}

#[test]
fn an_agent_that_leaves_leaves_nothing_behind_on_its_node() {
    let mut lab = Lab::build(&[("east", ALL), ("west", &["gw-1", "n-1"])]);
    let before = lab.node("east/n-2").kernel_state();
    lab.enrol_all("");
    lab.settle();
    let node = lab.node("east/n-2");
    node.reaches(lab.node("west/n-1"));
    assert_ne!(node.kernel_state(), before);
    node.subsea("agent", "leave").ok();
    let mut agent = lab.node_mut("east/n-2").agent.take().expect("it ran");
    assert!(agent.wait(LONG).success());
    let node = lab.node("east/n-2");
    let after = node.kernel_state();
    let gone = |(a, b): (&str, &str)| -> Vec<String> {
        a.lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(gone((&after, &before)), Vec::<String>::new(), "left behind");
    assert_eq!(gone((&before, &after)), Vec::<String>::new(), "taken away");
    let left: Vec<_> = std::fs::read_dir(node.state("agent"))
        .map(|files| files.flatten().map(|file| file.file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    // The others do not miss it, and its cluster stays a member.
    lab.settle();
    lab.node("east/n-1").reaches(lab.node("west/n-1"));
    assert_eq!(lab.world.broker.members(), ["east", "west"]);
}
