//! Waits until the daemons run, and a cluster that has joined is connected. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::{Applier, Progress};
use super::error::KubeError;
use super::ground::{self, Ground};
use super::manifests::{self, Object};
use super::obstacles::obstacles;
use super::patience::Patience;
use super::progress::{Seen, behind, missing, summary, warnings};

/// Asks who has changed something for the time of a wait to put it back and to end: such a one subscribes to it.
pub type Interrupt = watch::Sender<bool>;

/// When a wait ends though what it is for has not come.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Counted from its start.
    pub timeout: Duration,
    /// Set to true: at once.
    pub interrupt: &'a Interrupt,
}

/// For how long it is tried to put back what was changed for the time of a wait.
const PUT_BACK: Duration = Duration::from_secs(30);
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
    let mut patience = Patience::until(start + timeout);
    let mut told: Option<(Instant, Vec<String>)> = None;
    loop {
        let looked = look(client, namespace).await;
        let Some((seen, again)) = patience.take(looked, &mut *progress)? else {
            tokio::time::sleep(ground::pause(0)).await;
            continue;
        };
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
        let tell = told
            .as_ref()
            .is_none_or(|(at, before)| *before != lines || now.duration_since(*at) >= TELL);
        if tell {
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
        tokio::time::sleep(again).await;
    }
}

/// Waits until a DaemonSet that was applied runs on all nodes that are ready, as it is now; those that are not are told.
///
/// Its controller replaces so many pods at a time, and counts those of nodes that are down among them: as long as there are such,
/// more may be unavailable, so that the others have their turn.
///
/// # Errors
/// [`KubeError::Late`] with what is not ready, and what stands in the way of the pods; [`KubeError::Interrupted`].
pub async fn rolled_out(
    applier: &mut Applier,
    daemon: &Object,
    limits: Limits<'_>,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let mut room = 0;
    let mut asked = limits.interrupt.subscribe();
    let ended = tokio::select! {
        ended = roll_out(applier, daemon, limits.timeout, &mut room, &mut *progress) => ended,
        Ok(_) = asked.wait_for(|asked| *asked) => Err(KubeError::Interrupted),
    };
    if room == 0 {
        return ended;
    }
    // However it ended: more may be unavailable only as long as somebody looks.
    let mut patience = Patience::until(Instant::now() + PUT_BACK);
    let back = loop {
        let back = make_room(applier, daemon, 0).await;
        match patience.take(back, &mut *progress) {
            Ok(Some(())) => break Ok(()),
            Ok(None) => tokio::time::sleep(ground::pause(0)).await,
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = &back {
        progress(&format!(
            "warning: maxUnavailable of {} stays raised by {room}: {error}; another join puts it back",
            manifests::name(daemon)
        ));
    }
    ended.and(back)
}

/// The waiting itself; `room`: how many more may be unavailable when it ends.
async fn roll_out(
    applier: &mut Applier,
    daemon: &Object,
    timeout: Duration,
    room: &mut usize,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let client = applier.client().clone();
    let (namespace, name) = (daemon.namespace().unwrap_or_default(), daemon.name_any());
    let start = Instant::now();
    let mut patience = Patience::until(start + timeout);
    let (mut told, mut made) = (None, 0);
    loop {
        let looked = Ground::read(&client, &namespace).await;
        let Some(ground) = patience.take(looked, &mut *progress)? else {
            tokio::time::sleep(ground::pause(0)).await;
            continue;
        };
        let Some(seen) = ground.rollouts().find(|seen| seen.name == name) else {
            let what = format!("DaemonSet {namespace}/{name}");
            return Err(KubeError::Late {
                what: format!("{what} is not there"),
                seconds: start.elapsed().as_secs(),
                why: Vec::new(),
            });
        };
        let Some(line) = seen.missing() else {
            for line in behind(&seen) {
                progress(&format!("warning: {line}"));
            }
            return Ok(());
        };
        let waited = start.elapsed();
        if waited >= timeout {
            let mut why = vec![line];
            why.extend(stuck(&client, &namespace).await?);
            return Err(KubeError::Late {
                what: format!("{name} is not rolled out"),
                seconds: timeout.as_secs(),
                why,
            });
        }
        if seen.stuck != made {
            // An answer that is lost may have been a yes.
            *room = seen.stuck.max(made);
            let done = make_room(applier, daemon, seen.stuck).await;
            if patience.take(done, &mut *progress)?.is_some() {
                made = seen.stuck;
                *room = made;
            }
        }
        if told.as_ref() != Some(&line) {
            progress(&format!("waiting, {} s: {line}", waited.as_secs()));
            told = Some(line);
        }
        tokio::time::sleep(ground.pause()).await;
    }
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

/// What there is, and how long to wait until the next look.
async fn look(client: &Client, namespace: &str) -> Result<(Seen, Duration), KubeError> {
    let ground = Ground::read(client, namespace).await?;
    let all = ListParams::default().match_any();
    let gateways = Api::all(client.clone()).list(&all).await;
    let connections = Api::all(client.clone()).list(&all).await;
    let seen = Seen {
        daemons: ground.rollouts().collect(),
        ready: ground.ready(),
        gateways: ground::items(gateways, "Gateways")?,
        connections: ground::items(connections, "Connections")?,
    };
    let again = ground.pause().max(ground::pause(seen.connections.len()));
    Ok((seen, again))
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
