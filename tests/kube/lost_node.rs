//! A node that is down holds nobody up: neither an upgrade nor a leave, which name it.

use serde_json::Value;

use crate::bed::{self, Plane};
use crate::ground::{Ground, assert_says, objects};

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Node and image of each pod of the daemons.
fn images(plane: &Plane) -> Vec<(String, String)> {
    let pods = objects(plane, "pods -n subsea");
    let runs = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let mut all: Vec<_> = pods
        .iter()
        .filter(runs)
        .map(|pod| {
            let image = text(&pod["spec"]["containers"][0]["image"]);
            (text(&pod["spec"]["nodeName"]).to_owned(), image.to_owned())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_node_that_is_down_holds_up_neither_an_upgrade_nor_a_leave() {
    let _alone = bed::exclusive();
    let ground = Ground::build(&["gw-1", "gw-2", "n-1"], &["gw-1"]);
    ground.deploy_broker();
    let file = ground.token("east");
    // Ctrl-C in the midst of it; the same command goes on from there.
    let line = Ground::join_line("east", &file, "");
    let (code, said) = ground.interrupted(&line, "created Namespace subsea");
    assert_eq!(code, Some(130), "{said}");
    assert_says(
        &said,
        &[
            "error: interrupted; what was done so far stays",
            "hint: the same command goes on from there",
        ],
    );
    ground.join("east", &file, "").ok();
    let east = &ground.east;

    ground.kubelets[1].take_down(east, "gw-2");
    let said = ground.join("east", &file, "--image subsea:next").said();
    for daemon in ["subsea-gateway", "subsea-agent"] {
        let wanted = format!(
            "warning: {daemon} is not of this version on node gw-2, which is not ready (Kubelet stopped posting node status.)"
        );
        assert!(said.contains(&wanted), "{said}");
    }
    let next = |node: &str| (node.to_owned(), "subsea:next".to_owned());
    let images = images(east);
    for node in ["gw-1", "gw-1", "n-1"] {
        assert!(images.contains(&next(node)), "{images:?}");
    }
    for daemon in objects(east, "daemonsets -n subsea") {
        let strategy = &daemon["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!(strategy["maxUnavailable"], 1, "{strategy}");
    }

    let said = ground
        .subsea("leave --context hither --timeout 60s")
        .fails_with(1);
    assert_says(
        &said,
        &[
            "cluster east has left fleet",
            "swept 2 nodes",
            "node gw-2 is not swept, for it is not ready: Kubelet stopped posting node status.",
            "deleted Namespace subsea",
            "subsea leave --local --state-dir /var/lib/subsea/gateway",
        ],
    );
    east.kubectl(&["get", "namespace", "subsea"]).fails();
    assert!(!said.contains("gw-1 is not swept") && !said.contains("n-1 is not swept"));
}
