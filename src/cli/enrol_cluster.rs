//! `subsea join --enrol-only`: has a cluster admitted whose daemons somebody else installs. Shell.

use std::process::ExitCode;

use kube::Client;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::member::CidrRequests;

use super::failure::{Failure, say};
use super::join_cluster::{findings, found, missing, refuse_conflicts};
use super::out;
use crate::kube::install::{self, Applicant, Installer, Proof, Standing};
use crate::kube::labels;

/// How to do it.
#[derive(Debug)]
pub(super) struct EnrolOptions {
    /// Where the daemons live.
    pub(super) namespace: String,
    /// Go on although settings of the cluster stand in the way.
    pub(super) ignore_findings: bool,
    /// Take over fields of the Secret that others have written.
    pub(super) force: bool,
    /// What the broker is shown.
    pub(super) proof: Proof,
}

/// Has the cluster admitted. A repeat does nothing, and needs no broker; with a new join file it changes blocks and keys.
pub(super) async fn run(
    client: &Client,
    file: &JoinFile,
    cidrs: &CidrRequests,
    options: EnrolOptions,
) -> Result<ExitCode, Failure> {
    let namespace = &options.namespace;
    let standing = Standing::read(client, namespace)
        .await
        .map_err(Failure::from)?;
    standing.check(file)?;
    let before = standing.enrolled();
    if let Some(before) = &before
        && standing.is_by(&file.token)
    {
        return already(before, "with this join file");
    }
    let mut plan = install::plan(client, cidrs, namespace, Installer::Other).await?;
    out::print(&found(&plan, out::colour()))?;
    if let Err(error) = plan.check_blocks() {
        out::print(&missing(&error, out::colour()))?;
        return Err(error.into());
    }
    let report = match (install::preflight(file, &mut plan).await, &before) {
        (Err(error), Some(before)) if error.is_spent() => {
            return already(before, "and this join file is of no use any more");
        }
        (Ok(None), Some(before)) => return already(before, "and this join file was used"),
        (report, _) => report?,
    };
    say(&findings(&plan.findings));
    refuse_conflicts(report.as_ref(), out::print)?;
    if !options.ignore_findings {
        plan.check_findings()?;
    }
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let applicant = Applicant::new(client, file, standing, options.force).await?;
    let enrolled = applicant
        .admit(&plan.cidrs, &options.proof, &mut progress)
        .await?;
    let EnrolmentFile { cluster, fleet, .. } = &enrolled;
    let gateways = if plan.gateways.labelled.is_empty() {
        format!("; no node is labelled {}=true yet", labels::GATEWAY)
    } else {
        String::new()
    };
    out::print(&format!(
        "\ncluster `{cluster}` is in fleet `{fleet}`, and its nodes can enrol{gateways}\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn already(known: &EnrolmentFile, how: &str) -> Result<ExitCode, Failure> {
    let EnrolmentFile { cluster, fleet, .. } = known;
    out::print(&format!(
        "cluster `{cluster}` was admitted to fleet `{fleet}` before, {how}: nothing to do\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
