//! `subsea preflight`. Shell.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use subsea_api::member::PreflightReport;
use subsea_api::{Allocation, ClusterId, Conflict};

use super::args::{self, CidrArgs};
use super::failure::{CONFLICTS, Failure, say};
use super::out::Output;
use super::table::Table;
use super::{conflicts, out, preflight_cluster};
use crate::enrol::{self, Findings};
use crate::kube::manifests::NAMESPACE;

/// Checks whether a join would succeed, without joining
///
/// The broker compares the blocks with those of the fleet, and this host's routes are compared with the blocks of
/// other members. The token is not used up. Exits with 2 when blocks conflict, 1 when it could not be checked.
/// With `--context`, a whole cluster of Kubernetes is checked: its blocks are looked up, and settings of its network plugin
/// that stand in the way are named.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The join file, as `subsea-broker token create` writes it
    #[arg(value_name = "JOINFILE")]
    file: PathBuf,

    /// The cluster; must be the join file's
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,

    #[command(flatten)]
    cidrs: CidrArgs,

    /// The context of the kubeconfig: checks that cluster
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// Where the daemons live, or would
    #[arg(long, value_name = "NAME", default_value = NAMESPACE, value_parser = args::namespace, requires = "context")]
    namespace: String,

    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    report: &'a PreflightReport,
    host_conflicts: &'a [Conflict],
    warnings: &'a [Conflict],
}

/// Checks and prints what was found.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let file = enrol::read_join_file(&args.file)?;
    if let Some(context) = &args.context {
        enrol::check_cluster(&file, args.cluster.as_ref())?;
        let cidrs = args.cidrs.into();
        return preflight_cluster::run(&file, &cidrs, context, &args.namespace, args.output).await;
    }
    let found = enrol::preflight(&file, args.cluster.as_ref(), args.cidrs.into()).await?;
    let checked = Checked {
        ok: found.is_ok(),
        report: &found.report,
        host_conflicts: &found.host_conflicts,
        warnings: &found.warnings,
    };
    args.output
        .print(&checked, |_, colour| table(&found, colour))?;
    say(&conflicts::warnings(&found.warnings));
    Ok(if found.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CONFLICTS)
    })
}

fn table(found: &Findings, colour: bool) -> String {
    if !found.is_ok() {
        return conflicts::table(&found.conflicts(), colour);
    }
    let (cluster, fleet) = (&found.report.cluster, &found.report.fleet);
    let verdict = if found.report.replaces {
        format!(
            "cluster `{cluster}` is a member of fleet `{fleet}` already; from the state directory that admitted it, \
             and from no other, its blocks can become"
        )
    } else {
        format!("cluster `{cluster}` can join fleet `{fleet}` with")
    };
    format!(
        "no conflicts: {verdict}\n\n{}",
        allocations(&found.report.allocations, out::colour())
    )
}

/// The blocks of a cluster.
pub(super) fn allocations(allocations: &[Allocation], colour: bool) -> String {
    let mut table = Table::new(["KIND", "CIDR", "ROUTED BY OTHERS"]);
    for allocation in allocations {
        let routed = if allocation.exported { "yes" } else { "no" };
        table.row([
            allocation.kind.as_str().into(),
            allocation.cidr.to_string().into(),
            routed.into(),
        ]);
    }
    table.render(colour)
}
