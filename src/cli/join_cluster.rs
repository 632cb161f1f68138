//! `subsea join --context`: a whole cluster of Kubernetes. Shell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use subsea_api::member::{CidrRequests, PreflightReport};
use subsea_api::{Allocation, ClusterId};

use super::args;
use super::dry_run::DryRun;
use super::enrol_cluster::{self, EnrolOptions};
use super::failure::{CONFLICTS, Failure, say};
use super::image::{self, PullSecrets};
use super::signals::interruptible;
use super::table::Table;
use super::{conflicts, out};
use crate::enrol;
use crate::kube::cni::{Finding, Severity};
use crate::kube::connect::{connect, connect_in_cluster};
use crate::kube::discover::Weight;
use crate::kube::gateway_nodes::Choice;
use crate::kube::install::{self, InstallError, InstallOptions, Installer, Plan, Proof, Standing};
use crate::kube::labels;
use crate::kube::live_image;
use crate::kube::manifests::ClusterOptions;
use crate::kube::wait::{self, Interrupt};

/// Of a join of a whole cluster.
#[expect(
    clippy::struct_excessive_bools,
    reason = "flags of a command line, each by itself"
)]
#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "For a whole cluster of Kubernetes",
    mut_arg("pull_secret", |arg| arg.requires("context").conflicts_with("enrol_only")),
    mut_arg("no_pull_secret", |arg| arg.requires("context").conflicts_with("enrol_only"))
)]
pub(super) struct ClusterArgs {
    /// The context of the kubeconfig: installs Subsea in that cluster, as a member of the fleet
    #[arg(long, value_name = "CONTEXT", group = "whole")]
    context: Option<String>,

    /// The cluster that this pod runs in, by its service account: with --enrol-only
    #[arg(long, group = "whole", requires = "enrol_only")]
    in_cluster: bool,

    /// The service account token for the broker, of audience `subsea-broker`
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/subsea/token",
        requires = "in_cluster"
    )]
    token_file: PathBuf,

    /// Ask the broker to admit the cluster and write the Secret by which its nodes enrol, and no more: the daemons come from
    /// `kubectl apply -k`, the chart or a delivery tool. Does nothing when the cluster was admitted already
    #[arg(long, requires = "whole", conflicts_with = "dry_run")]
    enrol_only: bool,

    /// Where the daemons live
    #[arg(long, value_name = "NAME", default_value = "subsea", value_parser = args::namespace, requires = "whole")]
    namespace: String,

    /// The image, with both programs in it. Otherwise that of this version, and in a cluster whose daemons have one of another
    /// registry or name, that one
    #[arg(
        long,
        value_name = "IMAGE",
        requires = "context",
        conflicts_with = "enrol_only"
    )]
    image: Option<String>,

    #[command(flatten)]
    pull_secrets: PullSecrets,

    /// How long to wait until all tunnels are up
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::duration, requires = "context", conflicts_with = "enrol_only")]
    timeout: Duration,

    /// Go on although settings of the cluster stand in the way
    #[arg(long, requires = "whole")]
    ignore_findings: bool,

    /// Take over fields that others have applied
    #[arg(long, requires = "whole")]
    force_conflicts: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

/// Joins the cluster, and ends when its tunnels are up.
pub(super) async fn run(
    file: &Path,
    cluster: Option<ClusterId>,
    cidrs: CidrRequests,
    args: ClusterArgs,
) -> Result<ExitCode, Failure> {
    let interrupt = Interrupt::new(false);
    let work = Box::pin(join(file, cluster, cidrs, args, &interrupt));
    interruptible(&interrupt, work).await
}

async fn join(
    file: &Path,
    cluster: Option<ClusterId>,
    cidrs: CidrRequests,
    args: ClusterArgs,
    interrupt: &Interrupt,
) -> Result<ExitCode, Failure> {
    let file = match enrol::read_join_file(file) {
        Err(error) if args.in_cluster && error.is_absent() => {
            let client = connect_in_cluster()?;
            match enrol_cluster::await_file(&client, file, &args.namespace).await? {
                Some(file) => file,
                None => return Ok(ExitCode::SUCCESS),
            }
        }
        file => file?,
    };
    enrol::check_cluster(&file, cluster.as_ref())?;
    let client = match &args.context {
        Some(context) => connect(Some(context)).await?,
        None => connect_in_cluster()?,
    };
    if args.enrol_only {
        let options = EnrolOptions {
            namespace: args.namespace,
            ignore_findings: args.ignore_findings,
            force: args.force_conflicts,
            proof: if args.in_cluster {
                Proof::File(args.token_file)
            } else {
                Proof::Operator
            },
        };
        return enrol_cluster::run(&client, &file, &cidrs, options).await;
    }
    let live = live_image::installed(&client, &args.namespace).await?;
    let (dry, said) = (args.dry_run.wanted(), (args.image, args.pull_secrets));
    let image = image::chosen(Some(&client), &args.namespace, live.as_ref(), said, dry).await?;
    let options = InstallOptions {
        cidrs,
        manifests: ClusterOptions {
            namespace: args.namespace,
            image,
            ..ClusterOptions::default()
        },
        force: args.force_conflicts,
        timeout: args.timeout,
        interrupt: interrupt.clone(),
    };
    let namespace = &options.manifests.namespace;
    let mut plan = install::plan(&client, &options.cidrs, namespace, Installer::Subsea).await?;
    // What is printed on standard output is the objects.
    let show = |text: &str| {
        if dry {
            say(text);
            return Ok(());
        }
        out::print(text)
    };
    show(&found(&plan, !dry && out::colour()))?;
    if let Err(error) = plan.check(true) {
        show(&missing(&error, !dry && out::colour()))?;
        return Err(error.into());
    }
    let standing = Standing::read(&client, namespace).await?;
    let worth = install::preflight(&client, &file, &standing, &mut plan).await?;
    say(&findings(&plan.findings));
    refuse_conflicts(worth.report(), show)?;
    show(&worth.report().map_or_else(String::new, changes))?;
    plan.check(args.ignore_findings)?;
    if dry {
        for node in &plan.gateways.to_label {
            say(&format!(
                "a join would label node {node} {}=true\n",
                labels::GATEWAY
            ));
        }
        args.dry_run
            .print(&install::planned(&file, &plan, &options)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let enrolled = install::install(&client, &file, &plan, &worth, &options, &mut progress).await?;
    let nodes: BTreeSet<String> = plan.gateways.all().cloned().collect();
    let summary = wait::connected(&client, namespace, &nodes, args.timeout, &mut progress).await?;
    out::print(&format!(
        "\ncluster `{}` is in fleet `{}`: {summary}\n\nnext: `kubectl get connections`\n",
        enrolled.cluster, enrolled.fleet
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows blocks that conflict with those of others, and fails.
pub(super) fn refuse_conflicts(
    report: Option<&PreflightReport>,
    show: impl Fn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let conflicts = report.map_or(&[][..], |report| &report.conflicts);
    if conflicts.is_empty() {
        return Ok(());
    }
    show(&conflicts::table(conflicts, out::colour()))?;
    let count = conflicts.len();
    Err(Failure::failed(format!(
        "{count} pairs of blocks conflict; nothing was touched"
    ))
    .hint("clusters whose blocks overlap cannot be routed between: the table says what is free")
    .with_code(CONFLICTS))
}

/// What becomes of the blocks of a cluster that is a member already; nothing of one that is none.
pub(super) fn changes(report: &PreflightReport) -> String {
    if !report.replaces {
        return String::new();
    }
    let sorted = |allocations: &[Allocation]| {
        let mut all: Vec<String> = allocations.iter().map(|a| a.cidr.to_string()).collect();
        all.sort_unstable();
        all.join(", ")
    };
    let PreflightReport { cluster, fleet, .. } = report;
    let (now, then) = (sorted(&report.current), sorted(&report.allocations));
    let blocks = if now == then {
        format!("its blocks stay: {now}")
    } else {
        format!("its blocks, now {now}, become {then}")
    };
    format!("cluster `{cluster}` is a member of fleet `{fleet}` already; {blocks}\n")
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
