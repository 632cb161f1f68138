//! Status and leave with a gateway that runs, in a namespace of its own.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::EAST;
use crate::fleet::{Fleet, in_namespace, subsea};

/// Kills what the test has not ended.
pub(crate) struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn gateway(dir: &str) -> Gateway {
    gateway_with(dir, &[])
}

pub(crate) fn gateway_with(dir: &str, flags: &[&str]) -> Gateway {
    let child = Command::new(env!("CARGO_BIN_EXE_subsea"))
        .args([
            "gateway",
            "--state-dir",
            dir,
            "--endpoint",
            "192.0.2.1:51820",
        ])
        .args(flags)
        .env("SUBSEA_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("subsea starts");
    Gateway(child)
}

fn shell(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("a shell");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for what the gateway does by itself.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "not in time: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything of the kernel that we may touch.
fn kernel() -> String {
    shell(
        "ip -o link | grep -v ' lo: '; ip rule; ip -6 rule; ip route show table all | grep -v '^local\\|^broadcast'; \
         ip -6 route show table all; nft list ruleset; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
    )
}

#[test]
fn a_gateway_is_shown_and_leaves_without_a_trace() {
    let name = "gateway::a_gateway_is_shown_and_leaves_without_a_trace";
    if !in_namespace(name, "") {
        return;
    }
    let before = kernel();
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let dir = fleet.path("east");
    let mut first = gateway(&dir);
    let ran = subsea(&format!("status --state-dir {dir} --wait 20s")).exits(0);
    assert!(
        ran.out
            .contains("a fleet of one: no other cluster has joined yet"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("connected for"), "{}", ran.out);
    let json = subsea(&format!("status --state-dir {dir} -o json"))
        .exits(0)
        .json();
    assert_eq!(json["cluster"], "east");
    assert_eq!(json["pid"], first.0.id());
    // One directory, one daemon.
    let second = subsea(&format!("gateway --state-dir {dir}")).exits(1);
    assert!(
        second
            .err
            .contains(&format!("another process (pid {})", first.0.id())),
        "{}",
        second.err
    );
    // Another member, of which no gateway runs, is waited for and named.
    fleet
        .join(
            "west",
            "--pod-cidr 10.50.0.0/16 --service-cidr 10.128.0.0/20",
        )
        .exits(0);
    until("west is seen", || {
        let status = subsea(&format!("status --state-dir {dir} -o json"))
            .exits(0)
            .json();
        status["members"][0]["cluster"] == "west"
    });
    let ran = subsea(&format!("status --state-dir {dir} --wait 2s"))
        .fails(1, "not connected in time:\n  cluster west has no gateway");
    assert!(
        ran.err.contains("waiting: cluster west has no gateway"),
        "{}",
        ran.err
    );
    assert!(ran.out.contains("no-gateway"), "{}", ran.out);
    subsea(&format!("status --state-dir {dir}")).exits(0);
    assert!(kernel().contains("subsea0"));
    // A broker that is away does not cost us the gateway.
    let mut fleet = fleet;
    fleet.down();
    subsea(&format!("leave --state-dir {dir}")).fails(1, "nothing was removed");
    assert!(
        first.0.try_wait().expect("its state").is_none(),
        "the gateway still runs"
    );
    fleet.up();
    let ran = subsea(&format!("leave --state-dir {dir}")).fails(0, "stopping the gateway (pid ");
    assert!(ran.out.contains("stopped the gateway"), "{}", ran.out);
    assert!(first.0.wait().expect("its end").success());
    assert_eq!(fleet.clusters(), ["west"]);
    assert!(!Path::new(&dir).exists());
    assert_eq!(kernel(), before);
}

#[test]
fn what_a_killed_gateway_left_is_removed_too() {
    let name = "gateway::what_a_killed_gateway_left_is_removed_too";
    if !in_namespace(name, "") {
        return;
    }
    let before = kernel();
    let mut fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let dir = fleet.path("east");
    let running = gateway(&dir);
    subsea(&format!("status --state-dir {dir} --wait 20s")).exits(0);
    drop(running);
    fleet.down();
    assert_ne!(kernel(), before);
    subsea(&format!("status --state-dir {dir}")).fails(1, "no daemon runs");
    subsea(&format!("leave --state-dir {dir} --local")).exits(0);
    assert!(!Path::new(&dir).exists());
    assert_eq!(kernel(), before);
}

#[test]
fn each_stripe_has_a_listener_that_comes_and_goes_with_it() {
    let name = "gateway::each_stripe_has_a_listener_that_comes_and_goes_with_it";
    if !in_namespace(name, "") {
        return;
    }
    let fleet = Fleet::start();
    fleet.join("east", EAST).exits(0);
    let dir = fleet.path("east");
    let registered = || {
        let shown = fleet.admin("cluster show east -o json").exits(0).json();
        shown["gateways"]["gw-1"]["listeners"].clone()
    };
    let running = gateway_with(&dir, &["--stripes", "3"]);
    until("three listeners", || {
        registered().as_array().is_some_and(|all| all.len() == 3)
    });
    let three = registered();
    assert_eq!(three[2]["stripe"], 2);
    assert_eq!(three[2]["candidates"][0], "192.0.2.1:51822");
    for key in ["wireguard.key", "wireguard-1.key", "wireguard-2.key"] {
        let mode = Path::new(&dir).join(key).metadata().expect("a key").mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let status = || subsea(&format!("status --state-dir {dir} -o json")).exits(0);
    until("the status has them", || {
        let listeners = status().json()["listeners"].clone();
        listeners[1]["public_key"] == three[1]["public_key"] && listeners[2]["port"] == 51822
    });
    let shown = subsea(&format!("status --state-dir {dir}")).exits(0).out;
    assert!(
        shown.contains("listeners    0 on UDP 51820, 1 on UDP 51821, 2 on UDP 51822\n"),
        "{shown}"
    );
    drop(running);
    // Fewer are announced, with the same key; and more again with theirs.
    let running = gateway(&dir);
    until("one listener", || {
        registered().as_array().is_some_and(|all| all.len() == 1)
    });
    assert_eq!(registered()[0], three[0]);
    drop(running);
    let _running = gateway_with(&dir, &["--stripes", "3"]);
    until("the same three", || registered() == three);
    subsea(&format!("leave --state-dir {dir}")).exits(0);
    assert!(!Path::new(&dir).exists());
}
