//! Ends the daemons of a cluster and takes what they left from its nodes. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::api::DeleteParams;
use kube::{Api, Client, ResourceExt as _};
use subsea_api::{ClusterId, FleetName};
use tokio::time::Instant;

use super::{RemoveError, RemoveOptions};
use crate::kube::apply::{Applier, Progress};
use crate::kube::error::{KubeError, is_absent};
use crate::kube::ground::{self, Ground};
use crate::kube::manifests::{self, Image};
use crate::kube::obstacles::obstacles;
use crate::kube::patience::Patience;
use crate::kube::rollout::{Rollout, node_of};

/// The daemons, whose pods go before the nodes are swept, and what sweeps them.
pub(super) const ALL: [&str; 3] = ["subsea-gateway", "subsea-agent", SWEEPER];
const SWEEPER: &str = "subsea-sweeper";
/// By which the pods of each are found.
const NAME: &str = "app.kubernetes.io/name";
/// How `subsea sweep` ends where what it found is not this cluster's: waiting would change nothing.
const NOT_OURS: i32 = 2;
/// How long an API server may take to let go of a DaemonSet without pods.
const GOES: Duration = Duration::from_secs(30);

/// Nodes that are not swept, a line for each.
#[derive(Debug, Default)]
pub(super) struct Unswept {
    /// A repeat can do it: they are ready, and the sweeper did not come to its end there.
    pub(super) later: Vec<String>,
    /// A repeat would change nothing: they are down, or what they have is not this cluster's.
    pub(super) never: Vec<String>,
}

/// Ends the daemons, and takes what they left from the nodes. `of`: what is of another cluster stays, and so does without it what
/// is of anybody.
pub(super) async fn sweep(
    client: &Client,
    options: &RemoveOptions,
    image: &Image,
    of: Option<(&FleetName, &ClusterId)>,
    progress: Progress<'_>,
) -> Result<Unswept, RemoveError> {
    let (namespace, timeout) = (&options.manifests.namespace, options.timeout);
    let limit = Instant::now() + timeout;
    progress("ending the daemons");
    for name in ALL {
        end(client, namespace, name, limit, timeout, &mut *progress).await?;
    }
    let sweeper = manifests::sweeper(namespace, image, of)?;
    let mut applier = Applier::new(client.clone(), true);
    applier.apply(&sweeper, &mut *progress).await?;
    // The daemons had their own: one that ended late takes nothing from the nodes.
    let limit = Instant::now() + timeout;
    let mut patience = Patience::until(limit);
    let (seen, refused, ground) = loop {
        let looked = Ground::read(client, namespace).await;
        let Some(ground) = patience.take(looked, &mut *progress)? else {
            tokio::time::sleep(ground::pause(0)).await;
            continue;
        };
        let Some(seen) = ground.rollouts().find(|seen| seen.name == SWEEPER) else {
            return Err(RemoveError::Interfered {
                what: format!("DaemonSet {namespace}/{SWEEPER}"),
            });
        };
        let refused = refused(&ground.pods);
        if Instant::now() >= limit || is_swept(&seen, &refused) {
            break (seen, refused, ground);
        }
        tokio::time::sleep(ground.pause()).await;
    };
    progress(&format!("swept {} nodes", seen.done.len()));
    let mut unswept = Unswept::default();
    for (node, why) in &seen.behind {
        unswept.never.push(format!(
            "node {node} is not swept, for it is not ready: {why}"
        ));
    }
    let seconds = timeout.as_secs();
    let obstacles_on = |node: &str| {
        let here = |pod: &&Pod| node_of(pod) == node && is_of(pod, SWEEPER);
        let pods: Vec<Pod> = ground.pods.iter().filter(here).cloned().collect();
        (!pods.is_empty()).then(|| obstacles(&pods, &[], &[]).join(", "))
    };
    for node in seen.waiting.keys() {
        if let Some(why) = refused.get(node) {
            let line = format!("node {node} is not swept: {why}");
            unswept.never.push(line);
        } else {
            let why = obstacles_on(node).unwrap_or_default();
            let line = format!("node {node} is not swept after {seconds} s: {why}");
            unswept.later.push(line);
        }
    }
    if !seen.is_covered() {
        // Such as pods that no node takes, or none at all.
        let why = obstacles_on("").or_else(|| seen.missing());
        let why = why.unwrap_or_default();
        let line =
            format!("nodes without a pod that sweeps are not swept after {seconds} s: {why}");
        unswept.later.push(line);
    }
    for line in unswept.later.iter().chain(&unswept.never) {
        progress(&format!("warning: {line}"));
    }
    end(
        client,
        namespace,
        SWEEPER,
        Instant::now() + timeout,
        timeout,
        &mut *progress,
    )
    .await?;
    Ok(unswept)
}

/// Whether every node that is ready is swept, or never will be.
fn is_swept(seen: &Rollout, refused: &BTreeMap<String, String>) -> bool {
    let done = seen.missing().is_none();
    let only_refused = !seen.waiting.is_empty()
        && seen.is_covered()
        && seen.waiting.keys().all(|node| refused.contains_key(node));
    done || only_refused
}

/// Nodes on which something is left that is not this cluster's, and what the sweeper said of it.
fn refused(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_of(pod, SWEEPER)) {
        let status = pod.status.as_ref();
        let containers = status.and_then(|status| status.container_statuses.as_deref());
        for container in containers.into_iter().flatten() {
            let states = [&container.state, &container.last_state];
            let ended = |state: &&Option<_>| -> Option<ContainerStateTerminated> {
                let state: &k8s_openapi::api::core::v1::ContainerState = state.as_ref()?;
                state.terminated.clone().filter(|t| t.exit_code == NOT_OURS)
            };
            if let Some(ended) = states.iter().find_map(ended) {
                let message = ended.message.unwrap_or_default();
                // Its error, of all that it says.
                let at = message
                    .rfind("error: ")
                    .map_or(0, |at| at + "error: ".len());
                let message = message.get(at..).unwrap_or_default();
                let lines: Vec<&str> = message.lines().map(str::trim).collect();
                all.insert(node_of(pod).to_owned(), lines.join(" ").trim().to_owned());
            }
        }
    }
    all
}

fn is_of(pod: &Pod, name: &str) -> bool {
    pod.labels().get(NAME).is_some_and(|of| of == name)
}

/// Ends what sweeps nodes, if it runs, and waits until it is gone.
///
/// # Errors
/// [`KubeError`] when the API server refuses, or at the end of the time.
pub(in crate::kube) async fn end_sweeper(
    client: &Client,
    namespace: &str,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let limit = Instant::now() + timeout;
    end(client, namespace, SWEEPER, limit, timeout, progress).await
}

/// Deletes a DaemonSet and waits until it and its pods are gone. When only those of nodes are left that are down, the API server
/// is told to forget them: nobody is there to say that they have ended, and the namespace would wait for them.
async fn end(
    client: &Client,
    namespace: &str,
    name: &str,
    limit: Instant,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let what = || format!("DaemonSet {name}");
    // Foreground: it is gone when its pods are.
    let delete = async || match daemons.delete(name, &DeleteParams::foreground()).await {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(KubeError::of("delete", what(), error)),
    };
    let look = async || {
        let there = daemons.get_opt(name).await;
        let there = there.map_err(|e| KubeError::of("get", what(), e))?;
        Ok(match there {
            Some(_) => Some(Ground::read(client, namespace).await?),
            None => None,
        })
    };
    let mut patience = Patience::until(limit);
    loop {
        match patience.take(delete().await, &mut *progress)? {
            Some(true) => break,
            Some(false) => return Ok(()),
            None => tokio::time::sleep(ground::pause(0)).await,
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    loop {
        let Some(looked) = patience.take(look().await, &mut *progress)? else {
            tokio::time::sleep(ground::pause(0)).await;
            continue;
        };
        let Some(ground) = looked else {
            return Ok(());
        };
        let ready = ground.ready();
        let left = || ground.pods.iter().filter(|pod| is_of(pod, name));
        let alive: BTreeSet<&str> = left()
            .map(node_of)
            .filter(|node| ready.contains(*node))
            .collect();
        if alive.is_empty() {
            for pod in left() {
                let now = DeleteParams::default().grace_period(0);
                let deleted = match pods.delete(&pod.name_any(), &now).await {
                    Ok(_) => Ok(()),
                    Err(error) if is_absent(&error) => Ok(()),
                    Err(error) => Err(KubeError::of("delete", pod.name_any(), error)),
                };
                // What was not deleted is seen again.
                patience.take(deleted, &mut *progress)?;
            }
        }
        // What nobody runs any more goes at once, but for a finalizer that somebody else has put on it.
        let (last, what) = if alive.is_empty() {
            (limit + GOES, format!("DaemonSet {name} is still there"))
        } else {
            (limit, format!("pods of {name} are still there"))
        };
        if Instant::now() >= last {
            return Err(KubeError::Late {
                what,
                seconds: timeout.as_secs(),
                why: alive
                    .into_iter()
                    .map(|node| format!("on node {node}"))
                    .collect(),
            });
        }
        tokio::time::sleep(ground.pause()).await;
    }
}
