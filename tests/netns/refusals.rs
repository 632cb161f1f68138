//! Joins that are refused, each with its own message, and none of which leaves anything behind.

use std::path::{Path, PathBuf};

use crate::namespace::Ran;
use crate::site::{Family, Site};
use crate::world::World;

/// A broker and two clusters that have not joined.
fn world() -> World {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4);
    world.add("west", Family::V4);
    world
}

fn join(site: &Site, file: &Path) -> Ran {
    site.subsea(&format!("join {} {}", file.display(), site.join_flags()))
}

/// Writes a changed copy of a join file.
fn changed(file: &Path, change: impl FnOnce(String) -> String) -> PathBuf {
    let text = std::fs::read_to_string(file).expect("a join file");
    let copy = file.with_extension("changed.yaml");
    std::fs::write(&copy, change(text)).expect("a changed join file");
    copy
}

/// The lines of a join file that hold the broker's address and authority.
fn broker_part(text: &str) -> &str {
    let start = text.find("broker:").expect("a broker");
    let end = text.find("token:").expect("a token");
    &text[start..end]
}

fn assert_refused(ran: Ran, words: &[&str]) {
    let text = ran.fails_with(1);
    for word in words {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    assert!(
        text.contains("hint: ") || text.contains("Create a new one"),
        "it does not say what to do: {text}"
    );
}

#[test]
fn join_files_that_are_cut_changed_or_of_another_fleet() {
    let mut world = world();
    let file = world.broker.token("east");
    let east = world.site("east");

    let cut = changed(&file, |text| text[..text.len() / 2].to_owned());
    assert_refused(join(east, &cut), &["join file"]);

    let made_up = changed(&file, |text| {
        let at = text.find("token:").expect("a token") + 20;
        let other = if text.as_bytes()[at] == b'a' {
            "b"
        } else {
            "a"
        };
        format!("{}{other}{}", &text[..at], &text[at + 1..])
    });
    assert_refused(join(east, &made_up), &["token"]);

    // Another fleet's broker, on the same host.
    let own = std::fs::read_to_string(&file).expect("a join file");
    let other = world.path("other-broker");
    let first = std::mem::replace(&mut world.broker.dir, other);
    world.broker.stop();
    world.broker.start();
    let foreign = world.broker.token("east");
    let east = world.site("east");
    assert_refused(join(east, &file), &["another authority"]);
    let mixed = changed(&foreign, |text| {
        text.replace(broker_part(&text), broker_part(&own))
    });
    world.broker.stop();
    world.broker.dir = first;
    world.broker.start();
    let east = world.site("east");
    assert_refused(join(east, &foreign), &["another authority"]);
    assert_refused(join(east, &mixed), &["token"]);
    assert_eq!(world.broker.members(), Vec::<String>::new());

    // After all that the true file works, in the same directory.
    join(east, &file).ok();
    assert_eq!(world.broker.members(), ["east"]);
}

#[test]
fn tokens_that_expired_were_revoked_or_are_for_somebody_else() {
    let world = world();
    let (east, west) = (world.site("east"), world.site("west"));

    let short = world.path("short.yaml");
    world
        .broker
        .admin(&format!(
            "token create --cluster east --ttl 1s -o {}",
            short.display()
        ))
        .ok();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_refused(join(east, &short), &["expired"]);

    let revoked = world.broker.token("east");
    let tokens = world.broker.admin_json("token list");
    let unused = tokens
        .as_array()
        .expect("a list")
        .iter()
        .find(|t| t["state"] == "unused");
    let id = unused.expect("the token")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    world.broker.admin(&format!("token revoke {id}")).ok();
    assert_refused(join(east, &revoked), &["revoked"]);

    let theirs = world.broker.token("west");
    assert_refused(join(east, &theirs), &["west", "east"]);

    let gateway = world.path("gateway.yaml");
    world
        .broker
        .admin(&format!(
            "token create --cluster east --role gateway -o {}",
            gateway.display()
        ))
        .ok();
    // Blocks do not go with it, and there is no such member yet.
    join(east, &gateway).fails_with(64);
    assert_refused(
        east.subsea(&format!("join {}", gateway.display())),
        &["east"],
    );

    assert_eq!(world.broker.members(), Vec::<String>::new());
    join(west, &theirs).ok();
    assert_eq!(world.broker.members(), ["west"]);
}

#[test]
fn preflight_compares_with_the_routes_of_the_host() {
    let world = world();
    world.join("west").ok();
    let east = world.site("east");
    let token = world.broker.token("east").display().to_string();
    let line = format!(
        "{} preflight {token} {}",
        env!("CARGO_BIN_EXE_subsea"),
        east.join_flags()
    );
    east.host.run(&line).ok();
    east.host.ip("route add 10.12.7.0/24 via 192.0.2.254");
    let text = east.host.run(&line).fails_with(2);
    for word in ["10.12.7.0/24", "this host", "west"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    let json = east.host.run(&format!("{line} -o json")).fails_with(2);
    assert!(json.contains("10.12.7.0/24"), "{json}");
    east.host.ip("route del 10.12.7.0/24");
    east.host.run(&line).ok();
    // Nothing was burnt by any of it.
    east.subsea(&format!("join {token} {}", east.join_flags()))
        .ok();
}

#[test]
fn preflight_that_cannot_check_is_no_answer() {
    let mut world = world();
    let token = world.broker.token("east").display().to_string();
    world.broker.kill();
    let east = world.site("east");
    let line = format!(
        "{} preflight {token} {}",
        env!("CARGO_BIN_EXE_subsea"),
        east.join_flags()
    );
    let text = east.host.run(&line).fails_with(1);
    assert!(text.contains("192.0.2.10:7443"), "{text}");
}

#[test]
fn wrong_usage_ends_with_64_and_says_what_is_right() {
    let world = world();
    let token = world.broker.token("east").display().to_string();
    let east = world.site("east");
    for (flags, words) in [
        (
            "--cluster east --pod-cidr 10.100.0.0/12 --service-cidr 10.92.0.0/20",
            "10.96.0.0/12",
        ),
        (
            "--cluster east --pod-cidr 10.11.0.0/33 --service-cidr 10.92.0.0/20",
            "10.11.0.0/33",
        ),
        (
            "--cluster east.1 --pod-cidr 10.11.0.0/16 --service-cidr 10.92.0.0/20",
            "east.1",
        ),
        (
            "--cluster East --pod-cidr 10.11.0.0/16 --service-cidr 10.92.0.0/20",
            "East",
        ),
    ] {
        let text = east.subsea(&format!("join {token} {flags}")).fails_with(64);
        assert!(text.contains(words), "{text}");
    }
    // Its own blocks overlap: that is a conflict, not wrong usage.
    let own = "--cluster east --pod-cidr 10.96.0.0/12 --service-cidr 10.100.0.0/16";
    let text = east.subsea(&format!("join {token} {own}")).fails_with(2);
    assert!(
        text.contains("10.96.0.0/12") && text.contains("10.100.0.0/16"),
        "{text}"
    );
    assert_eq!(world.broker.members(), Vec::<String>::new());
}
