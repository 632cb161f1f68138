//! Waits until a cluster that has joined is connected. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::apply::Progress;
use super::error::{KubeError, is_absent};
use super::labels;
use super::obstacles::obstacles;
use super::progress::{Seen, missing, of_daemon, summary, warnings};

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

/// Waits until a DaemonSet runs on all its nodes as it is now.
///
/// # Errors
/// [`KubeError::Late`] with what is not ready, and what stands in the way of the pods.
pub async fn rolled_out(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
    progress: Progress<'_>,
) -> Result<(), KubeError> {
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let start = Instant::now();
    let mut told = None;
    loop {
        let daemon = daemons.get(name).await;
        let daemon = daemon.map_err(|e| KubeError::of("get", format!("DaemonSet {name}"), e))?;
        let Some(line) = of_daemon(&daemon) else {
            return Ok(());
        };
        let waited = start.elapsed();
        if waited >= timeout {
            let mut why = vec![line];
            why.extend(stuck(client, namespace).await?);
            return Err(KubeError::Late {
                what: format!("{name} is not rolled out"),
                seconds: timeout.as_secs(),
                why,
            });
        }
        if told.as_ref() != Some(&line) {
            progress(&format!("waiting, {} s: {line}", waited.as_secs()));
            told = Some(line);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(client: &Client, namespace: &str) -> Result<Seen, KubeError> {
    let ours = labels::ours().map(|(key, value)| format!("{key}={value}"));
    let ours = ListParams::default().labels(&ours.join(","));
    let daemons: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let daemons = daemons
        .list(&ours)
        .await
        .map_err(|e| KubeError::of("list", "DaemonSets", e))?;
    let all = ListParams::default();
    let gateways = Api::all(client.clone()).list(&all).await;
    let connections = Api::all(client.clone()).list(&all).await;
    Ok(Seen {
        daemons: daemons.items,
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
async fn stuck(client: &Client, namespace: &str) -> Result<Vec<String>, KubeError> {
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
