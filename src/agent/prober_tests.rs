use std::net::Ipv4Addr;

use super::super::seal::{End, MATERIAL};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

fn place(last: u8, port: u16) -> Place {
    let socket = std::net::UdpSocket::bind((address(last), 0)).unwrap();
    let index = rustix::net::netdevice::name_to_index(&socket, "lo").unwrap();
    Place {
        address: address(last),
        port,
        device: ("lo".to_owned(), index),
        mark: 0,
    }
}

fn peer(last: u8, seal: &Arc<Seal>) -> Peer {
    Peer {
        address: address(last),
        seal: Arc::clone(seal),
        held: None,
    }
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind((address(1), 0)).unwrap();
    socket.local_addr().unwrap().port()
}

fn seals(byte: u8) -> [Arc<Seal>; 2] {
    [End::Client, End::Server].map(|end| Arc::new(Seal::new(&[byte; MATERIAL], end)))
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A node at 127.0.0.1 that probes a gateway's node at 127.0.0.2.
fn aims(port: u16, seals: &[Arc<Seal>; 2]) -> [Targets; 2] {
    let node = Targets {
        own: Some(place(1, port)),
        gateways: [(name("gw-1"), peer(2, &seals[0]))].into(),
        nodes: BTreeMap::new(),
    };
    let gateway = Targets {
        own: Some(place(2, port)),
        gateways: BTreeMap::new(),
        nodes: [(name("n-1"), peer(1, &seals[1]))].into(),
    };
    [node, gateway]
}

#[tokio::test]
async fn a_node_knows_its_gateways_node_and_that_one_knows_it() {
    let timing = Timing::every(Duration::from_millis(20));
    let clock = Clock::start();
    let [node, gateway] = [(); 2].map(|()| Prober::start(clock, timing));
    let port = free_port();
    let [to_gateway, to_node] = aims(port, &seals(7));
    node.aim(to_gateway.clone());
    gateway.aim(to_node);
    let mut reachable = node.reachable();
    let found = reachable.wait_for(|all| all.get(&name("gw-1")) == Some(&true));
    let found = tokio::time::timeout(PATIENCE, found).await;
    drop(found.expect("found in time").unwrap());
    assert!(gateway.heard()[&name("n-1")].is_some());

    // New keys at one end alone are wrong keys.
    let [_, other] = aims(port, &seals(8));
    gateway.aim(other);
    let lost = reachable.wait_for(|all| all.get(&name("gw-1")) == Some(&false));
    let lost = tokio::time::timeout(PATIENCE, lost).await;
    drop(lost.expect("lost in time").unwrap());
    // With them at both it goes on in the same socket: nothing needs to be opened anew.
    let [again, _] = aims(port, &seals(8));
    assert_eq!(again.own, to_gateway.own);
    node.aim(again);
    let back = reachable.wait_for(|all| all.get(&name("gw-1")) == Some(&true));
    drop(
        tokio::time::timeout(PATIENCE, back)
            .await
            .expect("back in time")
            .unwrap(),
    );
}

#[tokio::test]
async fn a_probe_counts_once() {
    let clock = Clock::start();
    let [ours, theirs] = seals(7);
    let mut paths = Paths::default();
    let node = Node {
        peer: peer(1, &theirs),
        heard: None,
        window: Window::default(),
    };
    paths.nodes.insert(name("n-1"), node);
    paths.by_address.insert(address(1), name("n-1"));
    let work = Work {
        clock,
        timing: Timing::every(Duration::from_millis(250)),
        todo: watch::channel(Arc::default()).1,
        publish: watch::channel(BTreeMap::new()).0,
        paths: Arc::new(Mutex::new(paths)),
        base: 7,
        socket: None,
        opened: false,
        retry: Duration::ZERO,
    };
    let heard = || lock(&work.paths).nodes[&name("n-1")].heard;
    let probe = Echo {
        kind: Kind::Probe,
        own: Own::default(),
        sequence: 9,
        sent: 1,
        heard: None,
        length: echo::length(0),
    };
    let sealed = ours.close(&probe.encode());
    work.take(address(2), &sealed);
    assert_eq!(heard(), None, "from somewhere else");
    work.take(address(1), &sealed);
    let first = heard();
    assert!(first.is_some());
    tokio::time::sleep(Duration::from_millis(5)).await;
    work.take(address(1), &sealed);
    assert_eq!(heard(), first, "played again");
    let next = Echo {
        sequence: 10,
        ..probe
    };
    work.take(address(1), &ours.close(&next.encode()));
    assert!(heard() > first);
}

#[tokio::test]
async fn a_node_that_is_held_is_not_missed_until_its_time_is_over() {
    let clock = Clock::start();
    let timing = Timing::every(Duration::from_millis(20));
    let [node, gateway] = [(); 2].map(|()| Prober::start(clock, timing));
    let [mut to_gateway, to_node] = aims(free_port(), &seals(7));
    node.aim(to_gateway.clone());
    gateway.aim(to_node);
    let mut reachable = node.reachable();
    let found = reachable.wait_for(|all| all.get(&name("gw-1")) == Some(&true));
    drop(
        tokio::time::timeout(PATIENCE, found)
            .await
            .unwrap()
            .unwrap(),
    );

    let until = Instant::now() + Duration::from_secs(2);
    let peer = to_gateway.gateways.get_mut(&name("gw-1")).unwrap();
    peer.held = Some(until);
    node.aim(to_gateway);
    drop(gateway);
    let lost = reachable.wait_for(|all| all.get(&name("gw-1")) == Some(&false));
    drop(tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap());
    assert!(Instant::now() > until, "nobody has to say that it is over");
}
