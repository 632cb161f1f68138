//! `subsea-broker status`.

use subsea_api::UnixMillis;
use subsea_api::admin::BrokerStatus;

use super::failure::Failure;
use super::output::{self, Output};
use super::table::Table;
use super::{Context, format};

/// Show the running broker at a glance
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let status: BrokerStatus = context.client()?.get("/v1/admin/status").await?;
    args.output.print(&status, |s| table(s, output::now()))
}

/// The status as facts, one a line.
pub(crate) fn table(status: &BrokerStatus, now: UnixMillis) -> Table<2> {
    let pools = status
        .pools
        .iter()
        .map(|p| format!("{}={}", p.kind, p.cidr));
    let mut table = Table::new(["", ""]);
    for (name, value) in [
        ("fleet:", status.fleet.to_string()),
        ("version:", status.version.clone()),
        ("running for:", format::age(now.since(status.started))),
        ("urls:", format::list(&status.urls)),
        ("epoch:", status.epoch.clone()),
        ("revision:", status.revision.to_string()),
        ("clusters:", status.clusters.to_string()),
        (
            "gateways:",
            format::gateways(status.gateways, status.expired),
        ),
        ("watches:", status.watches.to_string()),
        ("pools:", format::list(pools)),
        ("CA expires:", format::time(status.ca_expires)),
    ] {
        table.row([name.into(), value]);
    }
    table
}
