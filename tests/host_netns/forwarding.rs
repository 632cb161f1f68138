//! Real packets: fail closed, the source survives, TCP learns the MTU. A veth stands for the tunnel device.

use std::io::Read as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::space::{Space, in_namespace, nft, sh};
use crate::{make_tun, pass, reconciler, run, settle, wanted};

/// A pod behind this namespace, which is the gateway.
fn pod() -> Space {
    let pod = Space::new();
    sh(&format!(
        "ip link add pod0 type veth peer name eth0 netns {}; ip link set pod0 up
         ip address add 10.32.0.1/24 dev pod0; ip address add fd00:32::1/64 dev pod0 nodad",
        pod.pid()
    ));
    pod.sh("ip link set eth0 up; ip address add 10.32.0.2/24 dev eth0; ip address add fd00:32::2/64 dev eth0 nodad
        ip route add default via 10.32.0.1; ip -6 route add default via fd00:32::1");
    pod
}

/// The underlay's router, by which the gateway's default routes lead, and a counter there of what must not come.
fn router() -> Space {
    let router = Space::new();
    sh(&format!(
        "ip link add up0 type veth peer name eth0 netns {}; ip link set up0 up
         ip address add 192.0.2.1/24 dev up0; ip address add fd00:9::1/64 dev up0 nodad",
        router.pid()
    ));
    router.sh("ip link set eth0 up; ip address add 192.0.2.9/24 dev eth0; ip address add fd00:9::9/64 dev eth0 nodad
        nft add table inet t; nft add chain inet t c '{ type filter hook prerouting priority -300; }'
        nft add rule inet t c ip daddr 10.64.0.0/16 counter drop; nft add rule inet t c ip6 daddr fd00:64::/48 counter drop");
    sh("ip route add default via 192.0.2.9; ip -6 route add default via fd00:9::9");
    router
}

/// The first packet counter of each family in a namespace.
fn counted(space: &Space, table: &str) -> Vec<u64> {
    let listing = space.sh(&format!("nft list table inet {table}"));
    listing
        .split("counter packets ")
        .skip(1)
        .map(|r| r.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn nothing_leaves_in_clear_when_the_device_goes() {
    in_namespace(
        "forwarding::nothing_leaves_in_clear_when_the_device_goes",
        |_| {
            make_tun();
            let (pod, router) = (pod(), router());
            sh(
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0",
            );
            let probe = "ping -c 2 -i 0.2 -W 1 10.64.0.9; ping -6 -c 2 -i 0.2 -W 1 fd00:64::9";
            // The probe of this test works: without us it does leave in clear.
            pod.try_sh(probe);
            assert_eq!(counted(&router, "t"), [2, 2]);
            run(async {
                let mut reconciler = reconciler();
                pass(&mut reconciler, &wanted()).await;
                settle(&mut reconciler, &wanted()).await;
                sh("ip link del subsea0");
                let heard =
                    tokio::time::timeout(Duration::from_secs(20), reconciler.changed()).await;
                assert!(heard.is_ok());
                for _ in 0..2 {
                    let from_pod = pod.try_sh(probe);
                    let said = String::from_utf8_lossy(&from_pod.stdout).into_owned();
                    assert!(
                        said.contains("Destination Host Unreachable") && said.contains("No route"),
                        "{said}"
                    );
                    let own = std::process::Command::new("sh")
                        .args(["-c", &format!("{probe} 2>&1")])
                        .output()
                        .unwrap();
                    assert!(!own.status.success());
                    assert_eq!(counted(&router, "t"), [2, 2], "it left in clear");

                    let report = reconciler.reconcile(&wanted()).await.unwrap();
                    assert!(!report.converged());
                    assert!(
                        report.problems[0].contains("device subsea0 is missing"),
                        "{report:?}"
                    );
                }
                make_tun();
                let heard =
                    tokio::time::timeout(Duration::from_secs(20), reconciler.changed()).await;
                assert!(heard.is_ok(), "a new device was not heard");
                pass(&mut reconciler, &wanted()).await;
                assert!(
                    sh("ip route get 10.64.0.9").contains("dev subsea0 table 583 src 198.19.0.1")
                );
                assert!(
                    sh("ip -6 route get fd00:64::9")
                        .contains("dev subsea0 table 583 proto 83 src fd00:19::1")
                );
                assert!(
                    sh("ip route get 10.64.0.9 mark 0x40").contains("via 192.0.2.9"),
                    "our own sockets go round"
                );
            });
        },
    );
}

/// The other cluster behind a veth called `subsea0`.
fn far() -> Space {
    let far = Space::new();
    sh(&format!(
        "ip link add subsea0 type veth peer name eth0 netns {}; ip link set subsea0 up",
        far.pid()
    ));
    // Its own link is wide: only our clamp can make the segments fit.
    far.sh("ip link set eth0 up; ip address add 10.64.0.9/16 dev eth0; ip address add fd00:64::9/48 dev eth0 nodad
        ip route add default dev eth0; ip -6 route add default dev eth0");
    let mac = far.sh("ip -br link show eth0 | awk '{ print $3 }'");
    sh(&format!(
        "ip neigh add 10.64.0.9 lladdr {0} dev subsea0; ip -6 neigh add fd00:64::9 lladdr {0} dev subsea0",
        mac.trim()
    ));
    let mac = sh("ip -br link show subsea0 | awk '{ print $3 }'");
    for own in ["10.32.0.2", "fd00:32::2", "198.19.0.1", "fd00:19::1"] {
        far.sh(&format!(
            "ip neigh add {own} lladdr {} dev eth0",
            mac.trim()
        ));
    }
    far
}

const MASQUERADE: &str = "chain post { type nat hook postrouting priority srcnat; oifname subsea0 masquerade; oifname pod0 masquerade; }";

#[test]
fn the_source_survives_masquerades_before_and_after_ours() {
    in_namespace(
        "forwarding::the_source_survives_masquerades_before_and_after_ours",
        |_| {
            sh("ip link set lo up");
            let (pod, far) = (pod(), far());
            for (space, source4, source6) in [
                (&far, "10.32.0.2", "fd00:32::2"),
                (&pod, "10.64.0.9", "fd00:64::9"),
            ] {
                space.sh(&format!(
                "nft add table inet t; nft add chain inet t c '{{ type filter hook input priority 0; }}'
                 nft add rule inet t c ip saddr {source4} icmp type echo-request counter
                 nft add rule inet t c ip6 saddr {source6} icmpv6 type echo-request counter"
            ));
            }
            let there = "ping -c 2 -i 0.2 -W 10 10.64.0.9; ping -6 -c 2 -i 0.2 -W 10 fd00:64::9";
            let back = "ping -c 2 -i 0.2 -W 10 10.32.0.2; ping -6 -c 2 -i 0.2 -W 10 fd00:32::2";
            nft(&format!("table inet before {{ {MASQUERADE} }}"));
            // The foreign rule works: without us the source is the gateway's.
            sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            ip address add 198.19.0.1/32 dev subsea0; ip address add fd00:19::1/128 dev subsea0 nodad
            ip route add 10.64.0.0/16 dev subsea0; ip -6 route add fd00:64::/48 dev subsea0");
            pod.try_sh(there);
            assert_eq!(counted(&far, "t"), [0, 0]);
            let theirs =
                || sh("nft list table inet before; nft list table inet after 2>/dev/null || true");
            run(async {
                let before = theirs();
                let mut reconciler = reconciler();
                pass(&mut reconciler, &wanted()).await;
                pod.sh(there);
                assert_eq!(counted(&far, "t"), [2, 2]);
                nft(&format!("table inet after {{ {MASQUERADE} }}"));
                assert_ne!(theirs(), before);
                pod.sh(there);
                assert_eq!(counted(&far, "t"), [4, 4]);
                // What the other side opens keeps its source on the way in.
                far.sh(back);
                assert_eq!(counted(&pod, "t"), [2, 2]);
                let with_both = theirs();
                pass(&mut reconciler, &wanted()).await;
                assert_eq!(theirs(), with_both);
            });
        },
    );
}

#[test]
fn flows_from_before_are_forgotten() {
    in_namespace("forwarding::flows_from_before_are_forgotten", |_| {
        make_tun();
        // In use, so that the kernel tracks flows here.
        nft(
            "table inet t { chain c { type nat hook postrouting priority srcnat; ip daddr 203.0.113.1 masquerade; } }",
        );
        let insert = "conntrack -I -t 300 -p udp --dport 7 2>/dev/null";
        sh(&format!(
            "{insert} -s 10.32.0.2 -d 10.64.0.3 --sport 5 --src-nat 192.0.2.1
             {insert} -s 10.32.0.2 -d 10.64.0.3 --sport 6
             {insert} -s 10.32.0.2 -d 10.77.0.3 --sport 7 --src-nat 192.0.2.1
             {insert} -s fd00:32::2 -d fd00:64::3 --sport 8 --src-nat fd00:9::1"
        ));
        run(async {
            let mut reconciler = reconciler();
            pass(&mut reconciler, &wanted()).await;
            let left = sh("conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null");
            assert!(
                !left.contains("sport=5 ") && !left.contains("sport=8 "),
                "{left}"
            );
            assert!(
                left.contains("sport=6 ") && left.contains("sport=7 "),
                "{left}"
            );
        });
    });
}

const CLAMP: &str = "forwarding::tcp_learns_the_mtu_in_both_directions";

#[test]
fn tcp_learns_the_mtu_in_both_directions() {
    in_namespace(CLAMP, |role| {
        if role == "server" {
            let server = TcpListener::bind("[::]:7000").unwrap();
            for stream in server.incoming() {
                let _ = stream.unwrap().read(&mut [0; 16]);
            }
        }
        sh("ip link set lo up");
        let (pod, far) = (pod(), far());
        let count =
            "nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'";
        for space in [&pod, &far] {
            space.sh(count);
            // The SYN and the SYN-ACK that come in, at the tunnel's MTU less the headers of IP and TCP.
            for (family, size) in [("ipv4", 1380), ("ipv6", 1360)] {
                for flags in ["syn", "syn | ack"] {
                    space.sh(&format!(
                        "nft add rule inet t c meta nfproto {family} 'tcp flags & (syn | ack) == {flags}' \
                         tcp option maxseg size {size} counter"
                    ));
                }
            }
        }
        let (_at_far, _at_pod) = (
            far.spawn_role(CLAMP, "server"),
            pod.spawn_role(CLAMP, "server"),
        );
        run(async {
            pass(&mut reconciler(), &wanted()).await;
            // Pod opens, far opens, in both families: each side sees one SYN and one SYN-ACK of a fitting size.
            for (space, addresses) in [
                (&pod, ["10.64.0.9", "fd00:64::9"]),
                (&far, ["10.32.0.2", "fd00:32::2"]),
            ] {
                for address in addresses {
                    let deadline = Instant::now() + Duration::from_secs(30);
                    while !space
                        .try_sh(&format!("timeout 1 bash -c '</dev/tcp/{address}/7000'"))
                        .status
                        .success()
                    {
                        assert!(Instant::now() < deadline, "no answer from {address}");
                    }
                }
            }
        });
        for space in [&pod, &far] {
            let counts = counted(space, "t");
            assert!(
                counts.len() == 4 && counts.iter().all(|c| *c >= 1),
                "{counts:?}"
            );
        }
    });
}
