//! What network plugins and kube-proxy leave in a kernel is seen, and what is ours is not taken for it.

use subsea::host::{Footprints, footprints};

use crate::space::{in_namespace, sh};
use crate::{make_tun, pass, reconciler, run, wanted};

#[test]
fn what_others_have_made_is_seen_and_ours_is_left_out() {
    in_namespace(
        "footprints::what_others_have_made_is_seen_and_ours_is_left_out",
        |_| {
            make_tun();
            run(async {
                // With rules and a table of our own.
                pass(&mut reconciler(), &wanted()).await;
                let before = footprints().await.unwrap();
                assert!(!before.proxy_table && !before.proxy_canary, "{before:?}");
                assert_eq!(before.rules, [], "ours are ours");

                sh(
                "ip link add cali12ab type veth peer name eth9; ip link add kube-ipvs0 type veth peer name eth8
                 ip rule add pref 100 fwmark 0x80/0x80 lookup main; ip -6 rule add pref 101 fwmark 0x1/0xff lookup main
                 nft add table ip6 kube-proxy; nft add table ip nat; nft add chain ip nat KUBE-PROXY-CANARY",
            );
                let Footprints {
                    devices,
                    proxy_table,
                    proxy_canary,
                    mut rules,
                } = footprints().await.unwrap();
                assert!(proxy_table && proxy_canary);
                for (name, kind) in [("cali12ab", "veth"), ("kube-ipvs0", "veth")] {
                    assert!(devices.contains(&(name.to_owned(), Some(kind.to_owned()))));
                }
                rules.sort();
                let marks: Vec<String> = rules.iter().map(|(mark, _)| mark.to_string()).collect();
                assert_eq!(marks, ["0x1/0xff", "0x80/0x80"]);
                let text = &rules[0].1;
                assert!(
                    text.starts_with("-6 pref 101 from all fwmark 0x1/0xff"),
                    "{text}"
                );
            });
        },
    );
}
