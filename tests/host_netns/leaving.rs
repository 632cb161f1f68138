//! Cleaning up leaves the host as it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use subsea::host::{Settings, cleanup};
use subsea::net::sysctl::Saved;

use crate::space::{in_namespace, nft, sh};
use crate::{make_tun, pass, reconciler, run, wanted};

/// Everything of the kernel that we could have touched.
fn state() -> String {
    sh(
        "ip -o link; ip address; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; nft list ruleset",
    )
}

/// Every switch of forwarding, filtering and advertisements.
fn parameters() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![
        Path::new("/proc/sys/net/ipv4/conf").to_owned(),
        "/proc/sys/net/ipv6/conf".into(),
    ];
    found.insert("ip_forward".into(), sh("cat /proc/sys/net/ipv4/ip_forward"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if let Ok(value) = std::fs::read_to_string(&entry) {
                found.insert(entry.display().to_string(), value);
            }
        }
    }
    found
}

#[test]
fn cleanup_leaves_the_host_as_it_was() {
    in_namespace("leaving::cleanup_leaves_the_host_as_it_was", |_| {
        // Without duplicate address detection: an address that stops to be tentative would look like ours to have changed.
        sh("sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up; ip link add up0 type veth peer name up1
            sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv6.conf.up0.accept_ra=1
            sysctl -qw net.ipv6.conf.all.autoconf=0 net.ipv4.conf.up1.forwarding=1 net.ipv4.conf.all.accept_redirects=0
            ip link set up0 up; ip link set up1 up; ip address add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.9
            ip route add 10.64.0.0/16 via 192.0.2.9; ip route add 10.99.0.0/16 dev up0 table 583
            ip rule add pref 583 from 10.1.0.0/16 lookup 583; sleep 2");
        nft(
            "table inet other { chain c { type nat hook postrouting priority srcnat; oifname \"up0\" masquerade; } }",
        );
        let (before, before_parameters) = (state(), parameters());
        make_tun();
        run(async {
            let kept = Arc::new(Mutex::new(Saved::new()));
            let keep = Arc::clone(&kept);
            let persist = move |saved: &Saved| {
                keep.lock().unwrap().clone_from(saved);
                Ok(())
            };
            let mut reconciler = reconciler().with_saved_sysctls(Saved::new(), Box::new(persist));
            pass(&mut reconciler, &wanted()).await;
            assert_eq!(parameters()["/proc/sys/net/ipv6/conf/up0/accept_ra"], "2\n");
            let saved = kept.lock().unwrap().clone();
            assert_eq!(&saved, reconciler.saved_sysctls());
            drop(reconciler);

            assert_ne!(state(), before);
            let errors = cleanup(&Settings::default(), &saved).await;
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(state(), before);
            let after = parameters();
            let differing: Vec<_> = before_parameters
                .iter()
                .filter(|(k, v)| after.get(*k) != Some(v))
                .collect();
            assert!(differing.is_empty(), "{differing:?}");
            assert_eq!(after.len(), before_parameters.len());

            // Once more, with nothing left to do.
            assert!(cleanup(&Settings::default(), &saved).await.is_empty());
            assert_eq!(state(), before);
        });
    });
}

#[test]
fn a_device_of_another_kind_is_kept_and_loses_only_our_address() {
    in_namespace(
        "leaving::a_device_of_another_kind_is_kept_and_loses_only_our_address",
        |_| {
            sh(
                "ip link set lo up; ip link add subsea0 type veth peer name far0; ip address add 192.0.2.1/24 dev subsea0",
            );
            run(async {
                pass(&mut reconciler(), &wanted()).await;
                assert!(sh("ip address show dev subsea0").contains("198.19.0.1/32"));
                assert!(
                    cleanup(&Settings::default(), &Saved::new())
                        .await
                        .is_empty()
                );
                let left = sh("ip address show dev subsea0");
                assert!(
                    left.contains("192.0.2.1/24")
                        && !left.contains("198.19.0.1")
                        && !left.contains("fd00:19::1"),
                    "{left}"
                );
            });
        },
    );
}

#[test]
fn a_parameter_that_cannot_be_saved_is_left_as_it_is() {
    in_namespace(
        "leaving::a_parameter_that_cannot_be_saved_is_left_as_it_is",
        |_| {
            make_tun();
            sh("sysctl -qw net.ipv4.ip_forward=0");
            run(async {
                let full = |_: &Saved| Err("no space left on device".to_owned());
                let mut reconciler = reconciler().with_saved_sysctls(Saved::new(), Box::new(full));
                let report = reconciler.reconcile(&wanted()).await.unwrap();
                assert!(!report.converged());
                assert!(
                    report
                        .problems
                        .iter()
                        .any(|p| p.contains("`net/ipv4/ip_forward`") && p.contains("no space")),
                    "{report:?}"
                );
                assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
            });
        },
    );
}
