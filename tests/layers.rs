//! Keeps the map true: PURE files import no clock, socket, file or environment, and arrows between rooms
//! point one way (`docs/architecture.md`).

use std::fs;
use std::path::{Path, PathBuf};

/// What a PURE file may not name: time, randomness and state of the world are arguments.
const IMPURE: [&str; 17] = [
    "Instant::now",
    "SystemTime::now",
    "UNIX_EPOCH.elapsed",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::os::",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "tokio::",
    "rustix::",
    "libc::",
    "getrandom",
    "crate::net::sys",
];

/// Files that decide, and so must stay PURE whatever their header says.
const DECIDERS: &[&str] = &[
    "broker/src/registry",
    "broker/src/auth",
    "broker/src/ipam",
    "src/agent/desired",
    "src/agent/encap",
    "src/agent/mtu",
    "src/agent/names",
    "src/agent/roster",
    "src/agent/seal",
    "src/agent/steer",
    "src/agent/turn",
    "src/agent/window",
    "src/enrol/proven",
    "src/host/desired",
    "src/host/plan",
    "src/gateway/mesh",
    "src/gateway/health",
    "src/membership/fleet",
    "src/gateway/health_hold",
    "src/gateway/health_report",
    "src/gateway/health_stats",
    "src/gateway/health_timing",
    "src/gateway/prober_paths",
    "src/gateway/steering",
    "src/gateway/budget",
    "src/gateway/mtu",
    "src/gateway/inward",
    "src/gateway/status",
    "src/key",
    "src/kube/deploy/address",
    "src/kube/error",
    "src/kube/install/error",
    "src/kube/labels",
    "src/kube/manifests",
    "src/kube/obstacles",
    "src/kube/resources",
    "api/src/admin",
    "src/kube/cni",
    "src/kube/discover/control_plane",
    "src/kube/discover/decide",
    "src/kube/discover/facts",
    "src/kube/discover/found",
    "src/kube/discover/mirror",
    "src/kube/discover/nodes",
    "src/kube/discover/prefixes",
    "src/kube/discover/query",
    "src/kube/discover/settle",
    "src/kube/discover/trim",
    "src/kube/fault",
    "src/control/network",
    "src/kube/gateway_nodes",
    "src/kube/network/asked",
    "src/kube/network/verdict",
    "src/kube/progress",
    "src/kube/reflect",
    "src/kube/rollout",
    "src/kube/settings",
    "src/monitor/families",
    "src/monitor/verdict",
    "api/src/conflict",
    "api/src/allocation",
];

/// A room and the rooms that it may not know.
const FORBIDDEN_ARROWS: &[(&str, &[&str])] = &[
    (
        "src/net",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::tunnel",
            "crate::broker_client",
        ],
    ),
    (
        "src/tunnel",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::broker_client",
        ],
    ),
    (
        "src/host",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::cli",
            "crate::tunnel",
            "crate::broker_client",
        ],
    ),
    (
        "src/broker_client",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::tunnel",
        ],
    ),
    (
        "src/membership",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::tunnel",
            "crate::net",
        ],
    ),
    // What surrounds a daemon knows its status. A daemon does not know what surrounds it.
    ("src/monitor", &["crate::cli", "crate::kube", "crate::net"]),
    ("src/kube", &["crate::cli", "crate::net", "crate::tunnel"]),
    (
        "src/kube/manifests",
        &["crate::agent", "crate::gateway", "crate::broker_client"],
    ),
    (
        "src/kube/cni",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::tunnel",
            "crate::net",
            "crate::broker_client",
        ],
    ),
    (
        "src/kube/discover",
        &[
            "crate::agent",
            "crate::gateway",
            "crate::host",
            "crate::cli",
            "crate::tunnel",
            "crate::net",
            "crate::broker_client",
        ],
    ),
    (
        "src/agent",
        &[
            "crate::cli",
            "crate::tunnel",
            "crate::kube",
            "crate::monitor",
        ],
    ),
    (
        "src/gateway",
        &[
            "crate::cli",
            "crate::agent",
            "crate::kube",
            "crate::monitor",
        ],
    ),
    ("broker/src/store", &["crate::http", "crate::cli"]),
];

#[test]
fn pure_files_touch_nothing() {
    let mut pure = 0;
    let mut wrong = Vec::new();
    for path in sources() {
        let name = path.display().to_string();
        if is_wiring_or_test(&path) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let decider = DECIDERS
            .iter()
            .any(|d| name == format!("{d}.rs") || name.starts_with(&format!("{d}/")));
        let header: Vec<&str> = text.lines().take_while(|l| l.starts_with("//!")).collect();
        // A shell may point out that a part of it is pure; a decider is PURE as a whole.
        let marked = header.iter().any(|l| l.contains("PURE"))
            && !header.iter().any(|l| l.contains("Shell"));
        if decider && !marked {
            wrong.push(format!("{name}: decides, but its header does not say PURE"));
        }
        if !marked {
            continue;
        }
        pure += 1;
        for (number, line) in code(&text) {
            if let Some(word) = IMPURE.iter().find(|w| line.contains(**w)) {
                wrong.push(format!("{name}:{number}: a PURE file names `{word}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        pure >= 15,
        "only {pure} PURE files found: has the layout moved away from this test?"
    );
}

#[test]
fn every_decider_exists() {
    let names: Vec<String> = sources().iter().map(|p| p.display().to_string()).collect();
    for decider in DECIDERS {
        assert!(
            names
                .iter()
                .any(|n| *n == format!("{decider}.rs") || n.starts_with(&format!("{decider}/"))),
            "{decider} is gone: mend this list and docs/architecture.md"
        );
    }
}

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for path in sources() {
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        for (room, forbidden) in FORBIDDEN_ARROWS {
            if name != format!("{room}.rs") && !name.starts_with(&format!("{room}/")) {
                continue;
            }
            for (number, line) in code(&text) {
                if let Some(other) = forbidden.iter().find(|o| line.contains(**o)) {
                    wrong.push(format!("{name}:{number}: {room} may not know {other}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_two_binaries_do_not_depend_on_each_other() {
    let root = fs::read_to_string("Cargo.toml").unwrap();
    let broker = fs::read_to_string("broker/Cargo.toml").unwrap();
    assert!(
        !root.contains("subsea-broker"),
        "the root crate depends on the broker"
    );
    assert!(
        !broker.contains("subsea = "),
        "the broker depends on the root crate"
    );
}

#[test]
fn unsafe_code_lives_in_one_room() {
    let mut wrong = Vec::new();
    // Put together, so that this file holds none of them itself.
    let word = "unsafe";
    let code_of = ["{", "fn", "impl", "trait"].map(|what| format!("{word} {what}"));
    let lint_of = ["allow", "expect"].map(|level| format!("{level}(unsafe_code"));
    let words: Vec<String> = code_of.into_iter().chain(lint_of).collect();
    for path in sources() {
        let name = path.display().to_string();
        if name.starts_with("src/net/sys/") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in code(&text) {
            if words.iter().any(|word| line.contains(word)) {
                wrong.push(format!("{name}:{number}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe outside src/net/sys: {}",
        wrong.join(", ")
    );
}

/// The code above the unit tests of a file, without comments, with line numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line))
}

/// `mod.rs` and `lib.rs` wire; files of tests are not part of the program.
fn is_wiring_or_test(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let tests = path.components().any(|part| part.as_os_str() == "tests");
    tests || ["mod.rs", "lib.rs", "tests.rs"].contains(&name) || name.ends_with("_tests.rs")
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in ["api/src", "broker/src", "src"] {
        collect(Path::new(root), &mut found);
    }
    found.sort();
    found
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of sources") {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}
