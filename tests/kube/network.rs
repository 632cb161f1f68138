//! What a gateway sees of the network plugin, with the rights that the manifests give it.

use std::time::Duration;

use serde_json::{Value, json};
use subsea::kube::cni::Marks;
use subsea::kube::network::{self, Viewpoint};
use subsea::task::Task;

use crate::bed::{self, LONG, Plane, until};
use crate::publish::{Installed, Shown, get};

const GATEWAY: &str = "gateway.subsea.dev/gw-1";

/// Cilium as Helm installs it, with a switch of its own. No node is there that would take its pods.
fn cilium(no_conntrack: bool) -> String {
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "cilium", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "cilium"}},
            "template": {
                "metadata": {"labels": {"k8s-app": "cilium"}},
                "spec": {
                    "nodeSelector": {"subsea-test": "nowhere"},
                    "containers": [{"name": "cilium-agent", "image": "none.invalid/none"}],
                },
            },
        },
    });
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cilium-config", "namespace": "kube-system"},
        "data": {"ipam": "kubernetes", "kube-proxy-replacement": "false",
            "install-no-conntrack-iptables-rules": no_conntrack.to_string()},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [set, map]}).to_string()
}

/// Status, reason and message of the condition.
fn condition(plane: &Plane) -> Option<(String, String, String)> {
    let object = get(plane, GATEWAY)?;
    let all = object["status"]["conditions"].as_array()?;
    let ours = all.iter().find(|c| c["type"] == "NetworkCompatible")?;
    let text = |name: &str| ours[name].as_str().map(str::to_owned);
    Some((text("status")?, text("reason")?, text("message")?))
}

fn is(plane: &Plane, status: &str, reason: &str) -> bool {
    condition(plane).is_some_and(|(s, r, _)| (s.as_str(), r.as_str()) == (status, reason))
}

#[test]
fn a_setting_that_stands_in_the_way_is_a_condition_until_it_is_gone() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    plane.fake_node("gw-1", &["10.1.1.0/24"], "10.0.0.5", &[]);
    let shown = Shown::start(&installed.kubeconfig());
    until("nothing was looked at yet", LONG, || {
        is(plane, "Unknown", "NotLooked")
    });
    let viewpoint = Viewpoint {
        marks: Marks {
            gateway: 0x3000,
            ..Marks::default()
        },
        asks: Some("gw-1".to_owned()),
        every: Duration::from_secs(2),
    };
    let client = Plane::client_of(&installed.kubeconfig());
    let looking = network::with_client(client, viewpoint, Vec::new, shown.around.notes.clone());
    let looking = Plane::block_on(async { Task::spawn("network", looking) });
    until("no plugin was found", LONG, || {
        is(plane, "True", "SettingWarns")
            && condition(plane).is_some_and(|(_, _, why)| why.contains("plugin-not-found"))
    });

    plane.apply(&cilium(true)).ok();
    until("the setting is a condition", LONG, || {
        is(plane, "False", "SettingBlocks")
    });
    let (_, _, message) = condition(plane).unwrap();
    assert!(
        message.contains("cilium-no-conntrack: ConfigMap kube-system/cilium-config")
            && message.contains("instead: set Helm's `installNoConntrackIptablesRules=false`"),
        "{message}"
    );
    let seen = shown.around.notes.read().network.unwrap();
    let seen: Value = serde_json::to_value(&seen).unwrap();
    assert_eq!(seen["findings"][0]["severity"], "blocks", "{seen}");
    assert_eq!(seen["findings"][0]["id"], "cilium-no-conntrack", "{seen}");
    assert_eq!(seen.get("unread"), None, "{seen}");

    plane.apply(&cilium(false)).ok();
    until("it is gone", LONG, || !is(plane, "False", "SettingBlocks"));
    let (status, _, message) = condition(plane).unwrap();
    assert!(
        status == "True" && !message.contains("cilium-no-conntrack"),
        "{message}"
    );

    // Without the right to look, nobody knows.
    plane.take_rule("subsea-gateway", 3);
    until("it cannot be read", LONG, || {
        is(plane, "Unknown", "Unreadable")
    });
    let problem = shown.around.notes.read().problems["network"].clone();
    assert!(
        problem.contains("ConfigMap kube-system/")
            && problem.contains("cannot get resource")
            && problem.ends_with("apply manifests/cluster/roles.yaml, ClusterRole subsea-gateway"),
        "{problem}"
    );
    installed.apply("roles");
    until("it can be read again", LONG, || {
        condition(plane).is_some_and(|(status, _, _)| status == "True")
            && !shown.around.notes.read().problems.contains_key("network")
    });
    drop(looking);
    shown.end();
    let delete = [
        "-n",
        "kube-system",
        "delete",
        "daemonset/cilium",
        "configmap/cilium-config",
    ];
    plane.kubectl(&delete).ok();
}
