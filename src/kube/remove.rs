//! Takes a cluster out of its fleet, and Subsea out of the cluster: what `subsea leave --context` does, in order. Shell.
//!
//! ```text
//! withdraw   a token of the ServiceAccount subsea-operator -> POST /v1/withdraw
//! sweep      the daemons go; a DaemonSet takes devices, routes and keys from every node
//! delete     all that has our labels, the namespace last; our label from nodes
//! ```
//!
//! A half-made installation has less of it; each part does what is there to be done.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Secret, ServiceAccount};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use subsea_api::enrolment::WithdrawRequest;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::service_account::{AUDIENCE, Account};
use subsea_api::{ClusterId, Code, FleetName, Problem};
use tokio::time::Instant;

use super::apply::{Applier, Progress};
use super::error::{KubeError, is_absent};
use super::install::{SECRET, Standing, unlabel};
use super::labels;
use super::manifests::{self, ClusterOptions, ManifestError, Object};
use crate::broker_client::{BrokerClient, ClientError};

/// The daemons, whose pods go before the nodes are swept.
const DAEMONS: [&str; 2] = ["subsea-gateway", "subsea-agent"];
/// What sweeps the nodes.
const SWEEPER: &str = "subsea-sweeper";
/// How long the token of the operator's account lives: the shortest that there is.
const TOKEN: i64 = 600;
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(500);

/// Why a cluster did not leave.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The cluster did not do what it was asked.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The objects cannot be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The broker was not told, and nothing was removed.
    #[error("the broker was not told, and nothing was removed")]
    Broker(#[source] ClientError),
    /// Nothing is there.
    #[error("Subsea is not installed in the namespace {namespace}")]
    NotThere {
        /// Where it was looked for.
        namespace: String,
    },
}

impl RemoveError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kube(error) => error.hint(),
            Self::Broker(_) => Some(
                "repeat when the broker answers; or remove what is in the cluster with `--local`, and the member with \
                 `subsea-broker cluster forget ID`"
                    .into(),
            ),
            Self::NotThere { .. } => Some("`--namespace` says where else it is".into()),
            Self::Manifest(_) => None,
        }
    }
}

/// How to leave.
#[derive(Debug, Clone)]
pub struct RemoveOptions {
    /// What was installed: namespace, image.
    pub manifests: ClusterOptions,
    /// Do not ask the broker.
    pub local: bool,
    /// For each part that waits.
    pub timeout: Duration,
}

/// Removes everything; gives what stayed, a line for each.
///
/// # Errors
/// [`RemoveError`]. It can be repeated.
pub async fn remove(
    client: &Client,
    options: &RemoveOptions,
    progress: Progress<'_>,
) -> Result<Vec<String>, RemoveError> {
    let namespace = &options.manifests.namespace;
    let mut objects = manifests::cluster(&options.manifests)?;
    objects.extend(manifests::admission(&options.manifests)?);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let standing = Standing::read(client, namespace).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default().labels(labels::GATEWAY))
        .await;
    let nodes = nodes.map_err(|e| KubeError::of("list", "nodes", e))?;
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let ran = ran(&daemons).await?;
    if !standing.is_there() && !ran && !any(client, &objects).await? {
        return Err(RemoveError::NotThere {
            namespace: namespace.clone(),
        });
    }
    let file = standing.file();
    match &file {
        Some(file) if !options.local => withdraw(client, namespace, file, &mut *progress).await?,
        Some(file) => progress(&format!(
            "the broker is not told: cluster {} stays a member of fleet {}",
            file.cluster, file.fleet
        )),
        None => progress("the cluster was never admitted: there is no broker to tell"),
    }
    if file.is_some() && !options.local {
        // The broker knows: a repeat needs no token any more, whose account may be gone by then.
        forget(&secrets, namespace).await?;
    }
    // Also where no daemon is left: a leave that was interrupted ended them and swept nothing.
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let there = namespaces.get_opt(namespace).await;
    let there = there.map_err(|e| KubeError::of("get", format!("Namespace {namespace}"), e))?;
    let mut stayed = Vec::new();
    if there.is_some_and(|there| there.metadata.deletion_timestamp.is_none()) {
        let of = file.as_ref().map(|file| (&file.fleet, &file.cluster));
        stayed.extend(sweep(client, options, of, &mut *progress).await?);
    }
    for node in &nodes.items {
        unlabel(client, &node.name_any()).await?;
    }
    let mut applier = Applier::new(client.clone(), true);
    let mut told = |line: &str| {
        if line.starts_with("left ") {
            stayed.push(line.to_owned());
        }
        progress(line);
    };
    applier.delete(&objects, options.timeout, &mut told).await?;
    Ok(stayed)
}

/// Ends what sweeps nodes, if it runs, and waits until it is gone.
///
/// # Errors
/// [`KubeError`] when the API server refuses, or at the end of the time.
pub(super) async fn end_sweeper(
    client: &Client,
    namespace: &str,
    timeout: Duration,
) -> Result<(), KubeError> {
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    end(&daemons, SWEEPER, Instant::now() + timeout, timeout).await
}

/// Deletes a DaemonSet and waits until it and its pods are gone.
async fn end(
    daemons: &Api<DaemonSet>,
    name: &str,
    limit: Instant,
    timeout: Duration,
) -> Result<(), KubeError> {
    let what = || format!("DaemonSet {name}");
    // Foreground: it is gone when its pods are.
    match daemons.delete(name, &DeleteParams::foreground()).await {
        Ok(_) => {}
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(KubeError::of("delete", what(), error)),
    }
    loop {
        let there = daemons.get_opt(name).await;
        if there
            .map_err(|e| KubeError::of("get", what(), e))?
            .is_none()
        {
            return Ok(());
        }
        if Instant::now() >= limit {
            return Err(KubeError::Late {
                what: format!("pods of {name} are still there"),
                seconds: timeout.as_secs(),
                why: Vec::new(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Deletes the Secret, if it is ours.
async fn forget(secrets: &Api<Secret>, namespace: &str) -> Result<(), KubeError> {
    let of_ours = |secret: &Secret| {
        let has = |(key, value): (&str, &str)| secret.labels().get(key).is_some_and(|v| v == value);
        labels::ours().into_iter().all(has)
    };
    let failed = |e| KubeError::of("delete", format!("Secret {namespace}/{SECRET}"), e);
    let there = secrets.get_opt(SECRET).await.map_err(failed)?;
    if there.as_ref().is_some_and(of_ours) {
        let gone = secrets.delete(SECRET, &DeleteParams::default()).await;
        gone.map_err(failed)?;
    }
    Ok(())
}

/// Whether daemons were there, so that nodes have something of ours.
async fn ran(daemons: &Api<DaemonSet>) -> Result<bool, KubeError> {
    for name in DAEMONS.into_iter().chain([SWEEPER]) {
        let found = daemons.get_opt(name).await;
        let found = found.map_err(|e| KubeError::of("get", format!("DaemonSet {name}"), e))?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether anything of ours is there.
async fn any(client: &Client, objects: &[Object]) -> Result<bool, KubeError> {
    let mut applier = Applier::new(client.clone(), false);
    for object in objects {
        if applier.has_ours(object).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn withdraw(
    client: &Client,
    namespace: &str,
    file: &EnrolmentFile,
    progress: Progress<'_>,
) -> Result<(), RemoveError> {
    let account = Account::Operator.as_str();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        metadata: ObjectMeta::default(),
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(TOKEN),
            bound_object_ref: None,
        },
        status: None,
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|e| {
            KubeError::of(
                "make a token of",
                format!("ServiceAccount {namespace}/{account}"),
                e,
            )
        })?;
    let token = answer.status.map(|status| status.token).unwrap_or_default();
    let unusable = || ClientError::Protocol("the API server gave no usable token".to_owned());
    let request = WithdrawRequest {
        fleet: file.fleet.clone(),
        cluster: file.cluster.clone(),
        service_account_token: token.parse().map_err(|_| RemoveError::Broker(unusable()))?,
    };
    let broker = BrokerClient::anonymous(&file.broker, None).map_err(RemoveError::Broker)?;
    match broker.withdraw(&request).await {
        Ok(()) => progress(&format!(
            "cluster {} has left fleet {}",
            file.cluster, file.fleet
        )),
        Err(ClientError::Problem(Problem {
            code: Code::NotMember | Code::MemberRevoked | Code::NotFound,
            ..
        })) => progress(&format!(
            "the broker knew no more of cluster {}",
            file.cluster
        )),
        Err(error) => return Err(RemoveError::Broker(error)),
    }
    Ok(())
}

/// Ends the daemons, and takes what they left from the nodes; gives what could not be.
async fn sweep(
    client: &Client,
    options: &RemoveOptions,
    of: Option<(&FleetName, &ClusterId)>,
    progress: Progress<'_>,
) -> Result<Vec<String>, RemoveError> {
    let (namespace, timeout) = (&options.manifests.namespace, options.timeout);
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let limit = Instant::now() + timeout;
    progress("ending the daemons");
    for name in DAEMONS.into_iter().chain([SWEEPER]) {
        end(&daemons, name, limit, timeout).await?;
    }
    let sweeper = manifests::sweeper(&options.manifests, of)?;
    let mut applier = Applier::new(client.clone(), true);
    applier.apply(&sweeper, &mut *progress).await?;
    let what = || format!("DaemonSet {SWEEPER}");
    let mut stayed = Vec::new();
    loop {
        let there = daemons.get(SWEEPER).await;
        let there = there.map_err(|e| KubeError::of("get", what(), e))?;
        let seen = there.status.unwrap_or_default();
        let taken_up = seen.observed_generation >= there.metadata.generation;
        let (ready, wanted) = (seen.number_ready, seen.desired_number_scheduled);
        if taken_up && ready >= wanted {
            progress(&format!("swept {ready} nodes"));
            break;
        }
        if Instant::now() >= limit {
            let seconds = timeout.as_secs();
            let line = format!(
                "{} of {wanted} nodes are not swept after {seconds} s",
                wanted - ready
            );
            progress(&format!("warning: {line}"));
            stayed.push(line);
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    end(&daemons, SWEEPER, Instant::now() + timeout, timeout).await?;
    Ok(stayed)
}
