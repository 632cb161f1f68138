//! `subsea-broker allocation`.

use hyper::Method;
use subsea_api::admin::{AllocationInfo, AllocationState, Reservation};
use subsea_api::conflict::Owner;
use subsea_api::{Cidr, CidrRequest, ClusterId, Kind, UnixMillis};

use super::failure::Failure;
use super::output::{self, Done, Output};
use super::table::Table;
use super::{Context, args, conflicts, format};

/// List, reserve and release blocks
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    List(List),
    Reserve(Reserve),
    Release(Release),
}

/// List the blocks in use, reserved or resting
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    output: Output,
}

/// Reserve a block for a cluster, which may join later
#[derive(Debug, clap::Args)]
pub(crate) struct Reserve {
    /// The cluster
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,

    /// What the block is for: pod, service, node or global
    #[arg(long, value_name = "KIND", value_parser = args::reservable_kind)]
    kind: Kind,

    /// The block, or `auto/16` (IPv6: `auto6/56`) for the first free one of that size
    #[arg(value_name = "CIDR|auto/N")]
    cidr: CidrRequest,

    #[command(flatten)]
    output: Output,
}

/// Release a reserved block
#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// The block
    #[arg(value_name = "CIDR")]
    cidr: Cidr,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    match verb {
        Verb::List(args) => {
            let allocations: Vec<AllocationInfo> = client.get("/v1/admin/allocations").await?;
            args.output.print(&allocations, |a| table(a, output::now()))
        }
        Verb::Reserve(args) => {
            let request = Reservation {
                cluster: args.cluster,
                kind: args.kind,
                cidr: args.cidr,
            };
            let answer: Result<AllocationInfo, _> = client
                .send(Method::POST, "/v1/admin/allocations", &request)
                .await;
            let info = conflicts::shown(answer, &args.output)?;
            args.output
                .print(&info, |a| table(std::slice::from_ref(a), output::now()))
        }
        Verb::Release(args) => {
            let path = format!("/v1/admin/allocations?cidr={}", args.cidr);
            client.order(Method::DELETE, &path).await?;
            let subject = args.cidr.to_string();
            let done = Done {
                action: "allocation.release",
                subject: &subject,
            };
            args.output.done(&done, &format!("{subject} is released"))
        }
    }
}

fn table(allocations: &[AllocationInfo], now: UnixMillis) -> Table<5> {
    let mut table = Table::new(["CIDR", "KIND", "CLUSTER", "STATE", "EXPORTED"]);
    for allocation in allocations {
        let state = match (allocation.state, allocation.free_at) {
            (AllocationState::Active, _) => "active".into(),
            (AllocationState::Reserved, _) => "reserved".into(),
            (AllocationState::Resting, None) => "resting".into(),
            (AllocationState::Resting, Some(at)) => {
                format!("resting, free in {}", format::age(at.since(now)))
            }
        };
        let owner = match &allocation.owner {
            Owner::Cluster(id) | Owner::Reservation(id) => id.to_string(),
            other @ (Owner::Broker | Owner::Standard | Owner::Host) => other.to_string(),
        };
        table.row([
            allocation.cidr.to_string(),
            allocation.kind.to_string(),
            owner,
            state,
            if allocation.exported { "yes" } else { "no" }.into(),
        ]);
    }
    table
}
