//! Network plugins' own objects, which agents ask for where a join recognised no plugin.

use serde_json::json;

use crate::bed::Plane;
use crate::ground::{Ground, LONG};
use crate::wait::until;

/// As much of a plugin's definition as it takes to have its objects.
fn definition(group: &str, version: &str, kind: &str, plural: &str) -> String {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Cluster", "names": {"kind": kind, "plural": plural},
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
    .to_string()
}

/// West knows the kinds of Cilium and of Calico, and has none of them: what an earlier plugin left over.
pub(super) fn define(west: &Plane) {
    for (group, version, kind, plural) in [
        ("cilium.io", "v2", "CiliumNode", "ciliumnodes"),
        (
            "crd.projectcalico.org",
            "v1",
            "BlockAffinity",
            "blockaffinities",
        ),
    ] {
        west.apply(&definition(group, version, kind, plural)).ok();
    }
    west.definitions_are_served();
}

/// Objects of them come, with the blocks that the nodes have anyway.
pub(super) fn appear(ground: &Ground) {
    let west = &ground.west;
    for node in ground.lab.nodes().filter(|node| node.cluster == "west") {
        let blocks = node.prefixes();
        let object = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": node.name},
            "spec": {"ipam": {"podCIDRs": blocks}},
        });
        west.apply(&object.to_string()).ok();
        for (number, block) in blocks.iter().enumerate() {
            let object = json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity",
                "metadata": {"name": format!("{}-{number}", node.name)},
                "spec": {"node": node.name, "cidr": block, "state": "confirmed", "deleted": "false"},
            });
            west.apply(&object.to_string()).ok();
        }
    }
    until("agents follow the plugins' objects", LONG, || {
        let events = west.audit();
        ["ciliumnodes", "blockaffinities"].iter().all(|resource| {
            events.iter().any(|event| {
                event["verb"] == "watch" && event["objectRef"]["resource"] == *resource
            })
        })
    });
}
