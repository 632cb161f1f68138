//! A node without a tunnel: VXLAN to the gateways of its cluster, replies by the road of their flow, and the guard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use subsea::host::{Desired, Mark, Part, Reconciler, Settings, Steering, cleanup};
use subsea::net::netlink::{Address, Fdb, Group, Mac, Neighbour, NextHop, Route, Rule, Vxlan};
use subsea::net::nft::counters;
use subsea::net::nft::ruleset::{Bits, Guard, Ingress, Road};
use subsea::net::sysctl::Saved;
use subsea_api::Family;

use crate::space::{Space, in_namespace, sh};
use crate::{make_tun, pass, run, settle};

const IDS: u32 = 0x5380_0000;
const GROUP: u32 = IDS + 100;
const TABLE: u32 = 584;
const FLOWS: usize = 40;
/// How long answers that must come may take on a machine under load, and for how long none is proof enough.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(500);
const DEVICE: &str = "subsea-vx";
const BLOCKS: [&str; 2] = ["10.64.0.0/16", "fd00:64::/48"];

fn mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, node])
}

fn link_local(node: u8) -> IpAddr {
    format!("fe80::{node:x}").parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        part: Part::Agent,
        device: None,
        vxlan: Some(DEVICE.into()),
        table: TABLE,
        tables: (585..590).collect(),
        rule_pref: 582,
        mark: Mark::default(),
    }
}

fn agent() -> Reconciler {
    Reconciler::new(settings()).unwrap()
}

/// What node 1 holds, whose cluster has gateways at nodes 11 and 12.
fn wanted() -> Desired {
    let mut desired = Desired::empty(TABLE);
    desired.vxlan = Some(Vxlan {
        name: DEVICE.into(),
        vni: 584,
        port: 4850,
        local: "192.0.2.1".parse().unwrap(),
        mac: mac(1),
        mtu: 1370,
    });
    desired
        .addresses
        .insert(Address::link_local(link_local(1), DEVICE));
    let mut guard = Guard {
        device: DEVICE.into(),
        port: 4850,
        links: BTreeSet::from(["br0".into()]),
        senders: BTreeSet::new(),
        sources: BTreeSet::new(),
    };
    let gateways = [11, 12];
    for (slot, node) in (0_u8..).zip(gateways) {
        let dst = IpAddr::from([192, 0, 2, node]);
        desired.fdb.insert(Fdb {
            device: DEVICE.into(),
            mac: mac(node),
            dst,
        });
        desired.neighbours.insert(Neighbour {
            device: DEVICE.into(),
            addr: link_local(node),
            mac: mac(node),
        });
        let id = IDS + u32::from(node);
        let hop = NextHop::via(id, link_local(node), DEVICE);
        desired.next_hops.insert(hop);
        let road = Road {
            number: slot + 1,
            ingress: Ingress::Mac {
                device: DEVICE.into(),
                mac: mac(node),
            },
            table: 585 + u32::from(slot),
        };
        for (family, block) in [Family::V4, Family::V6].into_iter().zip(BLOCKS) {
            let block = block.parse().unwrap();
            let back = Route::through(road.table, block, id, None);
            desired.routes.insert(back);
            desired.rules.extend(road.rule(Bits::AGENT, family, 581));
            guard.sources.insert((mac(node), block));
        }
        desired.ruleset.roads.all.push(road);
        guard.senders.insert((dst, mac(node)));
        let own = format!("{}/128", link_local(node)).parse().unwrap();
        guard.sources.insert((mac(node), own));
    }
    desired.groups.insert(group(&gateways));
    for block in BLOCKS {
        let block = block.parse().unwrap();
        desired.routes.insert(Route::backstop(TABLE, block));
        let through = Route::through(TABLE, block, GROUP, None);
        desired.routes.insert(through);
        let rule = Rule::ours(block.family(), 582, Mark::default(), TABLE);
        desired.rules.insert(rule);
        desired.ruleset.remote.insert(block);
    }
    desired.ruleset.local = ["10.32.0.0/16", "fd00:32::/48"]
        .map(|block| block.parse().unwrap())
        .into();
    desired.ruleset.devices.insert(DEVICE.into());
    desired.ruleset.guard = Some(guard);
    desired
}

fn group(nodes: &[u8]) -> Group {
    Group::new(GROUP, nodes.iter().map(|node| IDS + u32::from(*node)))
}

/// The node's links: to the other nodes, and to a pod.
fn node() -> Space {
    sh("ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip address add 192.0.2.1/24 dev br0
        sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1");
    let pod = Space::new();
    sh(&format!(
        "ip link add pod0 type veth peer name eth0 netns {}; sysctl -qw net.ipv6.conf.pod0.disable_ipv6=0; ip link set pod0 up
         ip address add 10.32.0.1/24 dev pod0; ip address add fd00:32::1/64 dev pod0 nodad",
        pod.pid()
    ));
    pod.sh("ip link set eth0 up; ip address add 10.32.0.2/24 dev eth0; ip address add fd00:32::2/64 dev eth0 nodad
        ip route add default via 10.32.0.1; ip -6 route add default via fd00:32::1");
    pod
}

/// A gateway node, which stands for the other cluster as well.
fn gateway(number: u8) -> Space {
    let space = Space::new();
    sh(&format!(
        "ip link add u{number} type veth peer name eth0 netns {}; ip link set u{number} master br0 up",
        space.pid()
    ));
    space.sh(&format!(
        "ip link set eth0 up; ip address add 192.0.2.{number}/24 dev eth0
         ip link add vx type vxlan id 584 dstport 4850 local 192.0.2.{number} nolearning
         ip link set vx address {} mtu 1370 addrgenmode none up; ip address add {}/64 dev vx nodad
         bridge fdb append {2} dev vx dst 192.0.2.1; ip neigh add fe80::1 lladdr {2} dev vx
         ip address add 10.64.0.9/32 dev lo; ip address add fd00:64::9/128 dev lo nodad
         ip nexthop add id 1 via fe80::1 dev vx
         ip route add 10.32.0.0/16 nhid 1 src 10.64.0.9; ip -6 route add fd00:32::/48 nhid 1 src fd00:64::9
         ip route add 10.32.9.0/24 nhid 1",
        mac(number),
        link_local(number),
        mac(1)
    ));
    space
}

/// Answers everything that comes to port 7000, for ever.
fn echo(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut packet = [0; 16];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let _ = socket.send_to(&packet[..length], from);
        }
    });
}

/// Flows that the other cluster opens by a gateway; a pod and the node itself answer.
fn open(gateway: &Space) -> Vec<UdpSocket> {
    let to = ["10.32.0.2", "fd00:32::2", "10.32.0.1", "fd00:32::1"];
    gateway.inside(|| {
        let flows = to.iter().cycle().take(FLOWS).map(|to| {
            let to: IpAddr = to.parse().unwrap();
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(SocketAddr::new(to, 7000)).unwrap();
            socket
        });
        flows.collect()
    })
}

/// How many flows are answered by the gateway that they came by, once all are or the time is over.
fn answered(flows: &[UdpSocket], wait: Duration) -> usize {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    // The answer to an earlier one, that comes late, does not count.
    let round = ROUND.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
    for flow in flows {
        // An error of an earlier one would be told instead of sending.
        drop(flow.take_error());
        let _ = flow.send(&round);
    }
    let start = Instant::now();
    let answers = flows.iter().filter(|flow| {
        let mut answer = [0; 16];
        loop {
            let left = wait.saturating_sub(start.elapsed());
            let left = left.max(Duration::from_millis(1));
            flow.set_read_timeout(Some(left)).unwrap();
            match flow.recv(&mut answer) {
                Ok(length) if answer[..length] == round => return true,
                Err(_) if start.elapsed() >= wait => return false,
                _ => {}
            }
        }
    });
    answers.count()
}

#[test]
fn replies_keep_the_road_of_their_flow() {
    in_namespace("overlay::replies_keep_the_road_of_their_flow", |_| {
        let pod = node();
        let (first, second) = (gateway(11), gateway(12));
        echo(pod.inside(|| UdpSocket::bind("[::]:7000").unwrap()));
        for own in ["10.32.0.1:7000", "[fd00:32::1]:7000"] {
            echo(UdpSocket::bind(own).unwrap());
        }
        run(async {
            let mut reconciler = agent();
            let mut wanted = wanted();
            let without = Desired {
                rules: wanted.rules.iter().filter(|r| r.not).cloned().collect(),
                ..wanted.clone()
            };
            pass(&mut reconciler, &without).await;
            let (by_first, by_second) = (open(&first), open(&second));
            // The test works: without roads replies go anywhere.
            let one = || answered(&by_first, SHORT) + answered(&by_second, SHORT);
            let some = (0..10).map(|_| one()).find(|some| *some > 0);
            let some = some.unwrap_or_default();
            assert!(some > 0 && some < 2 * FLOWS, "{some}");

            pass(&mut reconciler, &wanted).await;
            assert_eq!(answered(&by_first, LONG), FLOWS);
            assert_eq!(answered(&by_second, LONG), FLOWS);
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            let marks = sh("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null");
            assert!(
                marks.contains("mark=1 ") && marks.contains("mark=2 "),
                "{marks}"
            );
            // Bits of others stay.
            sh("nft add table inet t; nft add chain inet t c '{ type filter hook prerouting priority -160; }'
                nft add rule inet t c ct mark set ct mark '|' 0x4000");
            answered(&by_first, LONG);
            let marks = sh("conntrack -L 2>/dev/null");
            assert!(marks.contains("mark=16385 "), "{marks}");

            // The second gateway dies: its group and its road are left in one go.
            let swap = reconciler.swap();
            let roads = wanted.rules.iter().filter(|rule| rule.table == 586);
            let steering = Steering {
                number: 1,
                groups: BTreeMap::from([(GROUP, group(&[11]))]),
                rules: roads.map(|rule| (rule.clone(), false)).collect(),
            };
            let began = Instant::now();
            swap.steer(steering.clone()).unwrap();
            println!("steered within {:?}", began.elapsed());
            assert_eq!(answered(&by_second, SHORT), 0);
            assert_eq!(answered(&by_first, LONG), FLOWS);
            pass(&mut reconciler, &wanted).await;
            assert_eq!(
                answered(&by_second, SHORT),
                0,
                "a pass of before took it back"
            );
            // And comes back.
            wanted.steering = 2;
            pass(&mut reconciler, &wanted).await;
            assert_eq!(answered(&by_second, LONG), FLOWS);

            // What nobody may send is dropped, and counted by its reason.
            let count = |name: &str| counters::read_of("subsea-agent").unwrap()[name];
            assert_eq!((count("vxlan-sender"), count("vxlan-source")), (0, 0));
            first.sh("ip address add 10.99.0.1/32 dev lo");
            first.try_sh("ping -c 3 -i 0.1 -W 1 -I 10.99.0.1 10.32.0.2");
            assert_eq!((count("vxlan-sender"), count("vxlan-source")), (0, 3));
            // With another hardware address a device forgets its neighbours.
            first.sh(&format!(
                "ip link set vx address {}; ip neigh add fe80::1 lladdr {} dev vx",
                mac(12),
                mac(1)
            ));
            first.try_sh("ping -c 3 -i 0.1 -W 1 -I 10.64.0.9 10.32.0.2");
            assert_eq!((count("vxlan-sender"), count("vxlan-source")), (3, 3));
            assert_eq!(answered(&by_second, LONG), FLOWS);
        });
    });
}

/// The device, what stands on it and what leads by it are as they should be.
fn check() {
    let link = sh("ip -d link show subsea-vx");
    for word in [
        "vxlan id 584 local 192.0.2.1",
        "dstport 4850",
        "nolearning",
        "mtu 1370",
        "group 583",
        "addrgenmode none",
        "02:00:00:00:00:01",
    ] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    let addresses = sh("ip -o address show dev subsea-vx");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(
        addresses.contains("inet6 fe80::1/64 scope link"),
        "{addresses}"
    );
    let fdb = sh("bridge fdb show dev subsea-vx");
    assert_eq!(fdb.lines().count(), 2, "{fdb}");
    assert!(
        fdb.contains("02:00:00:00:00:0b dst 192.0.2.11 self permanent"),
        "{fdb}"
    );
    let behind = sh("ip neigh show dev subsea-vx nud permanent");
    assert!(
        behind.contains("fe80::b lladdr 02:00:00:00:00:0b"),
        "{behind}"
    );
    assert_eq!(behind.matches("proto 83").count(), 2, "{behind}");
    assert_eq!(sh("ip nexthop | grep -c proto.83").trim(), "3");
    assert_eq!(sh("ip route show table 584 | grep -c nhid").trim(), "1");
    assert_eq!(sh("ip route show table 586").lines().count(), 1);
    for (name, value) in [
        ("ipv6/conf/subsea-vx/disable_ipv6", "0"),
        ("ipv4/conf/subsea-vx/rp_filter", "2"),
        ("ipv6/conf/subsea-vx/accept_ra", "0"),
        ("ipv4/ip_forward", "1"),
    ] {
        assert_eq!(
            sh(&format!("cat /proc/sys/net/{name}")).trim(),
            value,
            "{name}"
        );
    }
    sh("ping -6 -c 1 -W 1 fe80::b%subsea-vx");
}

#[test]
fn the_device_and_who_is_behind_it_come_back() {
    in_namespace("overlay::the_device_and_who_is_behind_it_come_back", |_| {
        let _pod = node();
        let _first = gateway(11);
        run(async {
            let mut reconciler = agent();
            let wanted = wanted();
            assert_eq!(
                pass(&mut reconciler, &wanted).await.problems,
                Vec::<String>::new()
            );
            assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            settle(&mut reconciler, &wanted).await;
            check();
            for undo in [
                "ip link del subsea-vx",
                "ip link set subsea-vx down",
                "ip link set subsea-vx mtu 1300",
                "ip link set subsea-vx address 02:00:00:00:00:77",
                "bridge fdb del 02:00:00:00:00:0b dev subsea-vx",
                "bridge fdb replace 02:00:00:00:00:0b dev subsea-vx dst 192.0.2.77",
                "bridge fdb append 02:00:00:00:00:0b dev subsea-vx dst 192.0.2.77",
                "bridge fdb append 02:00:00:00:00:99 dev subsea-vx dst 192.0.2.77",
                "ip neigh del fe80::b dev subsea-vx",
                "ip neigh replace fe80::b lladdr 02:00:00:00:00:77 dev subsea-vx nud permanent",
                "ip address flush dev subsea-vx",
                "ip nexthop flush proto 83",
                "ip rule del pref 581; ip -6 rule del pref 582",
                "ip route del 10.64.0.0/16 table 586; ip -6 route del fd00:64::/48 metric 100 table 584",
                "nft delete table inet subsea-agent",
            ] {
                sh(undo);
                let heard = tokio::time::timeout(LONG, reconciler.changed());
                assert!(heard.await.is_ok(), "`{undo}` was not heard");
                pass(&mut reconciler, &wanted).await;
                settle(&mut reconciler, &wanted).await;
                println!("{undo}");
                check();
            }
        });
    });
}

#[test]
fn another_network_is_another_device() {
    in_namespace("overlay::another_network_is_another_device", |_| {
        let _pod = node();
        let _first = gateway(11);
        run(async {
            let mut reconciler = agent();
            let mut wanted = wanted();
            pass(&mut reconciler, &wanted).await;
            // All that stood on the old one is put on the new one.
            let other = Vxlan {
                vni: 585,
                ..wanted.vxlan.clone().unwrap()
            };
            let moved = Desired {
                vxlan: Some(other),
                ..wanted.clone()
            };
            pass(&mut reconciler, &moved).await;
            assert_eq!(pass(&mut reconciler, &moved).await.changes, 0);
            assert!(sh("ip -d link show subsea-vx").contains("vxlan id 585 "));
            pass(&mut reconciler, &wanted).await;
            check();

            // A device of that name that somebody else made is left alone.
            sh(
                "ip link del subsea-vx; ip link add subsea-vx type vxlan id 3 dstport 4999 local 192.0.2.1",
            );
            let report = reconciler.reconcile(&wanted).await.unwrap();
            assert!(
                report.problems[0].contains("was not made by subsea"),
                "{report:?}"
            );
            assert!(sh("ip -d link show subsea-vx").contains("vxlan id 3 "));
            sh("ip link del subsea-vx");
            pass(&mut reconciler, &wanted).await;
            check();

            wanted = Desired::empty(TABLE);
            pass(&mut reconciler, &wanted).await;
            assert!(!sh("ip link").contains("subsea-vx"));
            assert!(!sh("ip nexthop").contains("proto 83"));
        });
    });
}

#[test]
fn a_gateway_and_an_agent_do_not_fight() {
    in_namespace("overlay::a_gateway_and_an_agent_do_not_fight", |_| {
        let _pod = node();
        sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        make_tun();
        run(async {
            let (mut gateway, of_gateway) = (crate::reconciler(), gateway_wanted());
            let (mut agent, of_agent) = (agent(), wanted());
            pass(&mut gateway, &of_gateway).await;
            pass(&mut agent, &of_agent).await;
            // Each hears of the other's rules, once, and has nothing to do.
            for _ in 0..2 {
                settle(&mut gateway, &of_gateway).await;
                settle(&mut agent, &of_agent).await;
            }
            let quiet = Duration::from_millis(600);
            let gateway_quiet = tokio::time::timeout(quiet, gateway.changed()).await;
            let agent_quiet = tokio::time::timeout(quiet, agent.changed()).await;
            assert!(
                gateway_quiet.is_err() && agent_quiet.is_err(),
                "they wake each other"
            );
            assert_eq!(pass(&mut gateway, &of_gateway).await.changes, 0);
            assert_eq!(pass(&mut agent, &of_agent).await.changes, 0);

            // New ones take over from the kernel: only the tables of nftables, whose text they cannot know, are made anew.
            assert_eq!(pass(&mut crate::reconciler(), &of_gateway).await.changes, 1);
            assert_eq!(pass(&mut self::agent(), &of_agent).await.changes, 1);
            pass(&mut gateway, &of_gateway).await;
            pass(&mut agent, &of_agent).await;

            let kept = "ip nexthop | grep -v 'id 14' ; ip rule show pref 583; ip -6 rule show pref 583; ip route show table 583
                ip -6 route show table 583; ip address show dev subsea0; nft -s list table inet subsea";
            let before = sh(kept);
            let refused = cleanup(&settings(), &Saved::new()).await;
            assert!(refused.is_empty(), "{refused:?}");
            assert_eq!(sh(kept), before);
            assert_eq!(pass(&mut gateway, &of_gateway).await.changes, 0);
            let left = sh(
                "ip link; ip rule; ip -6 rule; ip nexthop; nft list tables; ip route show table all",
            );
            for ours in [
                "subsea-vx",
                "lookup 58",
                "subsea-agent",
                "table 584",
                "table 585",
            ] {
                let left = left.replace("lookup 583", "");
                assert!(!left.contains(ours), "{ours} is left in {left}");
            }
            pass(&mut agent, &of_agent).await;
            let before = sh(
                "ip nexthop | grep 'id 14'; ip rule show pref 582; ip route show table 584; nft -s list table inet subsea-agent",
            );
            assert!(
                cleanup(&Settings::default(), &Saved::new())
                    .await
                    .is_empty()
            );
            assert_eq!(
                sh(
                    "ip nexthop | grep 'id 14'; ip rule show pref 582; ip route show table 584; nft -s list table inet subsea-agent"
                ),
                before
            );
            assert_eq!(pass(&mut agent, &of_agent).await.changes, 0);
        });
    });
}

/// A gateway's, with a next hop of its own.
fn gateway_wanted() -> Desired {
    let mut desired = crate::wanted();
    let id = 0x5300_0001;
    desired
        .next_hops
        .insert(NextHop::device(id, Family::V4, "pod0"));
    desired
}
