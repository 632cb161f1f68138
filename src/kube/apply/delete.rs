//! Takes objects out of a cluster. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Preconditions, TypeMeta};
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use super::{Applier, LOOK, Progress, get, is_ours, kind};
use crate::kube::error::{KubeError, is_absent};
use crate::kube::labels;
use crate::kube::manifests::{Object, name};

/// How often it is said that a namespace is still there.
const TELL: Duration = Duration::from_secs(5);
/// Kinds of which more may have our labels than is in a list of objects.
const MORE: [&str; 2] = ["Secret", "ConfigMap"];

impl Applier {
    /// Deletes the objects, the last first, and what else of their kinds has our labels; then waits until their namespace is
    /// gone. What is not there is no obstacle; what lacks our labels stays, and is told.
    ///
    /// # Errors
    /// [`KubeError`] when the API server refuses, or at the end of the time.
    pub async fn delete(
        &mut self,
        objects: &[Object],
        timeout: Duration,
        progress: Progress<'_>,
    ) -> Result<(), KubeError> {
        let limit = Instant::now() + timeout;
        let mut namespaces = Vec::new();
        for object in objects.iter().rev() {
            if kind(object) == "Namespace" {
                namespaces.push(object);
            } else {
                self.delete_one(object, &mut *progress).await?;
            }
        }
        for object in self.labelled(objects).await? {
            self.delete_one(&object, &mut *progress).await?;
        }
        // The last: its end takes all else along, and would hide what is not ours.
        for object in namespaces {
            if self.delete_one(object, &mut *progress).await? {
                self.gone(&object.name_any(), limit, &mut *progress).await?;
            }
        }
        Ok(())
    }

    /// Whether the object is going now.
    async fn delete_one(
        &mut self,
        object: &Object,
        progress: Progress<'_>,
    ) -> Result<bool, KubeError> {
        let what = name(object);
        let Some(api) = self.api(object).await? else {
            return Ok(false);
        };
        let Some(there) = get(&api, object).await? else {
            return Ok(false);
        };
        if !is_ours(&there) {
            progress(&format!("left {what}: it does not have our labels"));
            return Ok(false);
        }
        // What was looked at is what is deleted, not what somebody puts there meanwhile.
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: there.uid(),
            resource_version: None,
        });
        match api.delete(&object.name_any(), &params).await {
            Ok(_) => progress(&format!("deleted {what}")),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(KubeError::of("delete", what, error)),
        }
        Ok(true)
    }

    /// What has our labels, of the kinds and in the namespaces of the objects: an earlier version may have had more.
    async fn labelled(&mut self, objects: &[Object]) -> Result<Vec<Object>, KubeError> {
        let ours = labels::ours().map(|(key, value)| format!("{key}={value}"));
        let params = ListParams::default().labels(&ours.join(","));
        let mut asked = BTreeSet::new();
        let mut found = Vec::new();
        let more = objects
            .iter()
            .filter(|o| kind(o) == "Namespace")
            .flat_map(|namespace| MORE.map(|kind| inside(&namespace.name_any(), kind)));
        for object in objects.iter().cloned().chain(more) {
            let types = object.types.clone().unwrap_or_default();
            let place = object.namespace();
            // Namespaces of ours may be those of other parts.
            let once = asked.insert((types.api_version.clone(), types.kind.clone(), place));
            if types.kind == "Namespace" || !once {
                continue;
            }
            let Some(api) = self.api(&object).await? else {
                continue;
            };
            let items = match api.list(&params).await {
                Ok(list) => list.items,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(KubeError::of("list", types.kind, error)),
            };
            // Items of a list do not say what they are.
            found.extend(items.into_iter().map(|item| Object {
                types: Some(types.clone()),
                ..item
            }));
        }
        Ok(found)
    }

    /// Waits until a namespace is gone.
    pub(super) async fn gone(
        &self,
        namespace: &str,
        limit: Instant,
        progress: Progress<'_>,
    ) -> Result<(), KubeError> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let start = Instant::now();
        let mut told = start;
        loop {
            let there = namespaces
                .get_opt(namespace)
                .await
                .map_err(|e| KubeError::of("get", format!("Namespace {namespace}"), e))?;
            let Some(there) = there else {
                return Ok(());
            };
            let now = Instant::now();
            let waited = now.duration_since(start).as_secs();
            let conditions = there.status.and_then(|s| s.conditions).unwrap_or_default();
            let why: Vec<String> = conditions
                .into_iter()
                .filter(|c| c.status == "True")
                .filter_map(|c| c.message)
                .collect();
            if now >= limit {
                return Err(KubeError::Late {
                    what: format!("the namespace `{namespace}` is still there"),
                    seconds: waited,
                    why,
                });
            }
            if now >= told + TELL {
                told = now;
                let why = match why.first() {
                    Some(why) => format!(": {why}"),
                    None => String::new(),
                };
                progress(&format!(
                    "waiting until the namespace `{namespace}` is gone, {waited} s{why}"
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Stands for all objects of a core kind in a namespace.
fn inside(namespace: &str, kind: &str) -> Object {
    Object {
        types: Some(TypeMeta {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
        }),
        metadata: kube::api::ObjectMeta {
            namespace: Some(namespace.to_owned()),
            ..kube::api::ObjectMeta::default()
        },
        data: serde_json::Value::Null,
    }
}
