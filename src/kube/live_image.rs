//! Which image the daemons of a cluster run. Shell.
//!
//! A leave sweeps the nodes with it: they have it, or can pull it. It ends the daemons first, so it notes the image in a ConfigMap
//! that goes with all else at the end, and a repeat finds it there.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};

use super::apply::MANAGER;
use super::error::KubeError;
use super::labels;
use super::manifests::Image;

/// Holds what a repeated leave must know.
const NOTE: &str = "subsea-leave";
/// The key in it.
const KEY: &str = "image.json";
/// A join changes it first, so it is the newer one of an upgrade that was interrupted.
const GATEWAY: &str = "subsea-gateway";
/// It runs on every node, so every node has its image.
const AGENT: &str = "subsea-agent";

/// The image that a join has installed last; none: it has installed no daemons.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub async fn installed(client: &Client, namespace: &str) -> Result<Option<Image>, KubeError> {
    of(client, namespace, [GATEWAY, AGENT]).await
}

/// The image of the daemons, which is noted, or the one that an earlier leave has noted.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn noted(client: &Client, namespace: &str) -> Result<Option<Image>, KubeError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let what = || format!("ConfigMap {namespace}/{NOTE}");
    let Some(image) = of(client, namespace, [AGENT, GATEWAY]).await? else {
        let note = maps.get_opt(NOTE).await;
        let note = note.map_err(|e| KubeError::of("get", what(), e))?;
        let data = note.and_then(|note| note.data).unwrap_or_default();
        // What somebody else wrote there is as good as nothing: `--image` says it.
        return Ok(data
            .get(KEY)
            .and_then(|text| serde_json::from_str(text).ok()));
    };
    let mut all: BTreeMap<String, String> = labels::ours()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    all.insert(labels::COMPONENT.to_owned(), "sweeper".to_owned());
    let note = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NOTE.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(all),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), serde_json::json!(image).to_string())].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(MANAGER).force();
    let done = maps.patch(NOTE, &params, &Patch::Apply(&note)).await;
    done.map_err(|e| KubeError::of("apply", what(), e))?;
    Ok(Some(image))
}

/// That of the first of these DaemonSets that is there.
async fn of(
    client: &Client,
    namespace: &str,
    daemons: [&str; 2],
) -> Result<Option<Image>, KubeError> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    for name in daemons {
        let found = api.get_opt(name).await;
        let what = || format!("DaemonSet {namespace}/{name}");
        let found = found.map_err(|e| KubeError::of("get", what(), e))?;
        let Some((daemon, mut image)) = found.and_then(|d| Image::of(&d).map(|image| (d, image)))
        else {
            continue;
        };
        let pod = daemon.spec.and_then(|spec| spec.template.spec);
        if let Some(account) = pod.and_then(|pod| pod.service_account_name)
            && image.pull_secrets.is_empty()
        {
            image.pull_secrets = of_account(client, namespace, &account).await?;
        }
        return Ok(Some(image));
    }
    Ok(None)
}

/// The Secrets that the API server gives to each pod of an account that names none itself.
async fn of_account(
    client: &Client,
    namespace: &str,
    account: &str,
) -> Result<Vec<String>, KubeError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let found = accounts.get_opt(account).await;
    let what = || format!("ServiceAccount {namespace}/{account}");
    let found = found.map_err(|e| KubeError::of("get", what(), e))?;
    let secrets = found.and_then(|account| account.image_pull_secrets);
    Ok(secrets
        .into_iter()
        .flatten()
        .map(|secret| secret.name)
        .collect())
}
