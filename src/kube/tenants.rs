//! Whose namespace it is: a broker and the daemons of a cluster share none. A removal takes what has our labels, and would take the
//! one with the other, the volume with the fleet included. Shell.

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use kube::{Api, Client};

use super::error::KubeError;

/// Whether a broker lives in a namespace.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn has_broker(client: &Client, namespace: &str) -> Result<bool, KubeError> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let found = sets.get_opt("subsea-broker").await;
    let what = || format!("StatefulSet {namespace}/subsea-broker");
    Ok(found
        .map_err(|e| KubeError::of("get", what(), e))?
        .is_some())
}

/// Whether the daemons of a cluster live in a namespace.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn has_daemons(client: &Client, namespace: &str) -> Result<bool, KubeError> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    for name in ["subsea-gateway", "subsea-agent"] {
        let found = sets.get_opt(name).await;
        let what = || format!("DaemonSet {namespace}/{name}");
        if found
            .map_err(|e| KubeError::of("get", what(), e))?
            .is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}
