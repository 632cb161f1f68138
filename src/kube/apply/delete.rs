//! Takes objects out of a cluster. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, TypeMeta};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Applier, LOOK, MANAGER, Progress, get, is_going, is_ours, kind, namespace, takes_along,
};
use crate::kube::error::{KubeError, is_absent};
use crate::kube::labels;
use crate::kube::manifests::{Object, name};

/// How often it is said that a namespace is still there.
const TELL: Duration = Duration::from_secs(5);
/// Kinds of which more may have our labels than is in a list of objects.
const MORE: [&str; 2] = ["Secret", "ConfigMap"];

impl Applier {
    /// Deletes the objects, the last first, and what else of their kinds has our labels; then waits until their namespace
    /// and kinds are gone. What is not there is no obstacle; what lacks our labels stays, and is told.
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
        let mut going = Vec::new();
        let mut namespaces = Vec::new();
        for object in objects.iter().rev() {
            if kind(object) == "Namespace" {
                namespaces.push(object.clone());
            } else if self.delete_one(object, &mut *progress).await? && takes_along(object) {
                going.push(object.clone());
            }
        }
        for object in self.labelled(objects).await? {
            self.delete_one(&object, &mut *progress).await?;
        }
        // The last: its end takes all else along, and would hide what is not ours.
        for object in namespaces {
            if self.delete_one(&object, &mut *progress).await? {
                going.push(object);
            }
        }
        for object in &going {
            self.gone(object, limit, &mut *progress).await?;
        }
        Ok(())
    }

    /// Whether an object is there and ours, or a namespace that was there before, with something of ours on it.
    ///
    /// # Errors
    /// [`KubeError`] when the API server refuses.
    pub async fn has_ours(&mut self, object: &Object) -> Result<bool, KubeError> {
        let Some(api) = self.api(object).await? else {
            return Ok(false);
        };
        let is_lent =
            |there: &Object| kind(object) == "Namespace" && namespace::before(there).is_some();
        Ok(get(&api, object)
            .await?
            .is_some_and(|there| is_ours(&there) || is_lent(&there)))
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
        if !is_ours(&there) && kind(object) == "Namespace" {
            self.give_back(&there, &mut *progress).await?;
            return Ok(false);
        }
        if !is_ours(&there) {
            progress(&format!("left {what}: it does not have our labels"));
            return Ok(false);
        }
        if is_going(&there) {
            return Ok(true);
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

    /// Takes what is ours from a namespace that was there before, so that it is as it was.
    async fn give_back(&self, there: &Object, progress: Progress<'_>) -> Result<(), KubeError> {
        let what = name(there);
        let Some(before) = namespace::before(there) else {
            progress(&format!("kept {what}: it was there before"));
            return Ok(());
        };
        let failed = |e| KubeError::of("give its labels back to", &what, e);
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let called = there.name_any();
        // In this order: the note goes last, and an end between the two is repeated.
        let labels = json!({"metadata": {"labels": before}});
        let params = PatchParams::default();
        let done = namespaces
            .patch(&called, &params, &Patch::Merge(&labels))
            .await;
        done.map_err(failed)?;
        let nothing =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": called}});
        let params = PatchParams::apply(MANAGER).force();
        let done = namespaces
            .patch(&called, &params, &Patch::Apply(&nothing))
            .await;
        done.map_err(failed)?;
        progress(&format!(
            "kept {what}: it was there before, and has the labels of before"
        ));
        Ok(())
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

    /// Waits until an object is gone.
    pub(super) async fn gone(
        &mut self,
        object: &Object,
        limit: Instant,
        progress: Progress<'_>,
    ) -> Result<(), KubeError> {
        let Some(api) = self.api(object).await? else {
            return Ok(());
        };
        let what = name(object);
        let start = Instant::now();
        let mut told = start;
        while let Some(there) = get(&api, object).await? {
            let now = Instant::now();
            let waited = now.duration_since(start).as_secs();
            let why = held(&there);
            if now >= limit {
                return Err(KubeError::Late {
                    what: format!("{what} is still there"),
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
                progress(&format!("waiting until {what} is gone, {waited} s{why}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// What an object that is going says about why it is still there.
fn held(object: &Object) -> Vec<String> {
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or("").to_owned();
    conditions
        .filter(|c| text(c, "status") == "True")
        // Of definitions, others tell that they are well.
        .filter(|c| text(c, "type").starts_with("Namespace") || text(c, "type") == "Terminating")
        .map(|c| text(c, "message"))
        .collect()
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
        data: Value::Null,
    }
}
