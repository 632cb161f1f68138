//! Puts objects into a cluster by server-side apply, and takes them out again. Shell.
//!
//! Both can be repeated at any time, and go on where the last one ended. What others put there is not ours to take: only
//! what has our labels is deleted, and a namespace that was there before never gets them.

mod delete;
mod namespace;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::discovery::{self, ApiCapabilities, Scope};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use super::error::{KubeError, is_absent};
use super::labels;
use super::manifests::Object;
use super::manifests::name;

/// Under which name the API server remembers which fields are ours.
pub const MANAGER: &str = "subsea";
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(250);
/// How long the API server may take to serve a new kind.
const ESTABLISH: Duration = Duration::from_mins(1);

/// Told what happens, line by line.
pub type Progress<'a> = &'a mut (dyn FnMut(&str) + Send);

/// Works on the objects of one cluster.
pub struct Applier {
    client: Client,
    kinds: BTreeMap<(String, String), (ApiResource, ApiCapabilities)>,
    force: bool,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").finish_non_exhaustive()
    }
}

impl Applier {
    /// Leaves fields alone that belong to others, and says so; takes them over with `force`.
    pub fn new(client: Client, force: bool) -> Self {
        Self {
            client,
            kinds: BTreeMap::new(),
            force,
        }
    }

    /// By which it works.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes the objects what they should be, in their order. New kinds are waited for, and so is the end of a namespace or a
    /// kind that is going.
    ///
    /// # Errors
    /// [`KubeError`] at the first object that cannot be applied; those before it are.
    pub async fn apply(
        &mut self,
        objects: &[Object],
        progress: Progress<'_>,
    ) -> Result<(), KubeError> {
        let mut defined = Vec::new();
        for object in objects {
            if kind(object) == "CustomResourceDefinition" {
                defined.push(object.name_any());
            } else {
                for name in defined.drain(..) {
                    self.established(&name, &mut *progress).await?;
                }
            }
            self.apply_one(object, &mut *progress).await?;
        }
        for name in defined {
            self.established(&name, &mut *progress).await?;
        }
        Ok(())
    }

    async fn apply_one(
        &mut self,
        object: &Object,
        progress: Progress<'_>,
    ) -> Result<(), KubeError> {
        let what = name(object);
        let Some(api) = self.api(object).await? else {
            let types = object.types.clone().unwrap_or_default();
            return Err(KubeError::UnknownKind {
                kind: types.kind,
                version: types.api_version,
                what,
            });
        };
        let mut before = get(&api, object).await?;
        if before.as_ref().is_some_and(is_going) && takes_along(object) {
            // What is applied now would go with it.
            let limit = Instant::now() + ESTABLISH;
            self.gone(object, limit, &mut *progress).await?;
            before = None;
        }
        let mut wanted = object.clone();
        if kind(object) == "Namespace"
            && let Some(before) = before.as_ref().filter(|b| !is_ours(b))
        {
            // It has a life of its own: a later removal must not end it.
            namespace::borrow(&mut wanted, before);
        }
        let mut params = PatchParams::apply(MANAGER).validation_strict();
        params.force = self.force;
        let after = api
            .patch(&object.name_any(), &params, &Patch::Apply(&wanted))
            .await
            .map_err(|e| KubeError::of("apply", &what, e))?;
        progress(&match before {
            None => format!("created {what}"),
            Some(b) if b.resource_version() == after.resource_version() => {
                format!("unchanged {what}")
            }
            Some(_) => format!("changed {what}"),
        });
        Ok(())
    }

    /// Waits until the API server serves a kind.
    async fn established(&self, called: &str, progress: Progress<'_>) -> Result<(), KubeError> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let what = format!("CustomResourceDefinition {called}");
        let limit = Instant::now() + ESTABLISH;
        let mut told = false;
        loop {
            let definition = definitions
                .get(called)
                .await
                .map_err(|e| KubeError::of("get", &what, e))?;
            let conditions = definition.status.as_ref();
            let conditions = conditions
                .and_then(|s| s.conditions.as_deref())
                .unwrap_or_default();
            let is = |name: &str| conditions.iter().find(|c| c.type_ == name);
            let established = is("Established").is_some_and(|c| c.status == "True");
            if established && self.is_served(&definition).await? {
                return Ok(());
            }
            let refused = is("NamesAccepted").filter(|c| c.status == "False");
            let why = refused.and_then(|c| c.message.clone());
            if Instant::now() >= limit || why.is_some() {
                return Err(KubeError::Late {
                    what: format!("{what} is not established"),
                    seconds: ESTABLISH.as_secs(),
                    why: why.into_iter().collect(),
                });
            }
            if !told {
                told = true;
                progress(&format!("waiting until {called} is established"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the API server answers for a kind: that comes after it is established, and until then it can neither be written
    /// nor deleted well.
    async fn is_served(&self, definition: &CustomResourceDefinition) -> Result<bool, KubeError> {
        let spec = &definition.spec;
        let Some(version) = spec.versions.iter().find(|v| v.served) else {
            return Ok(true);
        };
        let kind = GroupVersionKind::gvk(&spec.group, &version.name, &spec.names.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &spec.names.plural);
        let objects: Api<Object> = Api::all_with(self.client.clone(), &resource);
        match objects.list(&ListParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 429 => {
                Ok(false)
            }
            // Who may define kinds need not be allowed to read them.
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(true),
            Err(error) => Err(KubeError::of("list", spec.names.plural.clone(), error)),
        }
    }

    /// The API of an object's kind, and its namespace; none when the API server does not know the kind.
    async fn api(&mut self, object: &Object) -> Result<Option<Api<Object>>, KubeError> {
        let Some((resource, scope)) = self.resource(object).await? else {
            return Ok(None);
        };
        let client = self.client.clone();
        Ok(Some(match object.metadata.namespace.as_deref() {
            Some(namespace) if scope == Scope::Namespaced => {
                Api::namespaced_with(client, namespace, &resource)
            }
            Some(_) | None => Api::all_with(client, &resource),
        }))
    }

    /// How the API server calls an object's kind; asked once for each.
    async fn resource(
        &mut self,
        object: &Object,
    ) -> Result<Option<(ApiResource, Scope)>, KubeError> {
        let types = object.types.clone().unwrap_or_default();
        let key = (types.api_version.clone(), types.kind.clone());
        if let Some((resource, capabilities)) = self.kinds.get(&key) {
            return Ok(Some((resource.clone(), capabilities.scope.clone())));
        }
        let Ok(gvk) = GroupVersionKind::try_from(&types) else {
            return Ok(None);
        };
        match discovery::pinned_kind(&self.client, &gvk).await {
            Ok((resource, capabilities)) => {
                let found = (resource.clone(), capabilities.scope.clone());
                self.kinds.insert(key, (resource, capabilities));
                Ok(Some(found))
            }
            Err(kube::Error::Discovery(_)) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(KubeError::of("look up", types.kind, error)),
        }
    }
}

/// What there is now.
async fn get(api: &Api<Object>, object: &Object) -> Result<Option<Object>, KubeError> {
    api.get_opt(&object.name_any())
        .await
        .map_err(|e| KubeError::of("get", name(object), e))
}

fn kind(object: &Object) -> &str {
    object.types.as_ref().map_or("", |t| t.kind.as_str())
}

/// Whether it is being deleted.
fn is_going(object: &Object) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

/// Whether other objects go with it, which takes a while.
fn takes_along(object: &Object) -> bool {
    ["Namespace", "CustomResourceDefinition"].contains(&kind(object))
}

/// Whether it has all our labels.
fn is_ours(object: &Object) -> bool {
    let has = object.labels();
    labels::ours()
        .iter()
        .all(|(key, value)| has.get(*key).is_some_and(|v| v == value))
}
