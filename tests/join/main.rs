//! Joining and leaving: the real `subsea` against the real `subsea-broker`, on the loopback.

mod crash;
mod fleet;
mod gateway;
mod in_cluster;
mod lease;
mod leave;
#[path = "../kube/bed/ports.rs"]
mod ports;
mod preflight;
mod refusal;
mod service_account;
#[path = "../../broker/tests/signer/mod.rs"]
mod signer;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fleet::Fleet;

/// The blocks of `east` in most tests.
const EAST: &str = "--pod-cidr 10.32.0.0/16 --service-cidr 10.112.0.0/20";

#[test]
fn a_cluster_joins_and_its_secrets_are_its_own() {
    let fleet = Fleet::start();
    let ran = fleet
        .join("east", &format!("--cluster east {EAST}"))
        .exits(0);
    let dir = fleet.path("east");
    insta::assert_snapshot!(ran.out.replace(&dir, "DIR"), @r"
    member `gw-1` of cluster `east` in fleet `harbour`

    KIND     CIDR           ROUTED BY OTHERS
    pod      10.32.0.0/16   yes
    service  10.112.0.0/20  yes

    registered, not connected: start `subsea gateway --state-dir DIR`
    ");
    assert_eq!(ran.err, "");
    assert_eq!(fleet.clusters(), ["east"]);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(&dir)), 0o700);
    for name in ["member.json", "tls.key", "tls.crt", "lock"] {
        assert_eq!(mode(&Path::new(&dir).join(name)), 0o600, "{name}");
    }
    let key = fs::read_to_string(Path::new(&dir).join("tls.key")).expect("read");
    assert!(key.contains("PRIVATE KEY"));
}

#[test]
fn several_blocks_of_both_families_and_automatic_ones() {
    let fleet = Fleet::start();
    fleet
        .join(
            "east",
            "--pod-cidr 10.32.0.0/16,fd00:32::/56 --pod-cidr 10.33.0.0/16 --service-cidr 10.112.0.0/20 \
             --service-cidr fd00:112::/112 --node-cidr 192.0.2.0/24,2001:db8:1::/64 --export-nodes",
        )
        .exits(0);
    let ran = fleet
        .join("west", "--pod-cidr auto/16 --service-cidr auto/20")
        .exits(0);
    assert!(ran.out.contains("pod      10.34.0.0/16"), "{}", ran.out);
    assert!(ran.out.contains("service  10.112.16.0/20"), "{}", ran.out);
    // Asked again, also with a new token, what `auto` was resolved to is the answer.
    let file = fleet.token("west", "member");
    let again = fleet
        .join_with(&file, "west", "--pod-cidr auto/16 --service-cidr auto/20")
        .exits(0);
    assert_eq!(again.out, ran.out);
}

#[test]
fn a_further_gateway_joins_without_blocks() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let file = fleet.token("east", "gateway");
    let dir = fleet.path("east-2");
    let ran = fleet::subsea(&format!("join {file} --node gw-2 --state-dir {dir}")).exits(0);
    assert!(
        ran.out.starts_with("gateway `gw-2` of cluster `east`"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("10.32.0.0/16"), "{}", ran.out);
    // A further gateway of no member, or of the same name.
    let file = fleet.token("north", "gateway");
    fleet
        .join_with(&file, "north", "")
        .fails(1, "hint: join the cluster first");
    let file = fleet.token("east", "gateway");
    fleet
        .join_with(&file, "east-3", "")
        .fails(1, "has a gateway gw-1 already");
}

#[test]
fn a_member_changes_its_blocks_with_a_new_token() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let other = "--pod-cidr 10.40.0.0/16 --service-cidr 10.112.0.0/20";
    let ran = fleet.join("east", other).exits(0);
    assert!(
        ran.out.starts_with("member `gw-1`") && ran.out.contains("10.40.0.0/16"),
        "{}",
        ran.out
    );
    let again = fleet.join("east", other).exits(0);
    assert_eq!(again.out, ran.out);
    let shown = fleet
        .admin("cluster show east -o json")
        .exits(0)
        .json()
        .to_string();
    assert!(
        shown.contains("10.40.0.0/16") && !shown.contains("10.32.0.0/16"),
        "{shown}"
    );
}

#[test]
fn a_state_directory_is_one_nodes() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let file = fleet.token("west", "member");
    let west = "--pod-cidr 10.50.0.0/16 --service-cidr 10.113.0.0/20";
    fleet.join_with(&file, "east", west).fails(
        1,
        "belongs to member `gw-1` of cluster `east` in fleet `harbour`",
    );
    let file = fleet.token("east", "member");
    fleet::subsea(&format!(
        "join {file} --node gw-9 --state-dir {} {EAST}",
        fleet.path("east")
    ))
    .fails(1, "belongs to member `gw-1`");
    // Without `--node`, it is the one that it was.
    fleet::subsea(&format!(
        "join {file} --state-dir {} {EAST}",
        fleet.path("east")
    ))
    .exits(0);
    assert_eq!(fleet.clusters(), ["east"]);
}
