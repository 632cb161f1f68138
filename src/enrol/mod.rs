//! Becoming a member and ceasing to be one. This file wires; `wanted.rs` and `proven.rs` decide. In Kubernetes nobody
//! carries a join file to a node: [`by_service_account`].
//!
//! A join may die at any point and be repeated: the key is on disk before the broker hears of it, the broker
//! answers a repeat with the same key as it did at first, and `member.json`, written last, says that all is there.

mod error;
mod files;
mod leave;
mod proven;
mod service_account;
pub(crate) mod wanted;

use std::path::Path;

use subsea_api::conflict::{Conflict, HostRoute, host_conflicts, host_warnings};
use subsea_api::join_file::JoinFile;
use subsea_api::member::{
    CidrRequests, JoinRequest, JoinResponse, PreflightReport, PreflightRequest,
};
use subsea_api::{ClusterId, Code, FleetName, NodeName, Problem};

pub use self::error::EnrolError;
pub use self::files::{
    CREDENTIAL_FILE, ENROLMENT_FILE, read_enrolment, read_join_file, read_service_account_token,
};
pub use self::leave::{LeaveOptions, Left, leave};
pub(crate) use self::service_account::is_lapsed;
pub use self::service_account::{by_service_account, by_service_account_again};
use crate::broker_client::{BrokerClient, ClientError, csr_pem};
use crate::state::{CERTIFICATE, Membership, StateDir, StateError, TLS_KEY};

/// What the pre-flight found.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The broker's report.
    pub report: PreflightReport,
    /// Routes of this host at odds with blocks of other members.
    pub host_conflicts: Vec<Conflict>,
    /// Links of this host inside blocks of other members.
    pub warnings: Vec<Conflict>,
}

impl Findings {
    fn new(report: PreflightReport, routes: &[HostRoute]) -> Self {
        let (own, others) = (&report.allocations, &report.others);
        Self {
            host_conflicts: host_conflicts(routes, own, others),
            warnings: host_warnings(routes, own, others),
            report,
        }
    }

    /// Whether nothing stands against a join.
    pub fn is_ok(&self) -> bool {
        self.report.conflicts.is_empty() && self.host_conflicts.is_empty()
    }

    /// Every pair that conflicts, those in the fleet first.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.report
            .conflicts
            .iter()
            .chain(&self.host_conflicts)
            .cloned()
            .collect()
    }
}

/// Asks the broker and the host whether a join would succeed. Burns nothing.
///
/// # Errors
/// [`EnrolError`] when it could not be checked; conflicts are findings, not errors.
pub async fn preflight(
    file: &JoinFile,
    cluster: Option<&ClusterId>,
    cidrs: CidrRequests,
) -> Result<Findings, EnrolError> {
    check_cluster(file, cluster)?;
    wanted::check_role(file.role, &cidrs)?;
    let routes = host_routes().await?;
    let client = BrokerClient::anonymous(&file.broker, None)?;
    Ok(Findings::new(ask(&client, file, cidrs).await?, &routes))
}

/// How a join is to be done.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Must be the join file's, when given.
    pub cluster: Option<ClusterId>,
    /// The node's name; by default the one of an earlier join here, else `default_node`.
    pub node: Option<NodeName>,
    /// The host's name, when it can be a node's.
    pub default_node: Option<NodeName>,
    /// What to ask for.
    pub cidrs: CidrRequests,
    /// Whether the host's routes are left out of the pre-flight.
    pub skip_host_routes: bool,
}

/// What a join led to.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Who this node is now.
    pub membership: Membership,
    /// It was so before, and nobody was asked.
    pub already: bool,
    /// Links of this host inside blocks of other members.
    pub warnings: Vec<Conflict>,
}

/// Joins with a join file and keeps the result in the state directory.
///
/// # Errors
/// [`EnrolError`]; a refused join pins nothing: the same file and directory work with other blocks.
pub async fn join(
    file: &JoinFile,
    state_dir: &Path,
    options: JoinOptions,
) -> Result<Joined, EnrolError> {
    check_cluster(file, options.cluster.as_ref())?;
    wanted::check_role(file.role, &options.cidrs)?;
    // The broker's bundle is read before anything is made on disk.
    let client = BrokerClient::anonymous(&file.broker, None)?;
    let state = StateDir::create(state_dir)?;
    let earlier = state.membership()?;
    let node = options
        .node
        .or_else(|| earlier.as_ref().map(|m| m.node.clone()))
        .or(options.default_node)
        .ok_or(EnrolError::NoNodeName)?;
    if let Some(earlier) = earlier {
        wanted::check_same(file, &node, &earlier)?;
        let whole = state.has(CERTIFICATE) && state.has(TLS_KEY);
        // A new token was made for a reason that this node may not know: it may have been forgotten since.
        let repeated = earlier.token == Some(file.token.id());
        if whole && repeated && wanted::satisfied(file.role, &options.cidrs, &earlier.allocations) {
            return Ok(Joined {
                membership: earlier,
                already: true,
                warnings: Vec::new(),
            });
        }
    }
    let _lock = state.lock()?;
    let key = state.tls_key_or_create()?;
    let warnings = if options.skip_host_routes {
        Vec::new()
    } else {
        check_host(&client, file, options.cidrs.clone()).await?
    };
    let request = JoinRequest {
        fleet: file.fleet.clone(),
        token: file.token.clone(),
        cluster: file.cluster.clone(),
        node,
        csr_pem: csr_pem(&key)?,
        cidrs: options.cidrs,
    };
    let answer = client.join(&request).await.map_err(EnrolError::refused)?;
    // Also checks that the certificate is for our key, before it is kept.
    BrokerClient::with_identity(&answer.broker, &answer.certificate_pem, &key, None)?;
    let asked = (&request.fleet, &request.cluster, &request.node);
    let membership = keep(&state, asked, Some(request.token.id()), answer)?;
    // A token that this node has used already admits nothing new: the broker repeats what it answered then.
    if !wanted::satisfied(file.role, &request.cidrs, &membership.allocations) {
        return Err(EnrolError::OtherBlocks {
            cluster: membership.cluster,
        });
    }
    Ok(Joined {
        membership,
        already: false,
        warnings,
    })
}

/// The pre-flight of a join: for the sake of the host's routes, which the broker cannot know.
async fn check_host(
    client: &BrokerClient,
    file: &JoinFile,
    cidrs: CidrRequests,
) -> Result<Vec<Conflict>, EnrolError> {
    let routes = host_routes().await?;
    match ask(client, file, cidrs).await {
        Ok(report) => {
            let findings = Findings::new(report, &routes);
            if findings.is_ok() {
                Ok(findings.warnings)
            } else {
                Err(EnrolError::Conflicts(findings.conflicts()))
            }
        }
        // The token may have been used by this very node, in a join whose answer was lost: only the join itself
        // can tell, for it shows the key. What it would check then was checked at first.
        Err(ClientError::Problem(Problem {
            code: Code::TokenUsed | Code::TokenExpired,
            ..
        })) => Ok(Vec::new()),
        Err(error) => Err(EnrolError::refused(error)),
    }
}

async fn ask(
    client: &BrokerClient,
    file: &JoinFile,
    cidrs: CidrRequests,
) -> Result<PreflightReport, ClientError> {
    let request = PreflightRequest {
        admission: None,
        fleet: file.fleet.clone(),
        token: file.token.clone(),
        cluster: file.cluster.clone(),
        cidrs,
    };
    client.preflight(&request).await
}

/// Writes what the broker gave, `member.json` last. `asked` is who the node wanted to be, and `token` the id of the join
/// token, if it came with one.
fn keep(
    state: &StateDir,
    asked: (&FleetName, &ClusterId, &NodeName),
    token: Option<String>,
    answer: JoinResponse,
) -> Result<Membership, EnrolError> {
    if asked != (&answer.fleet, &answer.cluster, &answer.node) {
        return Err(ClientError::Protocol(format!(
            "the broker enrolled `{}` of cluster `{}` in fleet `{}`, which was not asked for",
            answer.node, answer.cluster, answer.fleet
        ))
        .into());
    }
    state.write_certificate(&answer.certificate_pem)?;
    let membership = Membership {
        version: 1,
        fleet: answer.fleet,
        cluster: answer.cluster,
        node: answer.node,
        role: answer.role,
        broker: answer.broker,
        allocations: answer.allocations,
        token,
    };
    state.write_membership(&membership)?;
    Ok(membership)
}

/// Refuses a cluster that is not the join file's.
///
/// # Errors
/// [`EnrolError::OtherCluster`].
pub fn check_cluster(file: &JoinFile, cluster: Option<&ClusterId>) -> Result<(), EnrolError> {
    match cluster {
        Some(cluster) if *cluster != file.cluster => Err(EnrolError::OtherCluster {
            file: file.cluster.clone(),
            given: cluster.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

async fn host_routes() -> Result<Vec<HostRoute>, EnrolError> {
    crate::net::netlink::host_routes()
        .await
        .map_err(EnrolError::Routes)
}

impl From<StateError> for EnrolError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}
