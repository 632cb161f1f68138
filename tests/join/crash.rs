//! A join that died at any point is repeated with the same result.

use std::fs;
use std::path::Path;

use crate::EAST;
use crate::fleet::Fleet;

#[test]
fn a_join_can_be_repeated_after_every_step() {
    let fleet = Fleet::start();
    let file = fleet.token("east", "member");
    let first = fleet.join_with(&file, "east", EAST).exits(0);
    let dir = fleet.path("east");
    let dir = Path::new(&dir);
    // Done: nobody is asked, so that the broker may be away.
    let again = fleet.join_with(&file, "east", EAST).exits(0);
    assert_eq!(again.out, format!("already a member: {}", first.out));
    // Died before the membership, or before the certificate was kept; or somebody removed one of them.
    for lost in [
        &["member.json"][..],
        &["member.json", "tls.crt"],
        &["tls.crt"],
    ] {
        for name in lost {
            fs::remove_file(dir.join(name)).expect("removed");
        }
        let again = fleet.join_with(&file, "east", EAST).exits(0);
        assert_eq!(again.out, first.out, "without {lost:?}");
        assert!(dir.join("member.json").exists() && dir.join("tls.crt").exists());
    }
    assert_eq!(fleet.clusters(), ["east"]);
    // The key is what the broker knows us by: without it, the token is somebody else's.
    for name in ["member.json", "tls.key"] {
        fs::remove_file(dir.join(name)).expect("removed");
    }
    fleet
        .join_with(&file, "east", EAST)
        .fails(1, "was already used");
}

#[test]
fn a_used_token_does_not_change_blocks_silently() {
    let fleet = Fleet::start();
    let file = fleet.token("east", "member");
    fleet.join_with(&file, "east", EAST).exits(0);
    let other = "--pod-cidr 10.40.0.0/16 --service-cidr 10.112.0.0/20";
    fleet
        .join_with(&file, "east", other)
        .fails(1, "registered with other blocks");
    let shown = fleet
        .admin("cluster show east -o json")
        .exits(0)
        .json()
        .to_string();
    assert!(shown.contains("10.32.0.0/16"), "{shown}");
    fleet.join_with(&file, "east", EAST).exits(0);
}

#[test]
fn a_forgotten_member_joins_again_from_its_directory() {
    let fleet = Fleet::start();
    let used = fleet.token("east", "member");
    let first = fleet.join_with(&used, "east", EAST).exits(0);
    fleet.admin("cluster forget east").exits(0);
    assert!(fleet.clusters().is_empty());
    let again = fleet.join("east", EAST).exits(0);
    assert_eq!(again.out, first.out);
    assert_eq!(fleet.clusters(), ["east"]);
}

#[test]
fn a_repeat_needs_no_broker_when_all_is_done() {
    let mut fleet = Fleet::start();
    let file = fleet.token("east", "member");
    fleet.join_with(&file, "east", EAST).exits(0);
    fleet.down();
    fleet.join_with(&file, "east", EAST).exits(0);
    fs::remove_file(Path::new(&fleet.path("east")).join("member.json")).expect("removed");
    fleet
        .join_with(&file, "east", EAST)
        .fails(1, "cannot be reached");
    fleet.up();
    fleet.join_with(&file, "east", EAST).exits(0);
    assert_eq!(fleet.clusters(), ["east"]);
}

#[test]
fn a_directory_in_use_is_not_joined_into() {
    let fleet = Fleet::start();
    let file = fleet.token("east", "member");
    let dir = fleet.path("east");
    fs::create_dir(&dir).expect("made");
    let lock = Path::new(&dir).join("lock");
    let holder = fs::File::create(&lock).expect("made");
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    fleet
        .join_with(&file, "east", EAST)
        .fails(1, "another process uses the state directory");
    drop(holder);
    fleet.join_with(&file, "east", EAST).exits(0);
}
