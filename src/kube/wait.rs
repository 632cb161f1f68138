//! Waits until the daemons run, and a cluster that has joined is connected. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::apply::{Applier, Progress};
use super::error::{KubeError, is_absent};
use super::labels;
use super::manifests::Object;
use super::obstacles::obstacles;
use super::progress::{Seen, behind, missing, summary, warnings};
use super::rollout::{Rollout, rollout, unready};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);
/// How often what is missing is said again when it stays the same.
const TELL: Duration = Duration::from_secs(10);
/// So many lines at a time.
const LINES: usize = 5;

/// Waits until every gateway of `nodes` and all of their connections are ready; gives a sentence about them.
///
/// # Errors
/// [`KubeError::Late`] with what is not ready, and what stands in the way of the pods.
pub async fn connected(
    client: &Client,
    namespace: &str,
    nodes: &BTreeSet<String>,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<String, KubeError> {
    let start = Instant::now();
    let mut told: Option<(Instant, Vec<String>)> = None;
    loop {
        let seen = look(client, namespace).await?;
        let mut lines = missing(&seen, nodes);
        if lines.is_empty() {
            for line in warnings(&seen) {
                progress(&format!("warning: {line}"));
            }
            return Ok(summary(&seen));
        }
        let now = Instant::now();
        if now.duration_since(start) >= timeout {
            lines.extend(stuck(client, namespace).await?);
            return Err(KubeError::Late {
                what: "the cluster has joined, and is not connected".to_owned(),
                seconds: timeout.as_secs(),
                why: lines,
            });
        }
        let again = told
            .as_ref()
            .is_none_or(|(at, before)| *before != lines || now.duration_since(*at) >= TELL);
        if again {
            let seconds = now.duration_since(start).as_secs();
            for line in lines.iter().take(LINES) {
                progress(&format!("waiting, {seconds} s: {line}"));
            }
            if lines.len() > LINES {
                progress(&format!(
                    "waiting, {seconds} s: and {} more",
                    lines.len() - LINES
                ));
            }
            told = Some((now, lines));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until a DaemonSet that was applied runs on all nodes that are ready, as it is now; those that are not are told.
///
/// Its controller replaces so many pods at a time, and counts those of nodes that are down among them: as long as there are such,
/// more may be unavailable, so that the others have their turn.
///
/// # Errors
/// [`KubeError::Late`] with what is not ready, and what stands in the way of the pods.
pub async fn rolled_out(
    applier: &mut Applier,
    daemon: &Object,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let client = applier.client().clone();
    let (namespace, name) = (daemon.namespace().unwrap_or_default(), daemon.name_any());
    let start = Instant::now();
    let mut told = None;
    let mut room = 0;
    let ended = loop {
        let ground = Ground::read(&client, &namespace).await?;
        let Some(seen) = ground.rollouts().find(|seen| seen.name == name) else {
            let what = format!("DaemonSet {namespace}/{name}");
            break Err(KubeError::Late {
                what: format!("{what} is not there"),
                seconds: start.elapsed().as_secs(),
                why: Vec::new(),
            });
        };
        let Some(line) = seen.missing() else {
            for line in behind(&seen) {
                progress(&format!("warning: {line}"));
            }
            break Ok(());
        };
        let waited = start.elapsed();
        if waited >= timeout {
            let mut why = vec![line];
            why.extend(stuck(&client, &namespace).await?);
            break Err(KubeError::Late {
                what: format!("{name} is not rolled out"),
                seconds: timeout.as_secs(),
                why,
            });
        }
        if seen.stuck != room {
            room = seen.stuck;
            make_room(applier, daemon, room).await?;
        }
        if told.as_ref() != Some(&line) {
            progress(&format!("waiting, {} s: {line}", waited.as_secs()));
            told = Some(line);
        }
        tokio::time::sleep(LOOK).await;
    };
    if room != 0 {
        make_room(applier, daemon, 0).await?;
    }
    ended
}

/// Lets so many pods more be unavailable than the DaemonSet itself says.
async fn make_room(applier: &mut Applier, daemon: &Object, more: usize) -> Result<(), KubeError> {
    let mut roomy = daemon.clone();
    let at = "/spec/updateStrategy/rollingUpdate/maxUnavailable";
    // A share of the nodes, which ours is not, would have to be somebody else's: it is left alone.
    let Some(own) = daemon.data.pointer(at).and_then(serde_json::Value::as_u64) else {
        return Ok(());
    };
    if let Some(value) = roomy.data.pointer_mut(at) {
        *value = json!(own + u64::try_from(more).unwrap_or(0));
    }
    applier.apply(&[roomy], &mut |_| {}).await
}

/// What must be known to say how far DaemonSets are.
pub(super) struct Ground {
    daemons: Vec<DaemonSet>,
    revisions: Vec<ControllerRevision>,
    pub(super) pods: Vec<Pod>,
    pub(super) nodes: Vec<Node>,
}

impl Ground {
    /// Reads what is in a namespace of ours.
    pub(super) async fn read(client: &Client, namespace: &str) -> Result<Self, KubeError> {
        let part = ListParams::default().labels(&format!("{}={}", labels::PART_OF, labels::SUBSEA));
        let all = ListParams::default();
        let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let nodes: Api<Node> = Api::all(client.clone());
        Ok(Self {
            daemons: items(daemons.list(&part).await, "DaemonSets")?,
            revisions: items(revisions.list(&part).await, "ControllerRevisions")?,
            pods: items(pods.list(&part).await, "pods")?,
            nodes: items(nodes.list(&all).await, "nodes")?,
        })
    }

    /// How far each of them is.
    pub(super) fn rollouts(&self) -> impl Iterator<Item = Rollout> {
        let Self {
            daemons,
            revisions,
            pods,
            nodes,
        } = self;
        daemons
            .iter()
            .map(|daemon| rollout(daemon, revisions, pods, nodes))
    }

    /// Nodes that are ready.
    pub(super) fn ready(&self) -> BTreeSet<String> {
        let ready = self.nodes.iter().filter(|node| unready(node).is_none());
        ready.map(kube::ResourceExt::name_any).collect()
    }
}

async fn look(client: &Client, namespace: &str) -> Result<Seen, KubeError> {
    let ground = Ground::read(client, namespace).await?;
    let all = ListParams::default();
    let gateways = Api::all(client.clone()).list(&all).await;
    let connections = Api::all(client.clone()).list(&all).await;
    Ok(Seen {
        daemons: ground.rollouts().collect(),
        ready: ground.ready(),
        gateways: items(gateways, "Gateways")?,
        connections: items(connections, "Connections")?,
    })
}

fn items<T: Clone>(
    list: Result<kube::core::ObjectList<T>, kube::Error>,
    what: &str,
) -> Result<Vec<T>, KubeError> {
    match list {
        Ok(list) => Ok(list.items),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(KubeError::of("list", what, error)),
    }
}

/// What stands in the way of pods that are not ready.
pub(super) async fn stuck(client: &Client, namespace: &str) -> Result<Vec<String>, KubeError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let all = ListParams::default();
    let pods = pods
        .list(&all)
        .await
        .map_err(|e| KubeError::of("list", "pods", e))?;
    let events = events
        .list(&all)
        .await
        .map_err(|e| KubeError::of("list", "events", e))?;
    Ok(obstacles(&pods.items, &[], &events.items))
}
