//! The whole way: a broker in a management cluster, two clusters that join by one command each, pods that talk, an upgrade, an
//! API server that restarts, and two clusters that leave.

mod moves;
mod plugins;
mod rights;

use std::time::Duration;

use serde_json::Value;

use self::moves::SPARE;
use self::rights::Rights;
use crate::bed::{self, Plane};
use crate::ground::{BROKER, Ground, LONG, label, objects};
use crate::wait::until;

const EAST: &[&str] = &["gw-1", "gw-2", SPARE, "n-1"];
const WEST: &[&str] = &["gw-1", "n-1"];
/// What talks to what.
const PAIRS: &[(&str, &str)] = &[
    ("east/n-1", "west/n-1"),
    ("west/n-1", "east/n-1"),
    ("east/gw-1", "west/n-1"),
    ("west/gw-1", "east/gw-2"),
];

/// A ping whose question came by the gateway that begins to drain, and whose answer goes by the other one: that one's
/// connection tracking never saw the question, and the rule of kube-proxy drops the answer. One for each time that flows move.
const IN_FLIGHT: usize = 2;

#[test]
fn clusters_join_talk_are_upgraded_and_leave() {
    // Alone: packets that are lost for want of a processor would be counted.
    let _alone = bed::exclusive();
    let mut ground = Ground::build(EAST, WEST);
    label(&ground.east, SPARE, false);
    plugins::define(&ground.west);
    let said = ground.deploy_broker();
    assert!(said.contains(&format!("answers at {BROKER}")), "{said}");
    join_both(&ground);
    is_shown(&ground);
    ground.talk(PAIRS);
    upgrade(&ground);
    ground.talk(PAIRS);
    lose_the_api_server(&mut ground);
    moves::to_another_node(&ground);
    ground.talk(PAIRS);
    moves::with_its_node_gone(&mut ground);
    moves::forgotten(&ground);
    ground.talk(PAIRS);
    moves::back(&ground);
    ground.talk(PAIRS);
    plugins::appear(&ground);
    ground.talk(PAIRS);
    let rights = Rights::read(&ground);
    leave_both(&ground);
    rights.assert_needed(&ground);
}

fn join_both(ground: &Ground) {
    // The first has nobody to talk to, and that is no failure.
    let file = ground.token("west");
    let said = ground.join("west", &file, "").said();
    for wanted in [
        "10.2.0.0/16",
        "kubeadm-config",
        "cluster west is a member",
        "no other cluster with a gateway yet",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    // What overlaps is found and refused before anything is touched.
    let file = ground.token("east");
    let check = format!("preflight {} --context hither", file.display());
    let said = ground.subsea(&check).said();
    assert!(said.contains("cluster `east` can join fleet"), "{said}");
    let check = format!("{check} --pod-cidr 10.2.0.0/17 -o json");
    let said = ground.subsea(&check).fails_with(2);
    assert!(
        said.contains("\"ok\": false") && said.contains("10.2.0.0/16"),
        "{said}"
    );
    let said = ground
        .join("east", &file, "--pod-cidr 10.2.0.0/17")
        .fails_with(2);
    assert!(
        said.contains("10.2.0.0/16") && said.contains("west"),
        "{said}"
    );
    let namespaces = ["get", "namespaces", "-o", "name"];
    let namespaces = ground.east.kubectl(&namespaces).ok();
    assert!(!namespaces.contains("namespace/subsea\n"), "{namespaces}");
    let printed = ground.join("east", &file, "--dry-run -o yaml").ok();
    let namespaces = ["get", "namespaces", "-o", "name"];
    let namespaces = ground.east.kubectl(&namespaces).ok();
    assert!(!namespaces.contains("namespace/subsea\n"), "{namespaces}");
    let said = ground.join("east", &file, "").said();
    is_what_was_printed(&ground.east, &printed);
    // What an operator reads, for `--nocapture`.
    eprintln!("{said}");
    let wanted = "2 connections to 1 other cluster, all ready";
    assert!(said.contains(wanted), "{said}");
}

/// To apply what was printed, in the name of the join, would change nothing: it is all that was applied, and nothing more.
fn is_what_was_printed(plane: &Plane, printed: &str) {
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=subsea",
        "--dry-run=server",
        "-o",
        "json",
        "-f",
        "-",
    ];
    let applied = plane.kubectl_as(plane.kubeconfig(), &apply, printed).ok();
    let applied: Value = serde_json::from_str(&applied).expect("JSON");
    let applied = applied["items"].as_array().expect("a list");
    let kinds = |kind: &str| applied.iter().filter(|o| o["kind"] == kind).count();
    assert_eq!(
        (kinds("DaemonSet"), kinds("Secret"), kinds("ConfigMap")),
        (2, 1, 1)
    );
    for object in applied {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let [kind, name, namespace] =
            [&object["kind"], &metadata["name"], &metadata["namespace"]].map(text);
        let mut get = vec!["get", &kind, &name, "-o", "json"];
        if !namespace.is_empty() {
            get.extend(["-n", &namespace]);
        }
        let mut there: Value = serde_json::from_str(&plane.kubectl(&get).ok()).expect("JSON");
        let mut object = object.clone();
        for object in [&mut object, &mut there] {
            if kind == "Secret" {
                object["data"]["credential"] = Value::Null;
                object["metadata"]["annotations"] = Value::Null;
            }
            object["metadata"]["managedFields"] = Value::Null;
            // The daemons write on.
            object["metadata"]["resourceVersion"] = Value::Null;
            object["status"] = Value::Null;
        }
        assert_eq!(object, there, "{kind} {namespace}/{name}");
    }
    let settings = plane.kubectl(&[
        "-n",
        "subsea",
        "get",
        "configmap",
        "subsea-config",
        "-o",
        "yaml",
    ]);
    assert!(settings.ok().contains("podPrefixes: "));
}

fn is_shown(ground: &Ground) {
    let ready = [
        "wait",
        "--for=condition=Ready",
        "connection",
        "--all",
        "--timeout=60s",
    ];
    ground.east.kubectl(&ready).ok();
    ground.west.kubectl(&ready).ok();
    let shown = ground.east.kubectl(&["get", "connections"]).ok();
    eprintln!("{shown}");
    assert!(
        shown.contains("connected") && shown.contains("west"),
        "{shown}"
    );
    assert_eq!(objects(&ground.west, "connections").len(), 2);
    assert_eq!(objects(&ground.east, "gateways.subsea.dev").len(), 2);
    assert_eq!(objects(&ground.east, "clusters.subsea.dev").len(), 2);
    // These nodes have no network plugin: what was read, with the rights of the manifest, says so.
    let look = [
        "wait",
        "--for=jsonpath={.status.conditions[?(@.type==\"NetworkCompatible\")].reason}=SettingWarns",
        "gateways.subsea.dev",
        "--all",
        "--timeout=60s",
    ];
    ground.east.kubectl(&look).ok();
    let gateway = objects(&ground.east, "gateways.subsea.dev")[0].to_string();
    assert!(gateway.contains("plugin-not-found"), "{gateway}");
}

/// A second join is an upgrade: one gateway after the other, and next to nothing is lost.
fn upgrade(ground: &Ground) {
    let pings = ground.pings("upgrade");
    let file = ground.dir.join("east.join");
    let said = ground.join("east", &file, "--image subsea:next").said();
    let wanted = "changed DaemonSet subsea/subsea-gateway";
    assert!(said.contains(wanted), "{said}");
    let answered = pings.stop_losing(IN_FLIGHT);
    assert!(answered > 20, "{answered} pings during the upgrade");
}

/// Without its API server a cluster goes on, and shows what has changed when it is back.
fn lose_the_api_server(ground: &mut Ground) {
    let pings = ground.pings("outage");
    ground.east.stop_api_server();
    std::thread::sleep(Duration::from_secs(5));
    ground.east.start_api_server();
    let version = |ground: &Ground| {
        let all = objects(&ground.east, "connections");
        all[0]["metadata"]["resourceVersion"].clone()
    };
    let shown = version(ground);
    until("what is shown is kept up to date again", LONG, || {
        version(ground) != shown
    });
    pings.stop_without_loss();
}

fn leave_both(ground: &Ground) {
    let said = ground
        .subsea("leave --context yonder --timeout 120s")
        .said();
    for wanted in ["cluster west has left fleet", "swept 2 nodes"] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    ground.is_clean("west", &ground.west);
    until("connections to who left are gone", LONG, || {
        objects(&ground.east, "connections").is_empty()
    });
    ground.subsea("leave --context hither --timeout 120s").ok();
    ground.is_clean("east", &ground.east);
}
