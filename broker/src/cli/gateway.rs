//! `subsea-broker gateway`: stock WireGuard peers.

use std::net::{IpAddr, SocketAddr};

use hyper::Method;
use subsea_api::admin::{ClusterInfo, StockGateway};
use subsea_api::id::NodeName;
use subsea_api::{Allocation, Cidr, ClusterId, Kind, PublicKey};

use super::failure::Failure;
use super::output::{self, Done, Output};
use super::{Context, cluster, conflicts};

/// Add and forget gateways that are stock WireGuard peers
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    Add(Add),
    Forget(Forget),
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
#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    /// The cluster
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// The gateway's name in its cluster
    #[arg(long, value_name = "NODE")]
    name: NodeName,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
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
