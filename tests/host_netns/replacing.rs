//! A table of nftables that gives way to another one while packets pass.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use subsea::net::netlink::Mac;
use subsea::net::nft::ruleset::{AGENT_TABLE, Guard, Ingress, Road, Roads, Ruleset};
use subsea::net::nft::{Outcome, Table, counters};
use subsea_api::Cidr;

use crate::run;
use crate::space::{Space, in_namespace, sh};

/// How long packets pass: some 25,000 in each second.
const FOR: Duration = Duration::from_secs(3);
const BURST: usize = 20;

/// Who may send is one of `nodes`, each with a block of its own.
fn ruleset(nodes: u32) -> Ruleset {
    let source = |node: u32| {
        let [_, high, middle, low] = node.to_be_bytes();
        let block: Cidr = format!("10.{}.{low}.0/24", 64 + middle).parse().unwrap();
        (Mac([2, 0, 0, high, middle, low]), block)
    };
    Ruleset {
        remote: (0..nodes).map(|node| source(node).1).collect(),
        guard: Some(Guard {
            device: "veth0".into(),
            port: 4850,
            links: BTreeSet::new(),
            senders: BTreeSet::new(),
            sources: (0..nodes).map(source).collect(),
        }),
        // Chains that maps lead to.
        roads: Roads {
            all: (1..=2)
                .map(|number| Road {
                    number,
                    ingress: Ingress::Mac {
                        device: "veth0".into(),
                        mac: source(u32::from(number)).0,
                    },
                    table: 586,
                })
                .collect(),
            ..Roads::default()
        },
        ..Ruleset::default()
    }
}

#[test]
fn no_packet_is_lost_when_a_table_is_replaced() {
    in_namespace(
        "replacing::no_packet_is_lost_when_a_table_is_replaced",
        |_| {
            let other = Space::new();
            sh(&format!(
                "ip link set lo up
                 ip link add veth0 type veth peer name veth0 address 02:00:00:00:00:01 netns {}
                 ip address add 10.64.1.1/24 dev veth0
                 ip link set veth0 up",
                other.pid()
            ));
            other.sh("ip address add 10.64.1.2/24 dev veth0; ip link set veth0 up");
            let receiver = UdpSocket::bind("10.64.1.1:7").unwrap();
            set_socket_recv_buffer_size_force(&receiver, 1 << 26).unwrap();
            receiver
                .set_read_timeout(Some(Duration::from_secs(3)))
                .unwrap();
            // This is another table than the last one, whose sets had as many and fewer elements.
            let tables = [ruleset(1_000), ruleset(1_001), ruleset(10)];
            let mut table = Table::new(AGENT_TABLE);
            let ended = AtomicBool::new(false);
            let sends = || {
                other.inside(|| {
                    let sender = UdpSocket::bind("10.64.1.2:0").unwrap();
                    let (start, mut sent) = (Instant::now(), 0);
                    while start.elapsed() < FOR {
                        for _ in 0..BURST {
                            sent += sender.send_to(b"x", "10.64.1.1:7").unwrap();
                        }
                        std::thread::sleep(Duration::from_micros(500));
                    }
                    ended.store(true, Ordering::Release);
                    sent
                })
            };
            let receives = || {
                let mut received = 0;
                loop {
                    // Asked for before the silence: the sender may stand still for longer, and then go on.
                    let over = ended.load(Ordering::Acquire);
                    match receiver.recv(&mut [0; 8]) {
                        Ok(_) => received += 1,
                        Err(_) if over => return received,
                        Err(_) => {}
                    }
                }
            };
            run(table.ensure(&tables[0])).unwrap();
            // As an attempt that was cut short leaves it.
            sh(
                "nft add set inet subsea-agent remote4-b '{ type ipv4_addr; elements = { 192.0.2.9 } }'",
            );
            // Somebody else has transactions of their own meanwhile, as kube-proxy has.
            let others = || {
                while !ended.load(Ordering::Relaxed) {
                    sh("nft add table inet other; nft delete table inet other");
                }
            };
            let (sent, received, replaced) = std::thread::scope(|scope| {
                let (sent, received) = (scope.spawn(sends), scope.spawn(receives));
                scope.spawn(others);
                let mut replaced = 0;
                while !ended.load(Ordering::Relaxed) {
                    replaced += 1;
                    let wanted = &tables[replaced % tables.len()];
                    let outcome = run(table.ensure(wanted)).unwrap();
                    assert_eq!(outcome, Outcome::Applied);
                }
                (sent.join().unwrap(), received.join().unwrap(), replaced)
            });
            println!("{sent} sent while the table was replaced {replaced} times");
            let counted = counters::read_of(AGENT_TABLE).unwrap();
            assert_eq!(received, sent, "{counted:?}");
            assert!(replaced > 2 && sent > 1_000, "{replaced} {sent}");
            // Who may not send is still kept out.
            let dropped = || counters::read_of(AGENT_TABLE).unwrap()["vxlan-source"];
            let before = dropped();
            other.sh("ip link set veth0 address 02:00:00:00:00:99");
            let stranger = other.inside(|| UdpSocket::bind("10.64.1.2:0")).unwrap();
            stranger.send_to(b"x", "10.64.1.1:7").unwrap();
            assert!(receiver.recv(&mut [0; 8]).is_err());
            assert!(dropped() > before);
        },
    );
}
