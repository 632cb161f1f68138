//! Waits until a broker answers, and sees what stands in its way. Shell.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use subsea_api::admin::BrokerStatus;
use tokio::time::Instant;

use super::{BROKER, DeployError, LOOK, admin_file};
use crate::broker_client::{BrokerClient, ClientError};
use crate::kube::apply::Progress;
use crate::kube::error::KubeError;
use crate::kube::obstacles::obstacles;

/// How often it is said that there is no answer yet.
const TELL: Duration = Duration::from_secs(5);

/// What is waited for.
pub(super) struct Wait<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    /// What the broker is to tell members.
    pub(super) urls: &'a [String],
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
            let missing = match self.look().await? {
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

    async fn look(&self) -> Result<Result<BrokerStatus, Missing>, DeployError> {
        let sets: Api<StatefulSet> = Api::namespaced(self.client.clone(), self.namespace);
        let set = sets.get(BROKER).await.map_err(|e| {
            KubeError::of("get", format!("StatefulSet {}/{BROKER}", self.namespace), e)
        })?;
        let status = set.status.unwrap_or_default();
        let seen = status.observed_generation >= set.metadata.generation;
        let new = status.update_revision.is_some() && status.updated_replicas == Some(1);
        if !seen || !new || status.ready_replicas != Some(1) {
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
            Ok(status) if self.urls.iter().all(|url| status.urls.contains(url)) => Ok(status),
            Ok(status) => Err(Missing::Broker(format!(
                "it still tells members {}",
                status.urls.join(", ")
            ))),
            Err(error) => Err(Missing::Way(error)),
        })
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
