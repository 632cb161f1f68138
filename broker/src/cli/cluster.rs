//! `subsea-broker cluster`.

use std::fmt::Write as _;

use hyper::Method;
use subsea_api::admin::ClusterInfo;
use subsea_api::snapshot::{Gateway, ListenerState};
use subsea_api::{ClusterId, Kind, UnixMillis};

use super::failure::Failure;
use super::output::{self, Done, Output};
use super::table::Table;
use super::{Context, format};

/// List, show, forget and revoke member clusters
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    List(List),
    Show(One),
    Forget(Forget),
    Revoke(Revoke),
}

/// List the members
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    output: Output,
}

/// Show one member with its blocks and gateways
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// The cluster
    #[arg(value_name = "ID")]
    id: ClusterId,

    #[command(flatten)]
    output: Output,
}

/// Remove a member that cannot leave by itself, or let a revoked one join again
///
/// A member's tunnels end, its certificates are refused and its blocks are free after 15 minutes. A cluster of the
/// same id may join again.
#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    #[command(flatten)]
    one: One,
}

/// Cut a member off whose keys may be stolen
///
/// Every gateway drops it within 2 seconds of hearing of it, and its certificates are refused for ever.
#[derive(Debug, clap::Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    one: One,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List(args) => {
            let clusters: Vec<ClusterInfo> = client.get("/v1/admin/clusters").await?;
            args.output.print(&clusters, |c| list(c))
        }
        Verb::Show(args) => {
            let path = format!("/v1/admin/clusters/{}", args.id);
            let cluster: ClusterInfo = client.get(&path).await?;
            args.output.print(&cluster, |c| show(c, output::now()))
        }
        Verb::Forget(Forget { one: args }) => {
            let path = format!("/v1/admin/clusters/{}", args.id);
            client.order(Method::DELETE, &path).await?;
            let done = Done {
                action: "cluster.forget",
                subject: args.id.as_str(),
            };
            let sentence = format!("cluster {} is forgotten", args.id);
            args.output.done(&done, &sentence)
        }
        Verb::Revoke(Revoke { one: args }) => {
            let path = format!("/v1/admin/clusters/{}/revoke", args.id);
            client.order(Method::POST, &path).await?;
            let done = Done {
                action: "cluster.revoke",
                subject: args.id.as_str(),
            };
            let sentence = format!("cluster {} is revoked", args.id);
            args.output.done(&done, &sentence)
        }
    }
}

/// The blocks of one kind, as a cell.
fn blocks(cluster: &ClusterInfo, kind: Kind) -> String {
    let of_kind = cluster.record.allocations.iter().filter(|a| a.kind == kind);
    format::list(of_kind.map(|a| a.cidr))
}

fn list(clusters: &[ClusterInfo]) -> Table<6> {
    let mut table = Table::new(["ID", "JOINED", "PODS", "SERVICES", "GATEWAYS", "WATCHING"]);
    for cluster in clusters {
        let gateways = &cluster.record.gateways;
        table.row([
            cluster.id.to_string(),
            format::time(cluster.record.joined_at),
            blocks(cluster, Kind::Pod),
            blocks(cluster, Kind::Service),
            format::gateways(
                gateways.len() as u64,
                gateways.values().filter(|g| g.expired.is_some()).count() as u64,
            ),
            cluster.watching.len().to_string(),
        ]);
    }
    table
}

/// A cluster in full: `gateway add` shows it too.
pub(crate) fn show(cluster: &ClusterInfo, now: UnixMillis) -> String {
    let record = &cluster.record;
    let mut facts = Table::new(["", ""]);
    facts.row(["cluster:".into(), cluster.id.to_string()]);
    let joined = format::time(record.joined_at);
    let age = format::ago(now, record.joined_at);
    facts.row(["joined:".into(), format!("{joined} ({age})")]);
    for allocation in &record.allocations {
        let kind = match (allocation.kind, allocation.exported) {
            (Kind::Node, false) => "node (not exported):".into(),
            (kind, _) => format!("{kind}:"),
        };
        facts.row([kind, allocation.cidr.to_string()]);
    }
    let watching = cluster
        .watching
        .iter()
        .map(|(node, since)| format!("{node} ({})", format::age(now.since(*since))));
    facts.row(["watching:".into(), format::list(watching)]);
    if !cluster.agents_watching.is_empty() {
        let agents = cluster.agents_watching.keys();
        facts.row(["agents watching:".into(), format::list(agents)]);
    }
    let mut text = facts.to_string();
    if record.gateways.is_empty() {
        text.push_str("gateways:  -\n");
    } else {
        let mut gateways = Table::new([
            "GATEWAY",
            "SLOT",
            "INNER",
            "LEASE",
            "LISTENER",
            "ENDPOINTS",
            "PUBLIC KEY",
        ]);
        for (node, gateway) in &record.gateways {
            rows(&mut gateways, node.as_str(), gateway, now);
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{gateways}");
    }
    text
}

/// A gateway: one row for each listener.
fn rows(table: &mut Table<7>, node: &str, gateway: &Gateway, now: UnixMillis) {
    let (inner, lease) = (inner(gateway), lease(gateway, now));
    for listener in &gateway.listeners {
        let state = match listener.state {
            ListenerState::Active => listener.id.clone(),
            ListenerState::Retiring => format!("{} (retiring)", listener.id),
        };
        table.row([
            node.into(),
            gateway.slot.to_string(),
            inner.clone(),
            lease.clone(),
            state,
            format::list(&listener.candidates),
            listener.public_key.to_string(),
        ]);
    }
}

/// A gateway's addresses inside the tunnels, as a cell.
pub(crate) fn inner(gateway: &Gateway) -> String {
    match &gateway.stock {
        Some(stock) => match stock.probe {
            Some(probe) => format!("stock, probe {probe}"),
            None => "stock".into(),
        },
        None => format::list(&gateway.inner),
    }
}

/// Whether the broker hears of a gateway, as a cell; a stock peer never tells it anything.
pub(crate) fn lease(gateway: &Gateway, now: UnixMillis) -> String {
    match (gateway.expired, &gateway.stock) {
        (Some(since), _) => format!("expired {}", format::ago(now, since)),
        (None, Some(_)) => "-".into(),
        (None, None) => "valid".into(),
    }
}
