//! Which image the daemons of a cluster and the broker run, and with which Secrets it is pulled. Shell.
//!
//! A leave sweeps the nodes with it: they have it, or can pull it. It ends the daemons first, so it notes the image in a ConfigMap
//! that goes with all else at the end, and a repeat finds it there.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret, ServiceAccount};
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
/// The broker's.
const BROKER: &str = "subsea-broker";
/// It runs on every node, so every node has its image.
const AGENT: &str = "subsea-agent";

/// The image that a join has installed last; none: it has installed no daemons.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub async fn installed(client: &Client, namespace: &str) -> Result<Option<Image>, KubeError> {
    let pod = pod(client, namespace, [GATEWAY, AGENT]).await?;
    Ok(pod.as_ref().and_then(Image::of))
}

/// The image of the broker that is installed there; none: there is none.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub async fn of_broker(client: &Client, namespace: &str) -> Result<Option<Image>, KubeError> {
    let api: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(BROKER).await;
    let what = || format!("StatefulSet {namespace}/{BROKER}");
    let found = found.map_err(|e| KubeError::of("get", what(), e))?;
    let pod = found.and_then(|set| set.spec?.template.spec);
    Ok(pod.as_ref().and_then(Image::of))
}

/// Whether the Secrets are there with which an image is to be pulled: without them the kubelet asks its registry as a stranger. What
/// is in them is not read.
///
/// # Errors
/// [`KubeError::NoPullSecret`] with the first that is not; another when the API server refuses.
pub async fn check_secrets(
    client: &Client,
    namespace: &str,
    image: &Image,
) -> Result<(), KubeError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in &image.pull_secrets {
        let found = api.get_metadata_opt(name).await;
        let what = || format!("Secret {namespace}/{name}");
        if found
            .map_err(|e| KubeError::of("get", what(), e))?
            .is_none()
        {
            return Err(KubeError::NoPullSecret {
                namespace: namespace.to_owned(),
                name: name.clone(),
            });
        }
    }
    Ok(())
}

/// The image of the daemons, which is noted, or the one that an earlier leave has noted.
///
/// # Errors
/// [`KubeError`] when the API server refuses.
pub(super) async fn noted(client: &Client, namespace: &str) -> Result<Option<Image>, KubeError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let what = || format!("ConfigMap {namespace}/{NOTE}");
    let pod = pod(client, namespace, [AGENT, GATEWAY]).await?;
    let account = pod
        .as_ref()
        .and_then(|pod| pod.service_account_name.clone());
    let Some(mut image) = pod.as_ref().and_then(Image::of) else {
        let note = maps.get_opt(NOTE).await;
        let note = note.map_err(|e| KubeError::of("get", what(), e))?;
        let data = note.and_then(|note| note.data).unwrap_or_default();
        // What somebody else wrote there is as good as nothing: `--image` says it.
        return Ok(data
            .get(KEY)
            .and_then(|text| serde_json::from_str(text).ok()));
    };
    if let Some(account) = account
        && image.pull_secrets.is_empty()
    {
        image.pull_secrets = of_account(client, namespace, &account).await?;
    }
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

/// The pods of the first of these DaemonSets that is there.
async fn pod(
    client: &Client,
    namespace: &str,
    daemons: [&str; 2],
) -> Result<Option<PodSpec>, KubeError> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    for name in daemons {
        let found = api.get_opt(name).await;
        let what = || format!("DaemonSet {namespace}/{name}");
        let found = found.map_err(|e| KubeError::of("get", what(), e))?;
        if let Some(pod) = found.and_then(|daemon| daemon.spec?.template.spec) {
            return Ok(Some(pod));
        }
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
