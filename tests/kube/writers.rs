//! Somebody else writes what a gateway shows of itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::{self, LONG, Plane, until};
use crate::publish::{CONNECTION, Installed, Shown, get, is_ready};

/// What nothing is written to is looked at every minute.
const MENDED: Duration = Duration::from_secs(75);
const GATEWAY: &str = "gateway.subsea.dev/gw-1";

fn status(plane: &Plane, what: &str) -> Value {
    get(plane, what).unwrap()["status"].clone()
}

fn condition(kind: &str) -> Value {
    json!({
        "type": kind, "status": "False", "reason": "Audit", "message": "by another writer",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

#[test]
fn what_another_writer_puts_into_a_status_is_mended_and_its_own_conditions_stay() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    let shown = Shown::start(&installed.kubeconfig());
    shown.connect();
    until("the connection is shown", LONG, || {
        is_ready(plane, CONNECTION, "True", "Connected")
    });
    let right = status(plane, CONNECTION);

    // A merge patch takes the fields over, replaces the list, and sets one that the gateway leaves out.
    let written = json!({"status": {
        "state": "down", "why": "says another writer", "mtu": 9000, "conditions": [condition("Ready")],
    }})
    .to_string();
    let patch = [
        "--subresource=status",
        "--field-manager=other",
        "--type=merge",
        "-p",
        &written,
    ];
    plane
        .kubectl(&[&["patch", CONNECTION][..], &patch].concat())
        .ok();
    assert_eq!(status(plane, CONNECTION)["state"], "down");
    let start = Instant::now();
    until("the connection is as the gateway has it", MENDED, || {
        let now = status(plane, CONNECTION);
        let same = |field: &str| now.get(field) == right.get(field);
        ["state", "why", "mtu"].into_iter().all(same)
            && is_ready(plane, CONNECTION, "True", "Connected")
    });
    eprintln!("mended after {:?}", start.elapsed());

    // An apply that forces conflicts, with a condition of its own.
    let now = status(plane, GATEWAY);
    let forced = json!({
        "apiVersion": "subsea.dev/v1alpha1", "kind": "Gateway", "metadata": {"name": "gw-1"},
        "status": {
            "node": "gw-9", "cluster": now["cluster"], "driver": "none", "connections": now["connections"],
            "conditions": [condition("Audited"), condition("Ready")],
        },
    })
    .to_string();
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--subresource=status",
        "--field-manager=other",
        "-f",
        "-",
    ];
    plane.kubectl_as(plane.kubeconfig(), &apply, &forced).ok();
    assert_eq!(status(plane, GATEWAY)["node"], "gw-9");
    until("the gateway is as it has itself", MENDED, || {
        let status = status(plane, GATEWAY);
        status["node"] == "gw-1"
            && status["driver"] == "userspace"
            && is_ready(plane, GATEWAY, "True", "Running")
    });
    let audited = |plane: &Plane| {
        let status = status(plane, GATEWAY);
        let all = status["conditions"].as_array().unwrap().clone();
        all.iter()
            .any(|c| c["type"] == "Audited" && c["status"] == "False")
    };
    assert!(audited(plane), "a condition of another type is another's");
    // And is no reason to write again with every look.
    let version =
        |plane: &Plane| get(plane, GATEWAY).unwrap()["metadata"]["resourceVersion"].clone();
    let before = version(plane);
    std::thread::sleep(MENDED);
    assert_eq!(version(plane), before);
    assert!(audited(plane));
    shown.end();
}
