//! The check before a join, and the same table when the join finds the conflict.

use crate::EAST;
use crate::fleet::{Fleet, in_namespace, subsea};

const OVERLAP: &str = "--pod-cidr 10.32.128.0/17 --service-cidr 10.112.0.0/12";

#[test]
fn every_pair_that_conflicts_is_shown_with_what_is_free() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let file = fleet.token("west", "member");
    let ran = subsea(&format!("preflight {file} --cluster west {OVERLAP}")).exits(2);
    insta::assert_snapshot!("preflight_conflicts", ran.out);
    let json = subsea(&format!("preflight {file} {OVERLAP} -o json"))
        .exits(2)
        .json();
    assert_eq!(json["ok"], false);
    let pairs = json["report"]["conflicts"].as_array().expect("a list");
    assert_eq!(pairs.len(), 2, "{json}");
    assert_eq!(pairs[0]["existing"]["owner"]["cluster"], "east");
    assert_eq!(pairs[0]["common"], "10.32.128.0/17");
    assert_eq!(json["host_conflicts"], serde_json::json!([]));
    let yaml = subsea(&format!("preflight {file} {OVERLAP} -o yaml"))
        .exits(2)
        .out;
    assert!(yaml.starts_with("ok: false\n"), "{yaml}");
    // The join shows the same, and burns nothing: with what was free, the same file and directory do.
    let joined = fleet
        .join_with(&file, "west", OVERLAP)
        .fails(2, "2 pairs of blocks conflict");
    assert_eq!(joined.out, ran.out);
    let skipping = fleet
        .join_with(&file, "west", &format!("{OVERLAP} --skip-host-routes"))
        .exits(2);
    assert_eq!(skipping.out, ran.out);
    assert_eq!(fleet.clusters(), ["east"]);
    // Without the key of the node that admitted it, nobody can say whether a member would be taken again.
    let again = fleet.token("east", "member");
    let ran = subsea(&format!("preflight {again} {EAST}")).exits(0);
    assert!(
        ran.out
            .starts_with("no conflicts: cluster `east` is a member of fleet `harbour` already"),
        "{}",
        ran.out
    );
    let free = "--pod-cidr 10.33.0.0/17 --service-cidr 10.128.0.0/12";
    let ran = subsea(&format!("preflight {file} {free}")).exits(0);
    assert!(
        ran.out
            .starts_with("no conflicts: cluster `west` can join fleet `harbour`"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("10.33.0.0/17"), "{}", ran.out);
    fleet.join_with(&file, "west", free).exits(0);
}

#[test]
fn a_cluster_that_overlaps_itself_is_refused() {
    let fleet = Fleet::start();
    let file = fleet.token("east", "member");
    let ran = fleet
        .join_with(
            &file,
            "east",
            "--pod-cidr 10.96.0.0/14 --service-cidr 10.96.0.0/12",
        )
        .fails(2, "1 pair of blocks conflicts");
    assert_eq!(ran.out.matches("cluster east").count(), 2, "{}", ran.out);
    let loopback = "--pod-cidr 127.0.0.0/16 --service-cidr 10.96.0.0/12";
    let ran = fleet.join_with(&file, "east", loopback).exits(2);
    assert!(ran.out.contains("loopback 127.0.0.0/8"), "{}", ran.out);
    assert!(fleet.clusters().is_empty());
}

#[test]
fn routes_of_the_host_that_lead_elsewhere_are_conflicts_and_links_are_warnings() {
    let script = "
        ip link add lan type veth peer name far
        ip address add 10.32.7.1/24 dev lan
        ip address add 192.0.2.1/24 dev lan
        ip link set far up
        ip link set lan up
        ip route add 10.112.0.0/24 via 192.0.2.2
        ip route add default via 192.0.2.2
    ";
    let name =
        "preflight::routes_of_the_host_that_lead_elsewhere_are_conflicts_and_links_are_warnings";
    if !in_namespace(name, script) {
        return;
    }
    let fleet = Fleet::start();
    fleet
        .join("east", &format!("{EAST} --skip-host-routes"))
        .exits(0);
    let file = fleet.token("west", "member");
    let blocks = "--pod-cidr 10.50.0.0/16 --service-cidr 10.128.0.0/20";
    let ran = subsea(&format!("preflight {file} {blocks}")).exits(2);
    assert!(
        ran.out.contains("route 10.112.0.0/24 via 192.0.2.2"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("this host") && ran.out.contains("service 10.112.0.0/20"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("10.32.7"), "{}", ran.out);
    assert!(
        ran.err.contains("warning: route 10.32.7.0/24"),
        "{}",
        ran.err
    );
    let json = subsea(&format!("preflight {file} {blocks} -o json"))
        .exits(2)
        .json();
    assert_eq!(
        json["host_conflicts"].as_array().map(Vec::len),
        Some(1),
        "{json}"
    );
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(1), "{json}");
    assert_eq!(json["report"]["conflicts"], serde_json::json!([]));
    let joined = fleet.join_with(&file, "west", blocks).exits(2);
    assert_eq!(joined.out, ran.out);
    assert_eq!(fleet.clusters(), ["east"]);
    // The further gateway of another cluster looks at its host too; east's own routes are expected.
    let gateway = fleet.token("east", "gateway");
    subsea(&format!(
        "join {gateway} --node gw-2 --state-dir {}",
        fleet.path("east-2")
    ))
    .exits(0);
    fleet
        .join_with(&file, "west", &format!("{blocks} --skip-host-routes"))
        .exits(0);
}
