//! Takes gateways of our cluster out of the fleet whose nodes are no more, so that others do not wait for them for ever. Shell around
//! `Absences`.
//!
//! A node that does not answer is not gone: its object stays, and with it the registration. Who deletes the object says that the node
//! does not come back, and still we wait: a node of the same name may be made at once. The broker removes only what has lapsed there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use subsea_api::NodeName;

use super::connect::connect;
use super::fault::Fault;
use super::keys::broker;
use super::reflect::shown::leads;
use crate::control::around::Around;
use crate::gateway::status::Status;
use crate::membership::chain;
use crate::membership::clock::Clock;
use crate::state::StateDir;

/// How often it is looked.
const LOOK: Duration = Duration::from_mins(1);
/// How long a node must have been gone.
const GONE: Duration = Duration::from_mins(10);
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Since when nodes of gateways have been gone, seen from here.
#[derive(Debug, Default)]
struct Absences(BTreeMap<NodeName, Duration>);

impl Absences {
    /// Takes in which are gone now, and gives those that have been all the time for [`GONE`].
    fn observe(&mut self, gone: &BTreeSet<NodeName>, now: Duration) -> Vec<NodeName> {
        self.0.retain(|node, _| gone.contains(node));
        for node in gone {
            self.0.entry(node.clone()).or_insert(now);
        }
        let long = |since: &Duration| now.saturating_sub(*since) >= GONE;
        let all = self.0.iter().filter(|(_, since)| long(since));
        all.map(|(node, _)| node.clone()).collect()
    }
}

/// Looks until the task is dropped; `mark` is that of our own packets.
pub async fn follow(state: StateDir, mark: u32, around: Around<Status>) {
    let clock = Clock::start();
    let mut absences = Absences::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(daemon) = around.door.daemon() else {
            continue;
        };
        let Ok(status) = tokio::task::spawn_blocking(move || daemon.status()).await else {
            continue;
        };
        let looked = tokio::time::timeout(PATIENCE, look(&status)).await;
        let looked = looked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        // What could not be asked for is not known to be gone.
        let gone = looked.as_ref().cloned().unwrap_or_default();
        if let Err(error) = looked {
            tracing::debug!(error, "nodes of lost gateways");
        }
        let mut stay = Vec::new();
        for node in absences.observe(&gone, clock.now().mono) {
            let clear = tokio::time::timeout(PATIENCE, clear(&state, mark, &status, &node)).await;
            match clear.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(()) => {
                    tracing::info!(%node, "its gateway was taken out of the fleet, since its node is no more");
                }
                Err(error) => stay.push(format!("{node}: {error}")),
            }
        }
        let problem = (!stay.is_empty()).then(|| {
            let stay = stay.join("; ");
            format!("gateways whose nodes are no more could not be taken out of the fleet: {stay}")
        });
        around.notes.problem("gone-gateways", problem);
    }
}

async fn look(status: &Status) -> Result<BTreeSet<NodeName>, String> {
    let lost = lost(status);
    if lost.is_empty() {
        return Ok(lost);
    }
    let client = connect(None).await.map_err(|error| chain(&error))?;
    without_node(&client, &lost).await
}

/// The gateways of our cluster that the broker does not hear of any more, for the one that cares for them.
fn lost(status: &Status) -> BTreeSet<NodeName> {
    if !leads(status) {
        return BTreeSet::new();
    }
    let all = status.cluster_gateways.iter();
    let all = all.filter(|gateway| gateway.expired.is_some());
    all.map(|gateway| gateway.node.clone()).collect()
}

/// Those of them whose node the API server does not have: not those that are not ready.
///
/// # Errors
/// When it could not be asked, or refuses.
pub async fn without_node(
    client: &Client,
    nodes: &BTreeSet<NodeName>,
) -> Result<BTreeSet<NodeName>, String> {
    let api: Api<Node> = Api::all(client.clone());
    let mut gone = BTreeSet::new();
    for node in nodes {
        let found = api.get_opt(node.as_str()).await;
        let found =
            found.map_err(|error| Fault::of(&error, true).describe(&format!("get node {node}")))?;
        if found.is_none() {
            gone.insert(node.clone());
        }
    }
    Ok(gone)
}

async fn clear(
    state: &StateDir,
    mark: u32,
    status: &Status,
    node: &NodeName,
) -> Result<(), String> {
    let broker = broker(state, mark)?;
    let removed = broker.remove_gateway(&status.cluster, node).await;
    removed.map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_must_have_been_gone_all_the_time() {
        let nodes = |names: &[&str]| -> BTreeSet<NodeName> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let minute = |n| Duration::from_mins(n);
        let mut absences = Absences::default();
        assert!(absences.observe(&nodes(&["a", "b"]), minute(1)).is_empty());
        // One was there in between, or could not be asked for.
        assert!(absences.observe(&nodes(&["a"]), minute(2)).is_empty());
        assert!(absences.observe(&nodes(&["a", "b"]), minute(10)).is_empty());
        let long: Vec<String> = absences
            .observe(&nodes(&["a", "b"]), minute(11))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(long, ["a"]);
        assert_eq!(absences.observe(&nodes(&["b"]), minute(20)).len(), 1);
        assert!(absences.observe(&nodes(&[]), minute(21)).is_empty());
        assert!(absences.0.is_empty());
    }
}
