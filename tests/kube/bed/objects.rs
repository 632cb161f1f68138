//! What tests put into a cluster that has no nodes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plane::Plane;
use super::{LONG, until};

/// The audience of tokens that a daemon shows to the broker.
pub(crate) const BROKER_AUDIENCE: &str = "subsea-broker";

impl Plane {
    /// Makes a namespace of a name that no other test has, ready for pods.
    pub(crate) fn namespace(&self, purpose: &str) -> String {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{purpose}-{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let namespaces: Api<Namespace> = Api::all(self.client());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), &name);
        let namespace = object(json!({"metadata": {"name": name}}));
        Self::block_on(namespaces.create(&PostParams::default(), &namespace))
            .unwrap_or_else(|e| panic!("namespace {name}: {e}"));
        until("the default service account", LONG, || {
            Self::block_on(accounts.get_opt("default")).is_ok_and(|found| found.is_some())
        });
        name
    }

    /// Takes a rule out of a role of the cluster, by its place among them.
    pub(crate) fn take_rule(&self, role: &str, number: usize) {
        let patch = format!(r#"[{{"op":"remove","path":"/rules/{number}"}}]"#);
        self.kubectl(&["patch", "clusterrole", role, "--type=json", "-p", &patch])
            .ok();
    }

    /// Applies in the name of `subsea`, and takes over what others have changed.
    pub(crate) fn apply_as_subsea(&self, manifest: &str) {
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=subsea",
            "-f",
            "-",
        ];
        self.kubectl_as(self.kubeconfig(), &apply, manifest).ok();
    }

    /// Waits until all kinds that have been defined are served.
    pub(crate) fn definitions_are_served(&self) {
        // A definition that nobody has looked at yet has no conditions, and `kubectl wait` fails on it at once.
        until("all definitions are served", LONG, || {
            let all = ["crd", "--all", "--timeout=5s"];
            self.kubectl(&[&["wait", "--for=condition=Established"], &all[..]].concat())
                .code
                == Some(0)
        });
    }

    /// Makes a Node that looks ready. No kubelet is behind it: nothing runs there, and nothing renews its lease.
    /// Nodes are not in a namespace: the name has to be the test's own.
    pub(crate) fn fake_node(
        &self,
        name: &str,
        pod_cidrs: &[&str],
        internal_ip: &str,
        labels: &[(&str, &str)],
    ) {
        let mut all = json!({"kubernetes.io/os": "linux", "kubernetes.io/hostname": name});
        for (key, value) in labels {
            all[*key] = json!(value);
        }
        let node: Node = object(json!({
            "metadata": {"name": name, "labels": all},
            "spec": {"podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs},
        }));
        let status = json!({"status": {
            "addresses": [
                {"type": "InternalIP", "address": internal_ip},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "fake"}],
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "osImage": "none", "kernelVersion": "6.1.0",
                "containerRuntimeVersion": "none://0", "kubeletVersion": "v1.34.4", "kubeProxyVersion": "",
                "bootID": "", "machineID": "", "systemUUID": "",
            },
        }});
        let nodes: Api<Node> = Api::all(self.client());
        Self::block_on(async {
            nodes.create(&PostParams::default(), &node).await?;
            // What the API server does with every new node, until somebody says that it is ready.
            let untaint = json!({"spec": {"taints": null}});
            let params = PatchParams::default();
            nodes.patch(name, &params, &Patch::Merge(&untaint)).await?;
            nodes
                .patch_status(name, &params, &Patch::Merge(&status))
                .await
        })
        .unwrap_or_else(|e| panic!("node {name}: {e}"));
    }

    /// Makes a service account.
    pub(crate) fn service_account(&self, namespace: &str, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let account = object(json!({"metadata": {"name": name}}));
        Self::block_on(accounts.create(&PostParams::default(), &account))
            .unwrap_or_else(|e| panic!("service account {name}: {e}"));
    }

    /// Makes a pod of a service account on a node, as a scheduler would. [`Self::kubelets`] let it run.
    pub(crate) fn pod_on(&self, node: &str, namespace: &str, name: &str, service_account: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let pod = object(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node,
                "serviceAccountName": service_account,
                "containers": [{"name": "main", "image": "none.invalid/none"}],
            },
        }));
        Self::block_on(pods.create(&PostParams::default(), &pod))
            .unwrap_or_else(|e| panic!("pod {name}: {e}"));
    }

    /// A token of a service account for an hour. Without an audience it is for the API server.
    pub(crate) fn token(
        &self,
        namespace: &str,
        service_account: &str,
        audience: Option<&str>,
    ) -> String {
        self.request_token(namespace, service_account, audience, &Value::Null)
    }

    /// A token as a projected volume has it: bound to a pod of [`Self::pod_on`], so that it names the pod's node.
    pub(crate) fn token_of_pod(
        &self,
        namespace: &str,
        service_account: &str,
        pod: &str,
        audience: Option<&str>,
    ) -> String {
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod});
        self.request_token(namespace, service_account, audience, &bound)
    }

    /// A kubeconfig with a token of a service account: what it may do is what RBAC gives to it.
    pub(crate) fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> PathBuf {
        let token = self.token(namespace, service_account, None);
        self.kubeconfig_for(&token, self.address())
    }

    fn request_token(
        &self,
        namespace: &str,
        service_account: &str,
        audience: Option<&str>,
        bound: &Value,
    ) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let audiences = audience.map_or_else(Vec::new, |audience| vec![audience]);
        let request: TokenRequest = object(json!({
            "spec": {"audiences": audiences, "expirationSeconds": 3600, "boundObjectRef": bound},
        }));
        let params = PostParams::default();
        Self::block_on(accounts.create_token_request(service_account, &params, &request))
            .ok()
            .and_then(|answer| Some(answer.status?.token))
            .unwrap_or_else(|| panic!("no token of service account {namespace}/{service_account}"))
    }
}

/// The shape is checked by the types, the rest by the API server.
fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of the API")
}
