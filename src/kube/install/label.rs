//! The label by which a node is a gateway. Shell.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::kube::apply::MANAGER;
use crate::kube::error::KubeError;
use crate::kube::labels;

/// Labels a node, in our name: only what is ours goes again.
pub(super) async fn label(client: &Client, node: &str) -> Result<(), KubeError> {
    let labels = json!({ labels::GATEWAY: "true" });
    node_labels(client, node, &labels).await
}

/// Takes our label from a node; one that the operator set stays.
pub(in crate::kube) async fn unlabel(client: &Client, node: &str) -> Result<(), KubeError> {
    node_labels(client, node, &json!({})).await
}

async fn node_labels(
    client: &Client,
    node: &str,
    labels: &serde_json::Value,
) -> Result<(), KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let there = nodes.get_opt(node).await;
    let there = there.map_err(|e| KubeError::of("get", format!("Node {node}"), e))?;
    // With its uid, so that a node that goes meanwhile is not made anew by this.
    let Some(uid) = there.and_then(|node| node.metadata.uid) else {
        return Ok(());
    };
    let metadata = json!({"name": node, "uid": uid, "labels": labels});
    let wanted = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
    let params = PatchParams::apply(MANAGER).force();
    let done = nodes.patch(node, &params, &Patch::Apply(&wanted)).await;
    done.map(drop)
        .map_err(|e| KubeError::of("apply", format!("Node {node}"), e))
}
