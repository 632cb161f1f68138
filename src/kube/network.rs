//! Looks again and again at what network plugin and service proxy the cluster has, and at the settings that stand in the way.
//! Shell.
//!
//! A gateway asks the API server for the few objects that say so, by name; there are few gateways. An agent runs on every node
//! and looks at its kernel alone: thousands that ask each minute are a load of their own.

use std::time::Duration;

use kube::Client;
use subsea_api::Cidr;

use super::cni::{Device, MarkRule, Marks, ProxyTrace, Surroundings, Traces};
use super::connect::connect;
use super::discover::facts::Facts;
use super::discover::{DiscoverError, read_places};
use crate::control::around::Notebook;
use crate::control::network::{NetworkStatus, Severity};
use crate::host::{Footprints, footprints};
use crate::membership::chain;
use crate::membership::clock::Clock;

mod asked;
mod verdict;

/// How often it is looked at.
pub const LOOK: Duration = Duration::from_mins(1);
/// How long the API server has for all of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The part of [`Notebook::problem`].
const PART: &str = "network";

/// Who looks.
#[derive(Debug, Clone)]
pub struct Viewpoint {
    /// The bits of marks that are in use here.
    pub marks: Marks,
    /// The node's name, for one that asks the API server.
    pub asks: Option<String>,
    /// How often: [`LOOK`].
    pub every: Duration,
}

/// Looks until the task is dropped, with a client of its own. `remote` gives the blocks of the other clusters.
pub async fn follow(viewpoint: Viewpoint, remote: impl Fn() -> Vec<Cidr> + Send, notes: Notebook) {
    with(connect_in, viewpoint, remote, notes).await;
}

async fn connect_in() -> Result<Client, String> {
    let client = connect(None).await;
    client.map_err(|error| format!("Kubernetes: {}", chain(&error)))
}

/// The same with a client.
pub async fn with_client(
    client: Client,
    viewpoint: Viewpoint,
    remote: impl Fn() -> Vec<Cidr> + Send,
    notes: Notebook,
) {
    let given = || std::future::ready(Ok(client.clone()));
    with(given, viewpoint, remote, notes).await;
}

async fn with<C: Future<Output = Result<Client, String>> + Send>(
    client: impl Fn() -> C + Send,
    viewpoint: Viewpoint,
    remote: impl Fn() -> Vec<Cidr> + Send,
    notes: Notebook,
) {
    let clock = Clock::start();
    loop {
        match look(&client, &viewpoint, &remote(), &clock).await {
            Ok(status) => {
                notes.problem(PART, unreadable(&status));
                tell(notes.read().network.as_ref(), &status);
                notes.network(status);
            }
            Err(Blind::Kernel(why)) => notes.problem(PART, Some(why)),
            // What was seen last stands: settings of a plugin do not change because an API server is away. That it is, is
            // said by who writes there.
            Err(Blind::Server(why)) => tracing::debug!(why, "the network plugin was not looked at"),
        }
        tokio::time::sleep(viewpoint.every).await;
    }
}

async fn look<C: Future<Output = Result<Client, String>> + Send>(
    client: &(impl Fn() -> C + Send),
    viewpoint: &Viewpoint,
    remote: &[Cidr],
    clock: &Clock,
) -> Result<NetworkStatus, Blind> {
    let seen = footprints().await;
    let seen = seen.map_err(|error| {
        Blind::Kernel(format!(
            "the devices and routing rules of network plugins cannot be seen: {}",
            chain(&error)
        ))
    })?;
    let facts = match &viewpoint.asks {
        Some(node) => {
            let client = client().await.map_err(Blind::Server)?;
            Some(read(&client, node).await?)
        }
        None => None,
    };
    let around = Surroundings {
        remote,
        marks: viewpoint.marks,
    };
    let now = clock.now().wall;
    Ok(verdict::status(facts.as_ref(), &traces(seen), around, now))
}

/// Why nothing is known.
enum Blind {
    /// The node's kernel was not seen.
    Kernel(String),
    /// The API server did not answer.
    Server(String),
}

async fn read(client: &Client, node: &str) -> Result<Facts, Blind> {
    let reading = read_places(client, asked::asked(), node);
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let read = read.map_err(|_| DiscoverError::Late).flatten();
    read.map_err(|error| Blind::Server(chain(&error)))
}

fn traces(seen: Footprints) -> Traces {
    let devices = seen.devices.into_iter();
    let rules = seen.rules.into_iter();
    let proxy = [
        (seen.proxy_table, ProxyTrace::Table),
        (seen.proxy_canary, ProxyTrace::Canary),
    ];
    Traces {
        devices: devices.map(|(name, kind)| Device { name, kind }).collect(),
        proxy: proxy
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, trace)| trace)
            .collect(),
        rules: rules
            .map(|(mark, text)| MarkRule {
                bits: mark.value & mark.mask,
                text,
            })
            .collect(),
    }
}

fn unreadable(status: &NetworkStatus) -> Option<String> {
    let first = status.unread.first()?;
    let more = match status.unread.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(format!(
        "Kubernetes: not all settings of the network plugin can be read: {first}{more}; if this is about rights, apply \
         manifests/cluster/roles.yaml, ClusterRole subsea-gateway"
    ))
}

/// Logs what is new, and what is not so any more.
fn tell(before: Option<&NetworkStatus>, now: &NetworkStatus) {
    if before.is_none() {
        let plugins: Vec<&str> = now.plugins.iter().map(|p| p.name.as_str()).collect();
        let proxy = now.proxy.as_ref().map(|p| p.name.as_str());
        tracing::info!(?plugins, ?proxy, "the network of this cluster");
    }
    for finding in now.new_since(before) {
        let (id, what) = (&finding.id, finding.text());
        match finding.severity {
            Severity::Blocks => tracing::warn!(id, what, "a setting stands in the way"),
            Severity::Warns => tracing::warn!(id, what, "a setting may stand in the way"),
        }
    }
    for finding in before
        .into_iter()
        .flat_map(|before| before.new_since(Some(now)))
    {
        tracing::info!(id = finding.id, "a setting stands in the way no more");
    }
}
