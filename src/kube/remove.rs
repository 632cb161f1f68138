//! Takes a cluster out of its fleet, and Subsea out of the cluster: what `subsea leave --context` does, in order. Shell.
//!
//! ```text
//! home       of another namespace than the named one, nothing is touched
//! withdraw   a token of the ServiceAccount subsea-operator -> POST /v1/withdraw
//! sweep      the daemons go; a DaemonSet takes devices, routes and keys from every node
//! delete     all that has our labels, the namespace last; our label from nodes
//! ```
//!
//! A half-made installation has less of it; each part does what is there to be done. Nodes that are down hold nobody up: they are
//! named, with what to do when they are back. Those that are ready and could not be swept keep the last part from being done: it
//! would take along what a repeat needs to know.

mod home;
mod sweep;

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, ResourceExt as _};
use subsea_api::enrolment::WithdrawRequest;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::service_account::Account;
use subsea_api::{Code, Problem, ServiceAccountToken};
use tokio::time::Instant;

use super::apply::{Applier, Progress};
use super::error::{KubeError, is_absent};
use super::ground::{self, Ground};
use super::install::{Standing, unlabel};
use super::labels;
use super::live_image;
use super::manifests::{self, ClusterOptions, IMAGE, Image, ManifestError, Object};
use super::operator_token::operator_token;
use super::patience::Patience;
use super::rollout::node_of;
use super::tenants;
use crate::broker_client::{BrokerClient, ClientError};
pub(super) use sweep::end_sweeper;

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
    /// The broker answered, and refused.
    #[error("the broker refused, and nothing was removed")]
    Refused(#[source] Problem),
    /// A leave of the wrong namespace would take from the right one what there is once in a cluster.
    #[error("Subsea lives in the namespace {home}, and not in {namespace}: nothing was removed")]
    Elsewhere {
        /// Where it lives.
        home: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// The broker cannot be told.
    #[error(
        "the broker was not told, and nothing was removed: the account that speaks to it is gone"
    )]
    NoAccount(#[source] KubeError),
    /// Another part of Subsea lives there.
    #[error("the broker lives in the namespace {0}, too: nothing was removed")]
    BrokerHere(String),
    /// Nodes that are ready were not swept, and what a repeat needs was kept.
    #[error(
        "not all nodes are swept; Secret and namespace are kept, so that a repeat goes on from here{}",
        list(.nodes)
    )]
    Unswept {
        /// A line for each.
        nodes: Vec<String>,
        /// What was to sweep them.
        image: String,
        /// Whether nothing said which image the daemons had.
        guessed: bool,
    },
    /// Somebody else is at work.
    #[error("{what} was deleted while it was at work: another join or leave of this cluster runs")]
    Interfered {
        /// Kind and name.
        what: String,
    },
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
            // The id may be another cluster's, which is to stay.
            Self::Refused(problem) => {
                let local = "`--local` removes what is in the cluster, and tells the broker nothing";
                Some(match &problem.hint {
                    Some(hint) => format!("{hint}; {local}"),
                    None => local.to_owned(),
                })
            }
            Self::Elsewhere { home, .. } => Some(format!("repeat with `--namespace {home}`")),
            Self::NoAccount(_) => Some(
                "repeat with the rights to make it. While its namespace goes nobody can: wait until it is gone; then `subsea leave --local \
                 --state-dir DIR` on each node, for /var/lib/subsea/gateway and /var/lib/subsea/agent, and `subsea-broker cluster forget ID`"
                    .into(),
            ),
            Self::BrokerHere(_) => Some(
                "a leave takes all of Subsea out of a namespace, and the fleet with it; delete the daemons by hand \
                 (`manifests/cluster`), or move the broker first"
                    .into(),
            ),
            Self::Unswept { image, guessed, .. } => {
                let guessed = if *guessed {
                    ", since nothing says any more which one the daemons had"
                } else {
                    ""
                };
                Some(format!(
                    "put right what is named, and repeat. The nodes are swept with the image {image}{guessed}; `--image` names another. \
                     To give up what is on these nodes, delete the namespace, and repeat"
                ))
            }
            Self::Interfered { .. } => Some("repeat when it has ended".into()),
            Self::NotThere { .. } => Some(format!(
                "`--namespace` says where else it is. {NAMELESS}"
            )),
            Self::Manifest(_) => None,
        }
    }
}

/// For a cluster of which nothing is left that says who it was.
const NAMELESS: &str = "Where it was deleted with its namespace, `subsea-broker cluster forget ID` ends the member, and `subsea leave --local \
    --state-dir DIR` on a node what is on it, for /var/lib/subsea/gateway and /var/lib/subsea/agent";

fn list(lines: &[String]) -> String {
    let each = lines.iter().map(|line| format!("\n  {line}"));
    each.collect::<Vec<_>>().concat()
}

/// What a leave could not take out, a line for each.
#[derive(Debug, Clone, Default)]
pub struct Stayed {
    /// Nodes that are not swept.
    pub nodes: Vec<String>,
    /// Objects that do not have our labels.
    pub objects: Vec<String>,
}

/// How to leave.
#[derive(Debug, Clone)]
pub struct RemoveOptions {
    /// What was installed.
    pub manifests: ClusterOptions,
    /// What sweeps the nodes; none: the image of the daemons.
    pub image: Option<String>,
    /// Do not ask the broker.
    pub local: bool,
    /// For each part that waits.
    pub timeout: Duration,
}

/// Removes everything; gives what stayed.
///
/// # Errors
/// [`RemoveError`]. It can be repeated.
pub async fn remove(
    client: &Client,
    options: &RemoveOptions,
    progress: Progress<'_>,
) -> Result<Stayed, RemoveError> {
    let namespace = &options.manifests.namespace;
    let mut objects = manifests::cluster(&options.manifests)?;
    objects.extend(manifests::admission(&options.manifests)?);
    let left = Left::read(client, &objects, namespace).await?;
    let holds = left.namespace || left.inside;
    if let Some(home) = home::elsewhere(client, namespace, holds).await? {
        return Err(RemoveError::Elsewhere {
            home,
            namespace: namespace.clone(),
        });
    }
    if tenants::has_broker(client, namespace).await? {
        return Err(RemoveError::BrokerHere(namespace.clone()));
    }
    let standing = Standing::read(client, namespace).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default().labels(labels::GATEWAY))
        .await;
    let nodes = nodes.map_err(|e| KubeError::of("list", "nodes", e))?;
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let ran = ran(&daemons).await?;
    // Nothing but the namespace, if at all: the nodes were swept before the rest was deleted.
    let is_done = !standing.is_there() && !ran && !left.inside && !left.once;
    if is_done && !left.namespace {
        return Err(RemoveError::NotThere {
            namespace: namespace.clone(),
        });
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let there = namespaces.get_opt(namespace).await;
    let there = there.map_err(|e| KubeError::of("get", format!("Namespace {namespace}"), e))?;
    end_admission(client, namespace, options.timeout, &mut *progress).await?;
    let file = standing.file();
    match &file {
        _ if standing.has_left() => progress("the broker was told by an earlier leave"),
        Some(file) if !options.local => {
            match withdraw(client, namespace, file, &objects, &mut *progress).await {
                // Another cluster has the id.
                Err(RemoveError::Refused(problem))
                    if standing.is_pending() && problem.code == Code::ServiceAccountRefused =>
                {
                    progress(&format!(
                        "the cluster was never admitted as {}: the broker knows another one by that id, which stays",
                        file.cluster
                    ));
                }
                told => told?,
            }
            // A repeat needs no token any more, whose account may be gone by then, and knows whose nodes it sweeps.
            standing.leave(client).await?;
        }
        Some(file) => progress(&format!(
            "the broker is not told: cluster {} stays a member of fleet {}",
            file.cluster, file.fleet
        )),
        None if is_done => progress("of an earlier leave, only the namespace is left"),
        None if there.is_none() => progress(&format!(
            "warning: the namespace {namespace} is not there, and nothing else says who the cluster was. {NAMELESS}"
        )),
        None => progress("the cluster was never admitted: there is no broker to tell"),
    }
    // Also where no daemon is left: a leave that was interrupted ended them and swept nothing.
    let mut stayed = Stayed::default();
    if !is_done && there.is_some_and(|there| there.metadata.deletion_timestamp.is_none()) {
        let of = file.as_ref().map(|file| (&file.fleet, &file.cluster));
        let live = live_image::noted(client, namespace).await?;
        let guessed = live.is_none() && options.image.is_none();
        let mut image = live.unwrap_or_else(|| Image::new(IMAGE));
        if let Some(name) = &options.image {
            // Its Secrets may be those of the registry that both come from.
            image = Image {
                pull_policy: None,
                name: name.clone(),
                ..image
            };
        }
        let unswept = sweep::sweep(client, options, &image, of, &mut *progress).await?;
        if !unswept.later.is_empty() {
            return Err(RemoveError::Unswept {
                nodes: [unswept.later, unswept.never].concat(),
                image: image.name,
                guessed,
            });
        }
        stayed.nodes = unswept.never;
    }
    for node in &nodes.items {
        unlabel(client, &node.name_any()).await?;
    }
    let mut applier = Applier::new(client.clone(), true);
    let mut told = |line: &str| {
        if line.starts_with("left ") {
            stayed.objects.push(line.to_owned());
        }
        progress(line);
    };
    applier.delete(&objects, options.timeout, &mut told).await?;
    Ok(stayed)
}

/// Deletes a Job and waits until its pods are gone: it could have the cluster admitted once more.
async fn end_admission(
    client: &Client,
    namespace: &str,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // Helm writes its own name into `managed-by`, and its Job asks the broker just as well.
    let (part, component) = (labels::PART_OF, labels::COMPONENT);
    let all = format!("{part}={},{component}=admission", labels::SUBSEA);
    let all = ListParams::default().labels(&all);
    let found = jobs.list(&all).await;
    let found = found.map_err(|e| KubeError::of("list", "Jobs", e))?;
    let limit = Instant::now() + timeout;
    let mut patience = Patience::until(limit);
    for job in found.items {
        let name = job.name_any();
        let what = || format!("Job {namespace}/{name}");
        match jobs.delete(&name, &DeleteParams::foreground()).await {
            Ok(_) => {}
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(KubeError::of("delete", what(), error)),
        }
        let look = async || {
            let there = jobs.get_opt(&name).await;
            let there = there.map_err(|e| KubeError::of("get", what(), e))?;
            // As they are at this moment: one that was made just now could ask.
            let pods = pods.list(&all).await;
            let pods = pods.map_err(|e| KubeError::of("list", "pods", e))?.items;
            let ready = Ground::read(client, namespace).await?.ready();
            // Where the node is down, nothing runs that could ask.
            let is_of = |pod: &&Pod| pod.owner_references().iter().any(|o| o.name == name);
            let mut runs = pods.iter().filter(is_of);
            Ok(there.is_some() && runs.any(|pod| ready.contains(node_of(pod))))
        };
        loop {
            let runs = patience.take(look().await, &mut *progress)?;
            if runs == Some(false) {
                break;
            }
            if Instant::now() >= limit {
                return Err(KubeError::Late {
                    what: format!("pods of {} are still there", what()),
                    seconds: timeout.as_secs(),
                    why: Vec::new(),
                });
            }
            tokio::time::sleep(ground::pause(0)).await;
        }
    }
    Ok(())
}

/// Whether daemons were there, so that nodes have something of ours.
async fn ran(daemons: &Api<DaemonSet>) -> Result<bool, KubeError> {
    for name in sweep::ALL {
        let found = daemons.get_opt(name).await;
        let found = found.map_err(|e| KubeError::of("get", format!("DaemonSet {name}"), e))?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What of ours is there.
#[derive(Debug, Default)]
struct Left {
    /// The namespace: ours, or with something of ours on it.
    namespace: bool,
    /// In it.
    inside: bool,
    /// What there is once in a cluster, wherever the rest lives.
    once: bool,
}

impl Left {
    async fn read(client: &Client, objects: &[Object], namespace: &str) -> Result<Self, KubeError> {
        let mut applier = Applier::new(client.clone(), false);
        let mut left = Self::default();
        for object in objects {
            let seen = if is_kind(object, "Namespace") {
                &mut left.namespace
            } else if object.metadata.namespace.as_deref() == Some(namespace) {
                &mut left.inside
            } else {
                &mut left.once
            };
            *seen = *seen || applier.has_ours(object).await?;
        }
        Ok(left)
    }
}

fn is_kind(object: &Object, kind: &str) -> bool {
    object
        .types
        .as_ref()
        .is_some_and(|types| types.kind == kind)
}

async fn withdraw(
    client: &Client,
    namespace: &str,
    file: &EnrolmentFile,
    objects: &[Object],
    progress: Progress<'_>,
) -> Result<(), RemoveError> {
    let request = WithdrawRequest {
        fleet: file.fleet.clone(),
        cluster: file.cluster.clone(),
        service_account_token: token(client, namespace, objects, &mut *progress).await?,
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
        Err(ClientError::Problem(problem)) => return Err(RemoveError::Refused(problem)),
        Err(error) => return Err(RemoveError::Broker(error)),
    }
    Ok(())
}

/// A token of the operator's account. Whoever has installed it may have removed it: then it is made once more, with our labels, and
/// goes with all else.
async fn token(
    client: &Client,
    namespace: &str,
    objects: &[Object],
    progress: Progress<'_>,
) -> Result<ServiceAccountToken, RemoveError> {
    match operator_token(client, namespace).await {
        Err(error) if error.is_missing() => {}
        token => return Ok(token?),
    }
    let called = Account::Operator.as_str();
    let is_it = |o: &&Object| is_kind(o, "ServiceAccount") && o.name_any() == called;
    let account: Vec<Object> = objects.iter().filter(is_it).cloned().collect();
    let mut applier = Applier::new(client.clone(), true);
    let made = applier.apply(&account, progress).await;
    made.map_err(RemoveError::NoAccount)?;
    Ok(operator_token(client, namespace).await?)
}
