//! `subsea join --context`: a whole cluster of Kubernetes. Shell.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use subsea_api::ClusterId;
use subsea_api::join_file::JoinFile;
use subsea_api::member::CidrRequests;

use super::args;
use super::dry_run::DryRun;
use super::failure::{CONFLICTS, Failure, say};
use super::table::Table;
use super::{conflicts, out};
use crate::enrol;
use crate::kube::cni::{Finding, Severity};
use crate::kube::connect::connect;
use crate::kube::discover::Weight;
use crate::kube::gateway_nodes::Choice;
use crate::kube::install::{self, InstallError, InstallOptions, Plan};
use crate::kube::labels;
use crate::kube::manifests::{self, ClusterOptions, IMAGE};
use crate::kube::wait;

/// Of a join of a whole cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For a whole cluster of Kubernetes")]
pub(super) struct ClusterArgs {
    /// The context of the kubeconfig: installs Subsea in that cluster, as a member of the fleet
    #[arg(long, value_name = "CONTEXT")]
    pub(super) context: Option<String>,

    /// Where the daemons live
    #[arg(long, value_name = "NAME", default_value = "subsea", value_parser = args::namespace, requires = "context")]
    namespace: String,

    /// The image, with both programs in it
    #[arg(long, value_name = "IMAGE", default_value = IMAGE, requires = "context")]
    image: String,

    /// How long to wait until all tunnels are up
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::duration, requires = "context")]
    timeout: Duration,

    /// Go on although settings of the cluster stand in the way
    #[arg(long, requires = "context")]
    ignore_findings: bool,

    /// Take over fields that others have applied
    #[arg(long, requires = "context")]
    force_conflicts: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

/// Joins the cluster, and ends when its tunnels are up.
pub(super) async fn run(
    file: JoinFile,
    cluster: Option<ClusterId>,
    cidrs: CidrRequests,
    args: ClusterArgs,
) -> Result<ExitCode, Failure> {
    enrol::check_cluster(&file, cluster.as_ref())?;
    let options = InstallOptions {
        cidrs,
        manifests: ClusterOptions {
            namespace: args.namespace,
            image: args.image,
            ..ClusterOptions::default()
        },
        force: args.force_conflicts,
        timeout: args.timeout,
    };
    if args.dry_run.wanted() {
        let objects = manifests::cluster(&options.manifests).map_err(|e| Failure::of(&e))?;
        args.dry_run.print(&objects)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = connect(args.context.as_deref()).await?;
    let mut plan = install::plan(&client, &options.cidrs).await?;
    out::print(&found(&plan, out::colour()))?;
    let checked = plan.check(true);
    if let Err(error) = checked {
        out::print(&missing(&error, out::colour()))?;
        return Err(error.into());
    }
    let report = install::preflight(&file, &mut plan).await?;
    say(&findings(&plan.findings));
    if let Some(report) = &report
        && !report.conflicts.is_empty()
    {
        out::print(&conflicts::table(&report.conflicts, out::colour()))?;
        let count = report.conflicts.len();
        return Err(Failure::failed(format!(
            "{count} pairs of blocks conflict; nothing was touched"
        ))
        .hint("clusters whose blocks overlap cannot be routed between: the table says what is free")
        .with_code(CONFLICTS));
    }
    plan.check(args.ignore_findings)?;
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let enrolled = install::install(&client, &file, &plan, &options, &mut progress).await?;
    let nodes: BTreeSet<String> = plan.gateways.all().cloned().collect();
    let namespace = &options.manifests.namespace;
    let summary = wait::connected(&client, namespace, &nodes, args.timeout, &mut progress).await?;
    out::print(&format!(
        "\ncluster `{}` is in fleet `{}`: {summary}\n\nnext: `kubectl get connections`\n",
        enrolled.cluster, enrolled.fleet
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What the cluster says about itself, and where it says so.
pub(super) fn found(plan: &Plan, colour: bool) -> String {
    let mut table = Table::new(["FOUND", "VALUE", "WHERE"]);
    for row in plan.discovered.rows() {
        table.row([row.what.into(), row.value.into(), row.from.into()]);
    }
    let Choice { labelled, to_label } = &plan.gateways;
    let label = format!("label {}", labels::GATEWAY);
    for (nodes, why) in [
        (labelled, label.as_str()),
        (to_label, "no node has the label: chosen, and labelled"),
    ] {
        for node in nodes {
            table.row(["gateway".into(), node.clone().into(), why.to_owned().into()]);
        }
    }
    let mut text = table.render(colour);
    for note in &plan.discovered.notes {
        let weight = match note.weight {
            Weight::Info => "note",
            Weight::Warning => "warning",
        };
        text = text + weight + ": " + &note.text + "\n";
    }
    text
}

pub(super) fn missing(error: &InstallError, colour: bool) -> String {
    let InstallError::Missing(missing) = error else {
        return String::new();
    };
    let mut table = Table::new(["MISSING", "WHY"]);
    for missing in missing {
        table.row([missing.flag.into(), missing.why.clone().into()]);
    }
    format!("\n{}", table.render(colour))
}

pub(super) fn findings(findings: &[Finding]) -> String {
    let shown = findings.iter().filter(|f| f.severity != Severity::Fine);
    shown.fold(String::new(), |text, finding| {
        let how = match finding.severity {
            Severity::Blocks => "in the way",
            Severity::Warns => "warning",
            Severity::Fine => "fine",
        };
        let instead = finding.instead.as_ref();
        let instead = instead.map_or_else(String::new, |instead| format!("; instead: {instead}"));
        let Finding { id, found, why, .. } = finding;
        text + &format!("{how} ({id}): {found}: {why}{instead}\n")
    })
}
