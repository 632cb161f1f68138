//! The YAML under `manifests/` is the one source of what is installed, and does not drift.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use subsea::kube::manifests::{ClusterOptions, Object, cluster};
use subsea::kube::resources;

/// The file begins with it.
const HEAD: &str =
    "# Printed from src/kube/resources.rs: UPDATE_CRDS=1 cargo test --test manifests definitions\n";

#[test]
fn the_definitions_are_those_of_the_types() {
    let mut text = HEAD.to_owned();
    for (index, definition) in resources::definitions().iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(definition).unwrap());
    }
    for path in [
        "manifests/cluster/crds.yaml",
        "manifests/chart/files/crds.yaml",
    ] {
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == text,
            "{path} is out of date: run this test once with UPDATE_CRDS=1"
        );
    }
}

/// Whoever follows a gateway needs its socket, and not its keys: of what the gateway's pod writes to on its node, the agent's has
/// the directory of the socket alone, and cannot write there.
#[test]
fn the_agent_has_the_gateways_socket_and_none_of_its_keys() {
    let objects = cluster(&ClusterOptions::default()).unwrap();
    let pod = |name: &str| {
        let named = |object: &&Object| {
            let kind = object.types.as_ref().map(|types| types.kind.as_str());
            kind == Some("DaemonSet") && object.metadata.name.as_deref() == Some(name)
        };
        let found = objects.iter().find(named).expect("a DaemonSet");
        found.data["spec"]["template"]["spec"].clone()
    };
    // Where each is on the node, and whether it is read only.
    let mounts = |pod: &Value| -> BTreeMap<String, bool> {
        let volumes = pod["volumes"].as_array().cloned().unwrap_or_default();
        let mounts = pod["containers"][0]["volumeMounts"].as_array().cloned();
        let paths = volumes.iter().filter_map(|volume| {
            let path = volume["hostPath"]["path"].as_str()?;
            let mut mounts = mounts.iter().flatten();
            let mount = mounts.find(|mount| mount["name"] == volume["name"])?;
            Some((path.to_owned(), mount["readOnly"] == true))
        });
        paths
            .filter(|(path, _)| !path.starts_with("/proc/"))
            .collect()
    };
    let gateway = mounts(&pod("subsea-gateway"));
    let agent = mounts(&pod("subsea-agent"));
    assert_eq!(gateway.get("/var/lib/subsea/gateway"), Some(&false));
    assert_eq!(gateway.get("/run/subsea/gateway"), Some(&false));
    let expected = [
        ("/run/subsea/gateway", true),
        ("/var/lib/subsea/agent", false),
    ];
    let expected = expected.map(|(path, only)| (path.to_owned(), only));
    assert_eq!(agent, BTreeMap::from(expected));
}
