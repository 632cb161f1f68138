//! Waits until a broker answers, and sees what stands in its way. Shell.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use subsea_api::admin::BrokerStatus;
use tokio::time::Instant;

use super::{BROKER, DeployError, LOOK, admin_file};
use crate::broker_client::{BrokerClient, ClientError};
use crate::kube::apply::Progress;
use crate::kube::error::KubeError;
use crate::kube::obstacles::obstacles;
use crate::kube::rollout::is_pod_ready;

/// How often it is said that there is no answer yet.
const TELL: Duration = Duration::from_secs(5);

/// What is waited for.
pub(super) struct Wait<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    /// Where it is to answer.
    pub(super) urls: &'a [String],
    /// What it is to tell members.
    pub(super) told: &'a [String],
    pub(super) limit: Instant,
    pub(super) timeout: Duration,
}

/// Why it is not over yet.
enum Missing {
    /// The process, or what it writes.
    Broker(String),
    /// A way to it.
    Way(ClientError),
}

impl Wait<'_> {
    /// Until the broker answers an operator, and tells members these URLs.
    pub(super) async fn until(&self, progress: Progress<'_>) -> Result<BrokerStatus, DeployError> {
        let mut told: Option<(Instant, String)> = None;
        loop {
            let missing = match self.look(&mut *progress).await? {
                Ok(status) => return Ok(status),
                Err(missing) => missing,
            };
            let now = Instant::now();
            if now >= self.limit {
                return Err(self.late(missing).await?);
            }
            let line = match &missing {
                Missing::Broker(what) => what.clone(),
                Missing::Way(error) => format!("it does not answer yet: {}", super::chain(error)),
            };
            let again = told
                .as_ref()
                .is_none_or(|(at, last)| *last != line && now >= *at + TELL);
            if again {
                progress(&format!("waiting for the broker: {line}"));
                told = Some((now, line));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(
        &self,
        progress: Progress<'_>,
    ) -> Result<Result<BrokerStatus, Missing>, DeployError> {
        let sets: Api<StatefulSet> = Api::namespaced(self.client.clone(), self.namespace);
        let set = sets.get(BROKER).await.map_err(|e| {
            KubeError::of("get", format!("StatefulSet {}/{BROKER}", self.namespace), e)
        })?;
        let status = set.status.unwrap_or_default();
        let seen = status.observed_generation >= set.metadata.generation;
        let new = status.update_revision.is_some() && status.updated_replicas == Some(1);
        if !seen || !new || status.ready_replicas != Some(1) {
            if let Some(revision) = status.update_revision.filter(|_| seen) {
                self.end_stuck(&revision, progress).await?;
            }
            let first = self.obstacles().await?.into_iter().next();
            let why = first.unwrap_or_else(|| "its pod is being replaced".to_owned());
            return Ok(Err(Missing::Broker(why)));
        }
        let file = match admin_file(self.client, self.namespace).await {
            Ok(file) => file,
            Err(error @ DeployError::NoAdminFile { .. }) => {
                return Ok(Err(Missing::Broker(error.to_string())));
            }
            Err(error) => return Err(error),
        };
        let asked = match BrokerClient::operator(&file, self.urls) {
            Ok(broker) => broker.status().await,
            Err(error) => Err(error),
        };
        Ok(match asked {
            Ok(status) if self.told.iter().all(|url| status.urls.contains(url)) => Ok(status),
            Ok(status) => Err(Missing::Broker(format!(
                "it still tells members {}",
                status.urls.join(", ")
            ))),
            Err(error) => Err(Missing::Way(error)),
        })
    }

    /// The controller of a `StatefulSet` waits for its pod to be ready before it replaces it: one that never will be, as
    /// with an image that is not there, is in the way of what would mend it, and is deleted.
    async fn end_stuck(&self, revision: &str, progress: Progress<'_>) -> Result<(), KubeError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let name = format!("{BROKER}-0");
        let what = || format!("Pod {}/{name}", self.namespace);
        let found = pods.get_opt(&name).await;
        let found = found.map_err(|e| KubeError::of("get", what(), e))?;
        let is_stuck = |pod: &Pod| {
            let of = pod.labels().get("controller-revision-hash");
            pod.metadata.deletion_timestamp.is_none()
                && of.is_some_and(|of| of != revision)
                && !is_pod_ready(pod)
        };
        let Some(pod) = found.filter(is_stuck) else {
            return Ok(());
        };
        let only_this = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid,
                resource_version: pod.metadata.resource_version,
            }),
            ..DeleteParams::default()
        };
        match pods.delete(&name, &only_this).await {
            Ok(_) => {
                progress(&format!(
                    "pod {name} is not ready as it was, and is replaced"
                ));
                Ok(())
            }
            // It has changed meanwhile.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(error) => Err(KubeError::of("delete", what(), error)),
        }
    }

    async fn late(&self, missing: Missing) -> Result<DeployError, DeployError> {
        let seconds = self.timeout.as_secs();
        Ok(match missing {
            Missing::Way(source) => DeployError::NotReached { seconds, source },
            Missing::Broker(what) => {
                let mut why = self.obstacles().await?;
                if !why.contains(&what) {
                    why.insert(0, what);
                }
                let what = "the broker does not answer".to_owned();
                DeployError::Kube(KubeError::Late { what, seconds, why })
            }
        })
    }

    /// What stands in the way of its pod.
    async fn obstacles(&self) -> Result<Vec<String>, KubeError> {
        let ours = ListParams::default().labels("app.kubernetes.io/name=subsea-broker");
        let all = ListParams::default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), self.namespace);
        let events: Api<Event> = Api::namespaced(self.client.clone(), self.namespace);
        let failed = |what: &'static str| move |e| KubeError::of("list", what, e);
        let pods = pods.list(&ours).await.map_err(failed("pods"))?;
        let claims = claims.list(&all).await.map_err(failed("volume claims"))?;
        let events = events.list(&all).await.map_err(failed("events"))?;
        Ok(obstacles(&pods.items, &claims.items, &events.items))
    }
}
