//! Leaving, as far as no gateway runs; with one, it is in the namespace tests.

use std::fs;
use std::path::Path;

use crate::EAST;
use crate::fleet::{Fleet, subsea};

fn leave(fleet: &Fleet, dir: &str, flags: &str) -> crate::fleet::Ran {
    subsea(&format!("leave --state-dir {} {flags}", fleet.path(dir)))
}

#[test]
fn a_cluster_leaves_and_its_directory_goes() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let ran = leave(&fleet, "east", "").exits(0);
    assert!(
        ran.out.contains("the broker removed cluster `east`"),
        "{}",
        ran.out
    );
    assert!(fleet.clusters().is_empty());
    assert!(!Path::new(&fleet.path("east")).exists());
    leave(&fleet, "east", "").fails(1, "there is no state directory");
    // Its blocks rest for others, not for itself.
    let file = fleet.token("west", "member");
    fleet.join_with(&file, "west", EAST).exits(2);
    fleet.join("east", EAST).exits(0);
}

#[test]
fn files_of_others_stay() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let mine = Path::new(&fleet.path("east")).join("notes.txt");
    fs::write(&mine, "mine").expect("written");
    let ran = leave(&fleet, "east", "").exits(0);
    assert!(ran.out.contains("others are left in it"), "{}", ran.out);
    assert!(mine.exists());
    let names = fs::read_dir(fleet.path("east")).expect("listed").count();
    assert_eq!(names, 1);
}

#[test]
fn without_the_broker_nothing_is_torn_down_unless_asked() {
    let mut fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    fleet.down();
    let ran = leave(&fleet, "east", "").fails(1, "nothing was removed: ");
    assert!(
        ran.err.contains("cannot be reached") && ran.err.contains("`--local`"),
        "{}",
        ran.err
    );
    assert!(Path::new(&fleet.path("east")).join("member.json").exists());
    let ran = leave(&fleet, "east", "--local").fails(0, "subsea-broker cluster forget east");
    assert!(!ran.out.contains("broker removed"), "{}", ran.out);
    assert!(!Path::new(&fleet.path("east")).exists());
    fleet.up();
    assert_eq!(fleet.clusters(), ["east"]);
}

#[test]
fn a_member_that_the_broker_knows_no_more_leaves_all_the_same() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    fleet.admin("cluster forget east").exits(0);
    let ran = leave(&fleet, "east", "").exits(0);
    assert!(
        ran.out
            .contains("the broker knew no more of cluster `east`"),
        "{}",
        ran.out
    );
    let west = "--pod-cidr 10.50.0.0/16 --service-cidr 10.128.0.0/20";
    fleet.join("west", west).exits(0);
    fleet.admin("cluster revoke west").exits(0);
    leave(&fleet, "west", "").exits(0);
    assert!(!Path::new(&fleet.path("west")).exists());
}

#[test]
fn a_further_gateway_leaves_alone() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let file = fleet.token("east", "gateway");
    let dir = fleet.path("east-2");
    subsea(&format!("join {file} --node gw-2 --state-dir {dir}")).exits(0);
    leave(&fleet, "east-2", "").exits(0);
    assert_eq!(fleet.clusters(), ["east"]);
    assert!(!Path::new(&dir).exists());
}

#[test]
fn an_expired_certificate_is_renewed_to_leave() {
    let fleet = Fleet::with(&["--fleet", "harbour", "--certificate-lifetime", "6s"]);
    fleet.join("east", EAST).exits(0);
    std::thread::sleep(std::time::Duration::from_millis(6_100));
    let ran = leave(&fleet, "east", "").exits(0);
    assert!(
        ran.out.contains("the broker removed cluster `east`"),
        "{}",
        ran.out
    );
    assert!(fleet.clusters().is_empty());
}

#[test]
fn an_agent_enrols_beside_its_gateway_and_leaves_alone() {
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let file = fleet.token("east", "agent");
    fleet
        .join_with(&file, "agent", EAST)
        .fails(64, "does not go with a join file of role `agent`");
    let ran = fleet.join_with(&file, "agent", "").exits(0);
    assert!(
        ran.out.starts_with("agent `gw-1` of cluster `east`"),
        "{}",
        ran.out
    );
    let ran = leave(&fleet, "agent", "").exits(0);
    assert!(
        ran.out
            .contains("the broker removed `gw-1` of cluster `east`"),
        "{}",
        ran.out
    );
    assert!(!Path::new(&fleet.path("agent")).exists());
    assert_eq!(fleet.clusters(), ["east"]);
    let log = fleet.admin("audit list -o json").exits(0).json();
    let removed = |line: &serde_json::Value| {
        line["action"] == "agent.remove" && line["who"] == "cluster/east/agent/gw-1"
    };
    assert!(log.as_array().expect("a list").iter().any(removed), "{log}");
    // One whose cluster left before is known no more.
    let file = fleet.token("east", "agent");
    fleet.join_with(&file, "agent", "").exits(0);
    leave(&fleet, "east", "").exits(0);
    let ran = leave(&fleet, "agent", "").exits(0);
    assert!(ran.out.contains("knew no more of `gw-1`"), "{}", ran.out);
}
