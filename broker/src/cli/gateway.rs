//! `subsea-broker gateway`: the gateways of the fleet, among them stock WireGuard peers.

use std::net::{IpAddr, SocketAddr};

use hyper::Method;
use serde::Serialize;
use subsea_api::admin::{ClusterInfo, StockGateway};
use subsea_api::id::NodeName;
use subsea_api::snapshot::Gateway;
use subsea_api::{Allocation, Cidr, ClusterId, Kind, PublicKey, UnixMillis};

use super::failure::Failure;
use super::output::{self, Done, Output};
use super::table::Table;
use super::{Context, cluster, conflicts, format};

/// List gateways, add stock WireGuard peers and forget gateways
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    List(List),
    Add(Add),
    Forget(Forget),
}

/// List the gateways and whether their leases are valid
///
/// A gateway renews its lease while it reaches the broker. An expired one is kept by its peers for as long as its
/// tunnels answer; `gateway forget` ends it.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only those of one cluster
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,

    #[command(flatten)]
    output: Output,
}

/// A gateway with whose it is.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    cluster: &'a ClusterId,
    node: &'a NodeName,
    #[serde(flatten)]
    gateway: &'a Gateway,
    /// Since when it has a watch open.
    #[serde(skip_serializing_if = "Option::is_none")]
    watching: Option<UnixMillis>,
}

/// Register a stock WireGuard peer as a gateway of a cluster
///
/// The cluster need not have joined: with its blocks given here (or reserved before) it becomes a member whose
/// only gateways are stock peers.
#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// The cluster behind the peer
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// The peer's public key, as `wg pubkey` prints it
    #[arg(long, value_name = "KEY")]
    public_key: PublicKey,

    /// Where the peer listens
    #[arg(long, value_name = "IP:PORT")]
    endpoint: SocketAddr,

    /// An address behind the peer that answers ping; without one it is judged by its handshake
    #[arg(long, value_name = "IP")]
    probe: Option<IpAddr>,

    /// The gateway's name in its cluster
    #[arg(long, value_name = "NODE", default_value = "stock")]
    name: NodeName,

    /// A pod block behind the peer; may be given several times
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Vec<Cidr>,

    /// A service block behind the peer; may be given several times
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<Cidr>,

    #[command(flatten)]
    output: Output,
}

/// Remove one gateway of a cluster
///
/// Its peers drop it at once, also when its tunnels still answer, and its node's certificate is refused. The other
/// gateways of the cluster stay.
#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    /// The cluster
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// The gateway's name in its cluster, which is that of its node
    #[arg(long, visible_alias = "node", value_name = "NODE")]
    name: NodeName,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List(args) => {
            let clusters: Vec<ClusterInfo> = match &args.cluster {
                Some(id) => vec![client.get(&format!("/v1/admin/clusters/{id}")).await?],
                None => client.get("/v1/admin/clusters").await?,
            };
            let gateways: Vec<Listed<'_>> = clusters.iter().flat_map(listed).collect();
            args.output.print(&gateways, |g| table(g, output::now()))
        }
        Verb::Add(args) => {
            let path = format!(
                "/v1/admin/clusters/{}/stock-gateways/{}",
                args.cluster, args.name
            );
            let block = |kind| {
                move |cidr: &Cidr| Allocation {
                    kind,
                    cidr: *cidr,
                    exported: true,
                }
            };
            let pods = args.pod_cidr.iter().map(block(Kind::Pod));
            let services = args.service_cidr.iter().map(block(Kind::Service));
            let request = StockGateway {
                public_key: args.public_key,
                endpoint: args.endpoint,
                probe: args.probe,
                allocations: pods.chain(services).collect(),
            };
            let answer: Result<ClusterInfo, _> = client.send(Method::PUT, &path, &request).await;
            let info = conflicts::shown(answer, &args.output)?;
            args.output
                .print(&info, |c| cluster::show(c, output::now()))
        }
        Verb::Forget(args) => {
            let path = format!("/v1/admin/clusters/{}/gateways/{}", args.cluster, args.name);
            client.order(Method::DELETE, &path).await?;
            let subject = format!("{}/{}", args.cluster, args.name);
            let done = Done {
                action: "gateway.forget",
                subject: &subject,
            };
            args.output
                .done(&done, &format!("gateway {subject} is forgotten"))
        }
    }
}

fn listed(info: &ClusterInfo) -> impl Iterator<Item = Listed<'_>> {
    info.record.gateways.iter().map(|(node, gateway)| Listed {
        cluster: &info.id,
        node,
        gateway,
        watching: info.watching.get(node).copied(),
    })
}

fn table(gateways: &[Listed<'_>], now: UnixMillis) -> Table<7> {
    let mut table = Table::new([
        "CLUSTER",
        "GATEWAY",
        "SLOT",
        "LEASE",
        "INNER",
        "NODE ADDRESSES",
        "ENDPOINTS",
    ]);
    for Listed {
        cluster: id,
        node,
        gateway,
        ..
    } in gateways
    {
        let first = gateway.listeners.first();
        table.row([
            id.to_string(),
            node.to_string(),
            gateway.slot.to_string(),
            cluster::lease(gateway, now),
            cluster::inner(gateway),
            format::list(&gateway.node_addresses),
            format::list(first.iter().flat_map(|listener| &listener.candidates)),
        ]);
    }
    table
}
