//! `subsea join --enrol-only`: has a cluster admitted whose daemons somebody else installs. Shell.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use kube::Client;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::member::CidrRequests;
use tokio::time::Instant;

use super::failure::{CONFLICTS, Failure, say};
use super::join_cluster::{changes, findings, found, missing, refuse_conflicts};
use super::{kubernetes, out};
use crate::enrol;
use crate::kube::install::{self, Applicant, InstallError, Installer, Proof, Standing, Worth};
use crate::kube::labels;

/// How often it is looked whether there is a join file.
const LOOK: Duration = Duration::from_secs(2);
/// After so long the attempt ends, and the Job makes a new pod: not every kubelet brings new files into one that runs.
const PATIENCE: Duration = Duration::from_mins(10);

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
    standing.check(file).map_err(refused)?;
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
    let worth = install::preflight(client, file, &standing, &mut plan)
        .await
        .map_err(refused)?;
    say(&findings(&plan.findings));
    refuse_conflicts(worth.report(), out::print)?;
    out::print(&worth.report().map_or_else(String::new, changes))?;
    if !options.ignore_findings {
        plan.check_findings()?;
    }
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let applicant = Applicant::new(client, file, standing, options.force).await?;
    let enrolled = applicant
        .admit(&plan.cidrs, &options.proof, &mut progress)
        .await
        .map_err(refused)?;
    if let (Worth::Used, Some(before)) = (&worth, &before) {
        // The broker has just said that the credential is still the cluster's.
        return already(before, "and this join file was used");
    }
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

/// Waits until there is a join file: an operator of external secrets may bring it later, and the kubelet mounts it then. None when
/// there is nothing to wait for, since the cluster was admitted.
pub(super) async fn await_file(
    client: &Client,
    path: &Path,
    namespace: &str,
) -> Result<Option<JoinFile>, Failure> {
    let path_shown = path.display();
    say(&format!(
        "there is no join file {path_shown} yet: waiting for it\n"
    ));
    // The first process of a container has no default action for SIGTERM.
    let mut stop = kubernetes::stop()?;
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit {
        let standing = Standing::read(client, namespace).await;
        if let Some(before) = standing.map_err(Failure::from)?.enrolled() {
            already(&before, "and there is no join file")?;
            return Ok(None);
        }
        match enrol::read_join_file(path) {
            Err(error) if error.is_absent() => {}
            file => return Ok(Some(file?)),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stop.wait_for(|stop| *stop) => {
                return Err(Failure::failed(format!("stopped while there was no join file {path_shown}")));
            }
        }
    }
    Err(Failure::failed(format!(
        "there is no join file {path_shown} yet, and the cluster is not admitted"
    ))
    .hint(format!(
        "`subsea token create --cluster ID -o east.join` makes one, and `kubectl -n {namespace} create secret generic subsea-join --from-file=join.yaml=east.join` brings it here"
    )))
}

/// Ends a Job, where the next attempt would end alike.
fn refused(error: InstallError) -> Failure {
    let is_final = error.is_final();
    let failure = Failure::from(error);
    if is_final {
        failure.with_code(CONFLICTS)
    } else {
        failure
    }
}

fn already(known: &EnrolmentFile, how: &str) -> Result<ExitCode, Failure> {
    let EnrolmentFile { cluster, fleet, .. } = known;
    out::print(&format!(
        "cluster `{cluster}` was admitted to fleet `{fleet}` before, {how}: nothing to do\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
