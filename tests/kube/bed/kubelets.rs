//! Stands in for the scheduler and the kubelets: pods are said to run, and nothing runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::plane::Plane;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// Works until it is dropped.
pub(crate) struct Kubelets {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Plane {
    /// From now on, the pods of a namespace go to the nodes that their `DaemonSet`s chose, are said to run and to be
    /// ready, and go away when they are deleted. Only with host network do they have an address: their node's.
    pub(crate) fn kubelets(&self, namespace: &str) -> Kubelets {
        let ended = Arc::new(AtomicBool::new(false));
        let (client, namespace, told) = (self.client(), namespace.to_owned(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                // An API server that is away, an object that somebody else changes: the next time.
                drop(Self::block_on(pass(&client, &namespace)));
                std::thread::sleep(LOOK);
            }
        });
        Kubelets {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn pass(client: &Client, namespace: &str) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let nodes: Api<Node> = Api::all(client.clone());
    let all = ListParams::default();
    let addresses: BTreeMap<String, String> = nodes
        .list(&all)
        .await?
        .iter()
        .filter_map(|node| Some((node.name_any(), internal_ip(node)?)))
        .collect();
    for pod in pods.list(&all).await? {
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() {
            pods.delete(&name, &DeleteParams::default().grace_period(0))
                .await?;
        } else if let Some(node) = bound_to(&pod) {
            if phase(&pod) != "Running" {
                let status = running(&pod, addresses.get(node));
                let params = PatchParams::default();
                pods.patch_status(&name, &params, &Patch::Merge(&status))
                    .await?;
            }
        } else if let Some(node) = chosen_for(&pod) {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            });
            let params = PostParams::default();
            let _: k8s_openapi::apimachinery::pkg::apis::meta::v1::Status = pods
                .create_subresource("binding", &name, &params, &binding)
                .await?;
        }
    }
    Ok(())
}

fn internal_ip(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
    Some(internal.address.clone())
}

fn bound_to(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status.and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// A pod of a `DaemonSet` may only run on one node, whose name is in its affinity.
fn chosen_for(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
    let required = affinity
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .filter_map(|term| term.match_fields.as_ref())
        .flatten();
    let field = fields.find(|field| field.key == "metadata.name")?;
    Some(field.values.as_ref()?.first()?)
}

fn running(pod: &Pod, address: Option<&String>) -> serde_json::Value {
    let spec = pod.spec.as_ref().expect("a pod that is bound");
    let containers: Vec<_> = spec
        .containers
        .iter()
        .map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "none", "ready": true, "started": true,
                "restartCount": 0, "state": {"running": {}},
            })
        })
        .collect();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|condition| json!({"type": condition, "status": "True"}));
    let own = address.filter(|_| spec.host_network == Some(true));
    let own_list = own.map(|address| vec![json!({"ip": address})]);
    json!({"status": {
        "phase": "Running", "conditions": conditions, "containerStatuses": containers,
        "hostIP": address, "podIP": own, "podIPs": own_list,
    }})
}
