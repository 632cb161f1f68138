//! Convergence, rest, and what others undo.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use subsea::host::desired::desired;
use subsea::host::{Input, Settings};
use subsea::net::netlink;

use crate::space::{in_namespace, nft, run_without_tools, sh};
use crate::{input, make_tun, pass, reconciler, run, settle, wanted};

fn json(script: &str) -> Vec<Value> {
    serde_json::from_str(&sh(script)).unwrap()
}

/// `dst type/dev metric src` of every route of our table.
fn routes(family: &str) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let mut lines: Vec<String> = json(&format!("ip -j {family} route show table 583"))
        .iter()
        .map(|r| {
            let leads = if r["type"] == "unreachable" {
                "unreachable".into()
            } else {
                text(&r["dev"])
            };
            format!(
                "{} {leads} {} {} proto {}",
                text(&r["dst"]),
                r["metric"],
                text(&r["prefsrc"]),
                text(&r["protocol"])
            )
        })
        .collect();
    lines.sort();
    lines
}

fn expected(family: &str) -> Vec<&'static str> {
    if family == "-4" {
        vec![
            "10.64.0.0/16 subsea0 100 198.19.0.1 proto 83",
            "10.64.0.0/16 unreachable 4294967295 - proto 83",
            "198.19.0.2 subsea0 100 198.19.0.1 proto 83",
            "198.19.0.2 unreachable 4294967295 - proto 83",
        ]
    } else {
        vec![
            "fd00:64::/48 subsea0 100 fd00:19::1 proto 83",
            "fd00:64::/48 unreachable 4294967295 - proto 83",
        ]
    }
}

fn check_all() {
    for family in ["-4", "-6"] {
        assert_eq!(routes(family), expected(family));
        let rules = sh(&format!("ip {family} rule show pref 583"));
        assert_eq!(
            rules.trim(),
            "583:\tnot from all fwmark 0x40/0x40 lookup 583 proto 83"
        );
    }
    let table = sh("nft -s list table inet subsea");
    for line in [
        "elements = { 10.32.0.0/16, 198.19.0.1 }",
        "elements = { 10.64.0.0/16, 198.19.0.2 }",
        "rt mtu",
    ] {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
}

#[test]
fn converges_and_then_rests() {
    in_namespace("healing::converges_and_then_rests", |_| {
        make_tun();
        run(async {
            let mut reconciler = reconciler();
            let first = pass(&mut reconciler, &wanted()).await;
            assert!(first.changes >= 12, "{first:?}");
            assert_eq!(first.problems, Vec::<String>::new());
            check_all();
            let link = &json("ip -j link show subsea0")[0];
            assert_eq!(link["mtu"], 1420);
            assert!(link["flags"].as_array().unwrap().iter().any(|f| f == "UP"));
            for (key, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/subsea0/rp_filter", "2"),
            ] {
                assert_eq!(
                    sh(&format!("cat /proc/sys/net/{key}")).trim(),
                    value,
                    "{key}"
                );
            }

            let second = pass(&mut reconciler, &wanted()).await;
            assert_eq!(second.changes, 0, "{second:?}");
            assert!(settle(&mut reconciler, &wanted()).await <= 1);

            // A new daemon finds all but the nftables table, whose text it cannot know, as it should be.
            let again = pass(&mut crate::reconciler(), &wanted()).await;
            assert_eq!(again.changes, 1, "{again:?}");
            check_all();
        });
    });
}

#[test]
fn what_others_undo_comes_back_at_once() {
    in_namespace("healing::what_others_undo_comes_back_at_once", |_| {
        make_tun();
        run(async {
            let mut reconciler = reconciler();
            pass(&mut reconciler, &wanted()).await;
            settle(&mut reconciler, &wanted()).await;
            for undo in [
                "ip route del 10.64.0.0/16 table 583 metric 100",
                "ip -6 route del fd00:64::/48 dev subsea0 table 583",
                "ip route del unreachable 10.64.0.0/16 table 583 metric 4294967295",
                "ip route replace blackhole 10.64.0.0/16 table 583 metric 100 proto 83",
                "ip route flush table 583",
                "ip rule del pref 583",
                "ip -6 rule del pref 583",
                "ip rule add pref 584 not fwmark 0x40/0x40 lookup 583 proto 83",
                "ip address flush dev subsea0",
                "ip link set subsea0 mtu 1400",
                "ip link set subsea0 down",
                "ip link set lo down",
                "nft delete table inet subsea",
                "nft flush chain inet subsea keep-source",
                "nft delete element inet subsea $(nft list table inet subsea | grep -o 'remote4-.' | head -1) '{ 10.64.0.0/16 }'",
                "nft flush ruleset",
            ] {
                sh(undo);
                let started = Instant::now();
                let heard =
                    tokio::time::timeout(Duration::from_secs(20), reconciler.changed()).await;
                assert!(heard.is_ok(), "`{undo}` was not heard");
                let report = pass(&mut reconciler, &wanted()).await;
                assert!(report.changes > 0, "after `{undo}`: {report:?}");
                println!("{undo}: healed after {:?}", started.elapsed());
                settle(&mut reconciler, &wanted()).await;
                check_all();
                assert_eq!(sh("ip rule show pref 584"), "");
                assert_eq!(
                    json("ip -j link show subsea0")[0]["mtu"],
                    1420,
                    "after `{undo}`"
                );
            }
        });
    });
}

#[test]
fn others_state_is_left_alone() {
    in_namespace("healing::others_state_is_left_alone", |_| {
        make_tun();
        sh(
            "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
            ip address add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.9
            ip route add 10.64.0.0/16 via 192.0.2.9; ip -6 route add fd00:64::/48 dev up0
            ip route add 10.64.0.0/16 dev up0 table 583 metric 7
            ip route add 10.99.0.0/16 dev up0 table 583
            ip rule add pref 583 from 10.1.0.0/16 lookup 583
            ip rule add pref 100 fwmark 0x1 lookup 77 proto 83",
        );
        nft(
            "table inet other { chain c { type filter hook forward priority 0; policy accept; counter; } }",
        );
        let others = "ip route show table main; ip -6 route show table main | grep -v fe80; ip route show table 583 | grep -v 'proto 83'
            ip rule | grep -v 'lookup 583 proto 83'; ip -6 rule | grep -v 'lookup 583 proto 83'; nft list table inet other";
        let before = sh(others);
        run(async {
            let mut reconciler = reconciler();
            pass(&mut reconciler, &wanted()).await;
            assert_eq!(sh(others), before);
            let none = desired(&Input {
                remote: BTreeMap::new(),
                ..input()
            });
            pass(&mut reconciler, &none).await;
            assert_eq!(sh(others), before);
            assert_eq!(
                sh(
                    "ip route show table 583 proto 83; ip -6 route show table 583; ip -6 rule | grep 583 || true"
                ),
                ""
            );

            // Somebody else's route exactly in our place is named and not replaced.
            sh("ip route add 10.64.0.0/16 dev up0 table 583 metric 100 proto static");
            let report = reconciler.reconcile(&wanted()).await.unwrap();
            assert!(!report.converged());
            assert!(
                report
                    .problems
                    .iter()
                    .any(|p| p.contains("of somebody else")),
                "{report:?}"
            );
            assert!(
                sh("ip route show table 583 metric 100")
                    .starts_with("10.64.0.0/16 dev up0 proto static")
            );
        });
    });
}

#[test]
fn without_tools_routing_works_and_the_lack_is_named() {
    const NAME: &str = "healing::without_tools_routing_works_and_the_lack_is_named";
    in_namespace(NAME, |role| {
        if role == "main" {
            make_tun();
            run_without_tools(NAME, "without tools");
            assert_eq!(routes("-4"), expected("-4"));
            return;
        }
        run(async {
            let report = reconciler().reconcile(&wanted()).await.unwrap();
            assert_eq!(report.failed, 1, "{report:?}");
            let said = report.problems.join("\n");
            assert!(
                said.contains("the tool `nft` is missing: install the package `nftables`"),
                "{said}"
            );
            assert!(
                said.contains("the tool `conntrack` is missing: install the package `conntrack`"),
                "{said}"
            );
        });
    });
}

#[test]
fn without_its_checks_no_tunnel_is_opened() {
    const NAME: &str = "healing::without_its_checks_no_tunnel_is_opened";
    in_namespace(NAME, |role| {
        let wanted = desired(&Input {
            checks: true,
            ..input()
        });
        if role == "main" {
            make_tun();
            run_without_tools(NAME, "without tools");
            assert_eq!(routes("-4").len(), 2, "only backstops: {:?}", routes("-4"));
            let up = json("ip -j link show subsea0")[0]["flags"].clone();
            assert!(!up.as_array().unwrap().contains(&"UP".into()), "{up}");
            run(async {
                let mut reconciler = reconciler();
                pass(&mut reconciler, &wanted).await;
                assert_eq!(pass(&mut reconciler, &wanted).await.changes, 0);
            });
            assert_eq!(routes("-4"), expected("-4"));
            // What is open is closed when the checks are gone and cannot be put back, and stays open while they are there.
            run_without_tools(NAME, "without tools");
            assert_eq!(routes("-4"), expected("-4"));
            sh("nft delete table inet subsea");
            run_without_tools(NAME, "without tools");
            assert_eq!(routes("-4").len(), 2, "only backstops: {:?}", routes("-4"));
            run(async { pass(&mut reconciler(), &wanted).await });
            assert_eq!(routes("-4"), expected("-4"));
            return;
        }
        run(async {
            let report = reconciler().reconcile(&wanted).await.unwrap();
            let said = report.problems.join("\n");
            assert!(said.contains("no tunnel is opened"), "{said}");
        });
    });
}

#[test]
fn foreign_drops_and_early_translations_are_named() {
    in_namespace(
        "healing::foreign_drops_and_early_translations_are_named",
        |_| {
            make_tun();
            nft("table ip filter { chain FORWARD { type filter hook forward priority filter; policy drop; } }
             table ip early { chain post { type nat hook postrouting priority 50; oifname \"up0\" masquerade; } }");
            run(async {
                let mut reconciler = reconciler();
                for _ in 0..2 {
                    let said = pass(&mut reconciler, &wanted()).await.problems;
                    assert_eq!(said.len(), 2, "{said:?}");
                    assert!(
                        said[0].contains("chain `FORWARD` of table `ip filter`"),
                        "{said:?}"
                    );
                    assert!(
                        said[1].contains("chain `post` of table `ip early`"),
                        "{said:?}"
                    );
                }
                sh("nft delete table ip early
                nft add rule ip filter FORWARD iifname subsea0 accept; nft add rule ip filter FORWARD oifname subsea0 accept");
                assert_eq!(
                    pass(&mut reconciler, &wanted()).await.problems,
                    Vec::<String>::new()
                );
            });
        },
    );
}

#[test]
fn host_routes_and_addresses_are_told_apart() {
    in_namespace("healing::host_routes_and_addresses_are_told_apart", |_| {
        make_tun();
        sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
            ip address add 192.0.2.1/24 dev up0; ip address add fd00:9::1/64 dev up0 nodad
            ip route add 10.200.0.0/16 via 192.0.2.9; ip route add 10.201.0.0/16 nexthop via 192.0.2.8 nexthop via 192.0.2.9
            ip route add 10.202.0.0/16 dev up0 table 9");
        run(async {
            pass(&mut reconciler(), &wanted()).await;
            let routes = netlink::host_routes().await.unwrap();
            let line = |r: &subsea_api::conflict::HostRoute| {
                format!("{} connected={} ours={}", r.text, r.connected, r.ours)
            };
            let lines: Vec<String> = routes.iter().map(line).collect();
            for expected in [
                "192.0.2.0/24 dev up0 proto kernel scope link src 192.0.2.1 connected=true ours=false",
                "10.200.0.0/16 via 192.0.2.9 dev up0 proto boot connected=false ours=false",
                "10.201.0.0/16 proto boot nexthop via 192.0.2.8 dev up0 nexthop via 192.0.2.9 dev up0 connected=false ours=false",
                "10.202.0.0/16 dev up0 table 9 proto boot scope link connected=false ours=false",
                "fd00:9::/64 dev up0 proto kernel metric 256 connected=true ours=false",
                "unreachable fd00:64::/48 table 583 proto 83 metric 4294967295 connected=false ours=true",
            ] {
                assert!(
                    lines.iter().any(|l| l == expected),
                    "{expected} is not in\n{}",
                    lines.join("\n")
                );
            }
            assert!(
                !lines
                    .iter()
                    .any(|l| l.contains("127.0.0.1") || l.contains("ff00::")),
                "{lines:?}"
            );
            let addresses: Vec<String> = netlink::host_addresses()
                .await
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(
                addresses,
                ["192.0.2.1", "198.19.0.1", "fd00:9::1", "fd00:19::1"]
            );
        });
    });
}

#[test]
fn settings_that_belong_to_the_system_are_refused() {
    for (settings, word) in [
        (
            Settings {
                table: 254,
                ..Settings::default()
            },
            "table 254",
        ),
        (
            Settings {
                device: Some("a\"; flush ruleset".into()),
                ..Settings::default()
            },
            "no device name",
        ),
        (
            Settings {
                device: Some("lo".into()),
                ..Settings::default()
            },
            "`lo`",
        ),
        (
            Settings {
                mark: subsea::host::Mark {
                    value: 0x40,
                    mask: 0x20,
                },
                ..Settings::default()
            },
            "mark 0x40/0x20",
        ),
    ] {
        let error = run(async {
            subsea::host::Reconciler::new(settings)
                .unwrap_err()
                .to_string()
        });
        assert!(error.contains(word), "{error}");
    }
}
