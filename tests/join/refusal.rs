//! Every token and broker that is not the right one has its own message.

use std::fs;
use std::time::Duration;

use crate::EAST;
use crate::fleet::Fleet;

/// Both checks must say the same; a pre-flight of a token that cannot be used could not check: 1.
#[track_caller]
fn refused(fleet: &Fleet, file: &str, says: &str) {
    let preflight = crate::fleet::subsea(&format!("preflight {file} {EAST}")).fails(1, says);
    let join = fleet.join_with(file, "refused", EAST).fails(1, says);
    assert_eq!(preflight.err, join.err);
    assert!(join.err.contains("\n\nhint: "), "{}", join.err);
    assert!(join.out.is_empty() && preflight.out.is_empty());
}

#[test]
fn tokens_that_cannot_be_used() {
    let fleet = Fleet::start();
    let used = fleet.token("east", "member");
    fleet.join_with(&used, "east", EAST).exits(0);
    refused(&fleet, &used, "was already used");

    let expired = fleet.token_with("west", "member", "1s");
    std::thread::sleep(Duration::from_millis(1_200));
    refused(&fleet, &expired, "has expired");

    let revoked = fleet.token("west", "member");
    let id = fleet.token_id("unused");
    fleet.admin(&format!("token revoke {id}")).exits(0);
    refused(&fleet, &revoked, "an operator revoked the token");

    let text = fs::read_to_string(&revoked).expect("read");
    let made_up = fleet.path("made-up.yaml");
    fs::write(&made_up, text.replace(&id, "00c0ffee")).expect("written");
    refused(&fleet, &made_up, "knows no token 00c0ffee");

    // For west, edited to admit north.
    let foreign = fleet.token("west", "member");
    let text = fs::read_to_string(&foreign).expect("read");
    fs::write(&foreign, text.replace("cluster: west", "cluster: north")).expect("written");
    refused(&fleet, &foreign, "is for cluster west, not for north");
    assert_eq!(fleet.clusters(), ["east"]);
}

#[test]
fn brokers_that_are_not_ours() {
    let fleet = Fleet::start();
    let mut other = Fleet::with(&["--fleet", "island"]);
    let ours = fleet.token("east", "member");
    let theirs = other.token("east", "member");
    let read = |path: &str| fs::read_to_string(path).expect("read");
    let (our_text, their_text) = (read(&ours), read(&theirs));
    let url = |text: &str| {
        let start = text.find("https://127.0.0.1:").expect("a URL");
        let port = text[start + 18..]
            .split(|c: char| !c.is_ascii_digit())
            .next();
        format!("https://127.0.0.1:{}", port.expect("a port"))
    };
    // Our file, led to their broker: it has another authority.
    let led_astray = fleet.path("astray.yaml");
    fs::write(
        &led_astray,
        our_text.replace(&url(&our_text), &url(&their_text)),
    )
    .expect("written");
    refused(
        &fleet,
        &led_astray,
        "is not this fleet's broker: its certificate is of another authority",
    );
    // Their broker and authority, our fleet's name.
    let mixed = fleet.path("mixed.yaml");
    fs::write(
        &mixed,
        their_text.replace("fleet: island", "fleet: harbour"),
    )
    .expect("written");
    refused(
        &fleet,
        &mixed,
        "the join file is for fleet harbour, this broker serves fleet island",
    );
    // Nobody there.
    other.down();
    refused(&fleet, &theirs, "cannot be reached");
    assert!(fleet.clusters().is_empty());
    // After all those, the right file does.
    fleet.join_with(&ours, "refused", EAST).exits(0);
}

#[test]
fn a_second_url_is_tried_when_the_first_is_dead() {
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let dead = closed.local_addr().expect("its address");
    drop(closed);
    let fleet = Fleet::start();
    let file = fleet.token("east", "member");
    let text = fs::read_to_string(&file).expect("read");
    let line = text
        .lines()
        .find(|l| l.contains("https://127.0.0.1:"))
        .expect("a URL");
    let start = line.find("https").expect("found");
    let indent: String = line[..start].to_owned();
    let edited = text.replace(
        line,
        &format!(
            "{indent}https://{dead}{}\n{line}",
            if indent.ends_with('"') { "\"" } else { "" }
        ),
    );
    fs::write(&file, edited).expect("written");
    fleet.join_with(&file, "east", EAST).exits(0);
}
