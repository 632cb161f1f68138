//! `subsea preflight --context`: whether a whole cluster of Kubernetes can join. Shell.

use std::process::ExitCode;

use serde::Serialize;
use subsea_api::join_file::JoinFile;
use subsea_api::member::{CidrRequests, PreflightReport};

use super::failure::{CONFLICTS, Failure, say};
use super::join_cluster::{changes, findings, found, missing};
use super::out::Output;
use super::{conflicts, preflight};
use crate::kube::cni::Finding;
use crate::kube::connect::connect;
use crate::kube::discover::{Discovered, Missing};
use crate::kube::install::{self, Installer, Standing, Worth};

#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    discovered: &'a Discovered,
    missing: &'a [Missing],
    /// Nodes that are gateways, or would be.
    gateways: Vec<&'a String>,
    findings: &'a [Finding],
    /// None while blocks are missing, and for a join file that was used.
    report: Option<&'a PreflightReport>,
}

/// Reads the cluster, asks the broker, and prints what was found. Nothing is touched.
pub(super) async fn run(
    file: &JoinFile,
    cidrs: &CidrRequests,
    context: &str,
    namespace: &str,
    output: Output,
) -> Result<ExitCode, Failure> {
    let client = connect(Some(context)).await?;
    let standing = Standing::read(&client, namespace).await?;
    standing.check(file)?;
    let mut plan = install::plan(&client, cidrs, namespace, Installer::Subsea).await?;
    let complete = plan.check(true);
    let worth = match &complete {
        Ok(()) => Some(install::preflight(&client, file, &standing, &mut plan).await?),
        Err(_) => None,
    };
    let report = worth.as_ref().and_then(Worth::report);
    let pairs = report.iter().flat_map(|report| &report.conflicts).count();
    let fit = plan.check(false);
    let checked = Checked {
        ok: fit.is_ok() && pairs == 0,
        discovered: &plan.discovered,
        missing: plan.discovered.missing(),
        gateways: plan.gateways.all().collect(),
        findings: &plan.findings,
        report,
    };
    output.print(&checked, |_, colour| {
        let mut text = found(&plan, colour);
        if let Err(error) = &complete {
            text += &missing(error, colour);
        }
        text += "\n";
        match (report, &worth) {
            (Some(report), _) if report.conflicts.is_empty() => {
                let (cluster, fleet) = (&report.cluster, &report.fleet);
                let verdict = if report.replaces {
                    changes(report)
                } else {
                    format!("cluster `{cluster}` can join fleet `{fleet}` with\n")
                };
                text = text + "no conflicts: " + &verdict + "\n";
                text += &preflight::allocations(&report.allocations, colour);
            }
            (Some(report), _) => text += &conflicts::table(&report.conflicts, colour),
            (None, Some(_)) => {
                text += "the join file was used already, and the cluster has a credential: a join is an upgrade\n";
            }
            (None, None) => text += "the broker was not asked\n",
        }
        text
    })?;
    say(&findings(&plan.findings));
    fit?;
    Ok(if pairs == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CONFLICTS)
    })
}
