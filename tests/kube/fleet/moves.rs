//! Gateways that move from node to node, and nodes that go.

use serde_json::Value;

use super::{IN_FLIGHT, PAIRS};
use crate::bed::Plane;
use crate::ground::{Ground, LONG, label, objects};
use crate::wait::until;

/// A node of east that is reached from outside as the gateways are, and is none of them at first.
pub(super) const SPARE: &str = "gw-3";

/// The label goes from a gateway's node to another one: the first drains, and its flows go by those that stay.
pub(super) fn to_another_node(ground: &Ground) {
    let pings = ground.pings("moved");
    let east = &ground.east;
    label(east, "gw-2", false);
    label(east, SPARE, true);
    until("no gateway runs on the node", LONG, || {
        objects(east, "pods --namespace subsea").iter().all(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            !name.starts_with("subsea-gateway") || pod["spec"]["nodeName"] != "gw-2"
        })
    });
    until("the other node is a gateway that is used", LONG, || {
        is_used(east, SPARE) && is_used(east, "gw-1")
    });
    pings.stop_losing(IN_FLIGHT);
    // Its registration stays, since it may come back: it says that it was stopped, and nobody takes it for one that works.
    let status = ready(east, "gateways.subsea.dev", "gw-2");
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        status["status"] == "Unknown" && ["Stopped", "Lost"].contains(&reason),
        "{status}"
    );
    assert!(!is_used(east, "gw-2"));
    until("the others see that it does not answer", LONG, || {
        ready(&ground.west, "connections", "gw-1.east.gw-2")["status"] == "False"
    });
    let new = ready(&ground.west, "connections", &format!("gw-1.east.{SPARE}"));
    assert_eq!(new["status"], "True", "{new}");
}

/// The node of a gateway is no more: what was shown of it goes with its object, and the rest talks on.
pub(super) fn with_its_node_gone(ground: &mut Ground) {
    ground.lose(SPARE);
    let east = &ground.east;
    until("what was shown of it goes", LONG, || {
        let of_it = |object: &Value| object["metadata"]["labels"]["subsea.dev/node"] == SPARE;
        let kinds = ["gateways.subsea.dev", "connections"];
        kinds
            .iter()
            .all(|kind| !objects(east, kind).iter().any(of_it))
    });
    assert!(is_used(east, "gw-1"));
    until("the others see that it does not answer", LONG, || {
        let connection = format!("gw-1.east.{SPARE}");
        ready(&ground.west, "connections", &connection)["status"] == "False"
    });
    ground.talk(PAIRS);
}

/// An operator strikes off the gateway that has stopped: nobody shows it any more.
pub(super) fn forgotten(ground: &Ground) {
    ground
        .broker_admin("gateway forget --cluster east --node gw-2")
        .ok();
    for (plane, kind, name) in [
        (&ground.east, "gateways.subsea.dev", "gw-2"),
        (&ground.east, "connections", "gw-2.west.gw-1"),
        (&ground.west, "connections", "gw-1.east.gw-2"),
    ] {
        until(&format!("{name} is not shown any more"), LONG, || {
            let all = objects(plane, kind);
            all.iter().all(|object| object["metadata"]["name"] != name)
        });
    }
}

/// The label comes back to a node that was a gateway before: it enrols anew, since the broker does not know it any more.
pub(super) fn back(ground: &Ground) {
    let pings = ground.pings("back");
    label(&ground.east, "gw-2", true);
    until("it is back", LONG, || {
        is_used(&ground.east, "gw-1") && is_used(&ground.east, "gw-2")
    });
    pings.stop_losing(IN_FLIGHT);
}

/// Whether the connection of a gateway of east is in use.
fn is_used(east: &Plane, gateway: &str) -> bool {
    objects(east, "connections")
        .iter()
        .any(|c| c["spec"]["gateway"] == gateway && c["status"]["inUse"] == true)
}

/// The condition `Ready` of an object.
fn ready(plane: &Plane, kind: &str, name: &str) -> Value {
    let all = objects(plane, kind);
    let found = all.iter().find(|object| object["metadata"]["name"] == name);
    let conditions = found.and_then(|object| object["status"]["conditions"].as_array());
    let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
    ready.cloned().unwrap_or_default()
}
