//! Makes a cluster a member: what `subsea join --context` does, in order. Shell.
//!
//! ```text
//! plan     read the cluster, and ask the broker: nothing is touched
//! install  namespace, credential -> POST /v1/admit -> enrolment file, daemons
//! wait     until every gateway says that all its connections are ready
//! ```
//!
//! Each part can be repeated, and goes on where an earlier one ended: a second join is an upgrade. With `--enrol-only` there is
//! only what stands in `plan` and `admission`: somebody else installs the daemons.

mod admission;
mod error;
mod label;
mod plan;

use std::time::Duration;

use kube::{Client, ResourceExt as _};
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::member::CidrRequests;

pub use self::admission::{Applicant, Proof, SECRET, Standing};
pub use self::error::InstallError;
pub(super) use self::label::unlabel;
pub use self::plan::{Installer, Plan, Worth, plan, preflight};
use super::apply::{Applier, Progress};
use super::labels;
use super::manifests::{self, ClusterOptions, Object};
use super::remove;
use super::wait::{self, Interrupt, Limits};

/// What a join is to be like.
#[derive(Debug, Clone)]
pub struct InstallOptions {
    /// What the operator says of the blocks; the rest is looked up.
    pub cidrs: CidrRequests,
    /// Of the daemons.
    pub manifests: ClusterOptions,
    /// Take over fields that belong to others.
    pub force: bool,
    /// For each part that waits.
    pub timeout: Duration,
    /// Whether to stop.
    pub interrupt: Interrupt,
}

impl InstallOptions {
    fn limits(&self) -> Limits<'_> {
        Limits {
            timeout: self.timeout,
            interrupt: &self.interrupt,
        }
    }
}

/// What a join applies, in its order, but for the Secret: the daemons are the last two.
///
/// # Errors
/// [`InstallError::Manifest`].
pub fn objects(plan: &Plan, options: &InstallOptions) -> Result<Vec<Object>, InstallError> {
    let chosen = ClusterOptions {
        config: Some(plan.settings()),
        ..options.manifests.clone()
    };
    let mut all = manifests::cluster(&chosen)?;
    // Once they are there, settings are the operator's.
    all.retain(|object| !plan.has_settings || object.name_any() != manifests::SETTINGS);
    Ok(all)
}

/// What a join would apply: its objects, and the Secret without what is secret in it.
///
/// # Errors
/// [`InstallError::Manifest`], [`InstallError::Broker`] for a join file that makes no sense.
pub fn planned(
    file: &JoinFile,
    plan: &Plan,
    options: &InstallOptions,
) -> Result<Vec<Object>, InstallError> {
    let (daemons, mut all) = split(objects(plan, options)?);
    let namespace = &options.manifests.namespace;
    let secret = admission::secret(namespace, &admission::before_admission(file))?;
    all.push(manifests::object(&secret)?);
    all.extend(daemons);
    Ok(all)
}

/// The daemons, and what is there before them.
fn split(objects: Vec<Object>) -> (Vec<Object>, Vec<Object>) {
    objects
        .into_iter()
        .partition(|object| object.types.as_ref().is_some_and(|t| t.kind == "DaemonSet"))
}

/// Installs everything and has the cluster admitted, where the join file is worth that much.
///
/// # Errors
/// [`InstallError`]. It can be repeated.
pub async fn install(
    client: &Client,
    file: &JoinFile,
    plan: &Plan,
    worth: &Worth,
    options: &InstallOptions,
    progress: Progress<'_>,
) -> Result<EnrolmentFile, InstallError> {
    let namespace = &options.manifests.namespace;
    let standing = Standing::read(client, namespace).await?;
    let is_upgrade = standing.is_there();
    standing.check(file)?;
    let (daemons, rest) = split(objects(plan, options)?);
    let mut applier = Applier::new(client.clone(), options.force);
    // Of a leave that was interrupted: it would sweep what is installed now.
    remove::end_sweeper(client, namespace, options.timeout, &mut *progress).await?;
    applier.apply(&rest, &mut *progress).await?;
    let enrolment = match worth {
        Worth::Unused(_) | Worth::Used => {
            let applicant = Applicant::new(client, file, standing, options.force).await?;
            let proof = Proof::Operator;
            applicant.admit(&plan.cidrs, &proof, &mut *progress).await?
        }
        Worth::Spent(known) => {
            progress(&format!(
                "cluster {} was admitted with this join file: its blocks and keys stay as the broker has them",
                known.cluster
            ));
            known.clone()
        }
    };
    for node in &plan.gateways.to_label {
        label::label(client, node).await?;
        progress(&format!("labelled node {node} {}=true", labels::GATEWAY));
    }
    // One after the other: while the agent of a gateway's node starts anew, other nodes go by the other gateways.
    for daemon in &daemons {
        applier
            .apply(std::slice::from_ref(daemon), &mut *progress)
            .await?;
        if is_upgrade {
            wait::rolled_out(&mut applier, daemon, options.limits(), &mut *progress).await?;
        }
    }
    Ok(enrolment)
}
