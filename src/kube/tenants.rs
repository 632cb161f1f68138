//! Whose namespace it is: a broker and the daemons of a cluster share none. A removal takes what has our labels, and would take the
//! one with the other, the volume with the fleet included. Shell.

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::error::KubeError;
use super::labels;

const DAEMONS: [&str; 2] = ["subsea-gateway", "subsea-agent"];

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
    for name in DAEMONS {
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

/// The other namespace in which the daemons of this cluster live, if there is one: roles and ports are there once in a cluster.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn daemons_elsewhere(
    client: &Client,
    namespace: &str,
) -> Result<Option<String>, KubeError> {
    let homes = homes(client, &DAEMONS).await?;
    Ok(homes.into_iter().find(|home| home != namespace))
}

/// The namespaces in which `DaemonSet`s of ours with these names are. `part-of` is what Helm leaves alone.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn homes(client: &Client, names: &[&str]) -> Result<Vec<String>, KubeError> {
    let ours = format!("{}={}", labels::PART_OF, labels::SUBSEA);
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let found = sets
        .list_metadata(&ListParams::default().labels(&ours))
        .await;
    let found = found.map_err(|e| KubeError::of("list", "DaemonSets", e))?;
    let named = found
        .iter()
        .filter(|set| names.contains(&set.name_any().as_str()));
    Ok(named.filter_map(ResourceExt::namespace).collect())
}
