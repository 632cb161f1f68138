//! The control planes themselves: what other tests rely on.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::bed::{self, LONG, Plane, until};

fn json_of(plane: &Plane, arguments: &[&str]) -> Value {
    let text = plane.kubectl(arguments).ok();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"))
}

#[test]
fn two_planes_are_ready_and_know_their_version() {
    let bed = bed::shared();
    for plane in [&bed.east, &bed.west] {
        assert_eq!(plane.kubectl(&["get", "--raw", "/readyz"]).ok(), "ok");
        let version = json_of(plane, &["version", "-o", "json"]);
        let server = version["serverVersion"]["gitVersion"].as_str().unwrap();
        // Not v0.0.0-master, as without the flags of the linker.
        assert!(server.starts_with("v1."), "{version}");
        let context = plane.kubectl(&["config", "current-context"]).ok();
        assert_eq!(context.trim(), plane.name());
    }
    assert_ne!(bed.east.address(), bed.west.address());
    if std::env::var_os(crate::crash::STAY).is_some() {
        std::thread::sleep(LONG);
    }
}

#[test]
fn the_planes_are_two() {
    let bed = bed::shared();
    let name = bed.east.namespace("only-in-east");
    let error = bed.west.kubectl(&["get", "namespace", &name]).fails();
    assert!(error.contains("NotFound"), "{error}");
    // One's administrator is a stranger to the other.
    let east = std::fs::read_to_string(bed.east.kubeconfig()).unwrap();
    let config: Value = serde_json::from_str(&east).unwrap();
    let token = config["users"][0]["user"]["token"].as_str().unwrap();
    let stranger = bed.west.kubeconfig_for(token, bed.west.address());
    let refused = bed
        .west
        .kubectl_as(&stranger, &["get", "namespaces"], "")
        .fails();
    assert!(refused.contains("Unauthorized"), "{refused}");
}

#[test]
fn a_dual_stack_service_gets_two_addresses_of_the_planes_ranges() {
    let bed = bed::shared();
    for plane in [&bed.east, &bed.west] {
        let namespace = plane.namespace("services");
        let services: Api<Service> = Api::namespaced(plane.client(), &namespace);
        let wanted: Service = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}], "selector": {"app": "web"}},
        }))
        .unwrap();
        let made = Plane::block_on(services.create(&PostParams::default(), &wanted)).unwrap();
        let addresses = made.spec.unwrap().cluster_ips.unwrap();
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        for (address, range) in addresses.iter().zip(plane.service_cidrs()) {
            let range: ipnet::IpNet = range.parse().unwrap();
            let address: std::net::IpAddr = address.parse().unwrap();
            assert!(range.contains(&address), "{address} is not in {range}");
        }
        // As discovery reads it.
        let ranges = json_of(plane, &["get", "servicecidrs", "kubernetes", "-o", "json"]);
        assert_eq!(ranges["spec"]["cidrs"], json!(plane.service_cidrs()));
    }
}

#[test]
fn the_controllers_follow_services_and_owners() {
    let bed = bed::shared();
    let plane = &bed.east;
    let namespace = plane.namespace("controllers");
    plane.fake_node("controllers-1", &["10.11.7.0/24"], "192.0.2.7", &[]);
    plane
        .apply(&format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: {namespace}}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: owner, namespace: {namespace}}}
"
        ))
        .ok();
    until("an EndpointSlice of the service", LONG, || {
        let slices = json_of(
            plane,
            &["-n", &namespace, "get", "endpointslices", "-o", "json"],
        );
        slices["items"][0]["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
    });
    // What a Node owns goes with it, also what is in no namespace of its own.
    let nodes: Api<Node> = Api::all(plane.client());
    let node = Plane::block_on(nodes.get("controllers-1")).unwrap();
    let owned: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "owned", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": "controllers-1", "uid": node.metadata.uid},
        ]},
    }))
    .unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client(), &namespace);
    Plane::block_on(maps.create(&PostParams::default(), &owned)).unwrap();
    plane.kubectl(&["delete", "node", "controllers-1"]).ok();
    until("the owned object is collected", LONG, || {
        Plane::block_on(maps.get_opt("owned")).unwrap().is_none()
    });
    assert!(Plane::block_on(maps.get_opt("owner")).unwrap().is_some());
}

#[test]
fn a_fake_node_looks_ready() {
    let bed = bed::shared();
    let plane = &bed.east;
    plane.fake_node(
        "looks-1",
        &["10.11.8.0/24", "fd00:1:1:8::/64"],
        "192.0.2.8",
        &[("subsea.dev/gateway", "true")],
    );
    plane
        .kubectl(&["wait", "--for=condition=Ready", "node/looks-1"])
        .ok();
    let node = json_of(plane, &["get", "node", "looks-1", "-o", "json"]);
    assert_eq!(
        node["spec"]["podCIDRs"],
        json!(["10.11.8.0/24", "fd00:1:1:8::/64"])
    );
    assert_eq!(node["spec"]["taints"], Value::Null);
    let internal = json!({"type": "InternalIP", "address": "192.0.2.8"});
    assert_eq!(node["status"]["addresses"][0], internal);
    let listed = plane
        .kubectl(&[
            "get",
            "nodes",
            "-l",
            "subsea.dev/gateway=true",
            "-o",
            "name",
        ])
        .ok();
    assert!(listed.contains("node/looks-1\n"), "{listed}");
}

#[test]
fn pods_of_a_daemon_set_are_said_to_run_on_its_nodes_and_go() {
    let bed = bed::shared();
    let plane = &bed.west;
    let namespace = plane.namespace("daemons");
    for (node, address) in [("daemons-1", "192.0.2.21"), ("daemons-2", "192.0.2.22")] {
        plane.fake_node(node, &["10.12.21.0/24"], address, &[("daemons", "true")]);
    }
    let kubelets = plane.kubelets(&namespace);
    plane
        .apply(&format!(
            "
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: daemon, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: daemon}}}}
  template:
    metadata: {{labels: {{app: daemon}}}}
    spec:
      hostNetwork: true
      nodeSelector: {{daemons: 'true'}}
      containers: [{{name: main, image: none.invalid/none}}]
"
        ))
        .ok();
    let rollout = ["rollout", "status", "daemonset/daemon", "--timeout=60s"];
    plane
        .kubectl(&[&["-n", &namespace], rollout.as_slice()].concat())
        .ok();
    let pods = json_of(plane, &["-n", &namespace, "get", "pods", "-o", "json"]);
    let mut where_they_are: Vec<(&str, &str)> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| {
            (
                pod["spec"]["nodeName"].as_str(),
                pod["status"]["podIP"].as_str(),
            )
        })
        .map(|(node, address)| (node.unwrap(), address.unwrap()))
        .collect();
    where_they_are.sort_unstable();
    let wanted = [("daemons-1", "192.0.2.21"), ("daemons-2", "192.0.2.22")];
    assert_eq!(where_they_are, wanted);
    // A namespace only goes when the kubelets have ended its pods.
    let delete = ["delete", "namespace", &namespace, "--timeout=60s"];
    plane.kubectl(&delete).ok();
    drop(kubelets);
}
