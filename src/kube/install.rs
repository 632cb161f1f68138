//! Makes a cluster a member: what `subsea join --context` does, in order. Shell.
//!
//! ```text
//! plan     read the cluster, and ask the broker: nothing is touched
//! install  namespace, credential -> POST /v1/admit -> enrolment file, daemons
//! wait     until every gateway says that all its connections are ready
//! ```
//!
//! Each part can be repeated, and goes on where an earlier one ended: a second join is an upgrade.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use subsea_api::enrolment::{AdmitRequest, ServiceAccounts};
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::jwks::Jwks;
use subsea_api::member::{CidrRequests, PreflightReport, PreflightRequest};
use subsea_api::{Cidr, CidrRequest, Code, Problem, Role, Token};

use super::apply::{Applier, MANAGER, Progress};
use super::cni::{self, Cni, Finding, Marks, Severity, Surroundings};
use super::discover::{self, DiscoverError, Discovered, Flags};
use super::error::KubeError;
use super::gateway_nodes::{self, Choice};
use super::labels;
use super::manifests::{self, ClusterOptions, ManifestError, Object};
use super::{remove, wait};
use crate::broker_client::{BrokerClient, ClientError};
use crate::enrol::{CREDENTIAL_FILE, ENROLMENT_FILE, wanted};

/// Holds what the nodes enrol with.
pub const SECRET: &str = "subsea-enrolment";

/// Why a cluster did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The cluster did not do what it was asked.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The cluster could not be read.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The objects cannot be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The broker refused, or could not be reached.
    #[error("the broker did not admit the cluster")]
    Broker(#[source] ClientError),
    /// The join file is for a node.
    #[error(
        "the join file is for a node of role {0}; a whole cluster joins with one of role member"
    )]
    Role(Role),
    /// A block is to be chosen by the broker, and the cluster has its blocks.
    #[error(
        "the blocks of a cluster that runs cannot be chosen by the broker: give the ones that it has"
    )]
    Auto,
    /// The cluster does not tell its blocks.
    #[error("the cluster does not tell all of its blocks")]
    Missing(Vec<discover::Missing>),
    /// A setting of the cluster stands in the way.
    #[error("settings of the cluster stand in the way")]
    Blocked(Vec<Finding>),
    /// There is no node that could be a gateway.
    #[error(
        "no node is labelled {}=true, and none is ready to be",
        labels::GATEWAY
    )]
    NoNode,
    /// The Secret holds the enrolment of something else.
    #[error("the Secret {namespace}/{SECRET} enrols cluster {cluster} of fleet {fleet}")]
    OtherCluster {
        /// Where.
        namespace: String,
        /// Whose.
        cluster: String,
        /// Of which fleet.
        fleet: String,
    },
    /// The API server does not tell how its tokens are signed.
    #[error(
        "the API server does not tell how the tokens of its service accounts are signed: {why}"
    )]
    Issuer {
        /// Why.
        why: String,
    },
    /// An earlier join with this file asked for other blocks.
    #[error("an earlier join with this file was admitted with other blocks: {0}")]
    OtherBlocks(String),
    /// No random numbers.
    #[error("this host gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl InstallError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kube(error) => error.hint(),
            Self::Broker(error) => error.hint(),
            Self::Role(_) => Some("`subsea token create --cluster ID` makes one".into()),
            Self::Auto => Some("give blocks such as `--pod-cidr 10.32.0.0/16`, or none: they are looked up".into()),
            Self::Missing(missing) => {
                let flags: Vec<&str> = missing.iter().map(|m| m.flag).collect();
                Some(format!("give {}", flags.join(" and ")))
            }
            Self::Blocked(_) => Some("change them as said above, or go on with `--ignore-findings`".into()),
            Self::NoNode => Some(format!(
                "`kubectl label node NAME {}=true` says which nodes are gateways",
                labels::GATEWAY
            )),
            Self::OtherCluster { .. } => {
                Some("take it out first with `subsea leave --context`, or join with its own id".into())
            }
            Self::Issuer { .. } => Some(
                "its flag `--service-account-issuer` must be set, and `kubectl get --raw /openid/v1/jwks` must answer".into(),
            ),
            Self::OtherBlocks(_) => Some("blocks change with a new join file: `subsea token create --cluster ID` makes one".into()),
            Self::Discover(_) | Self::Manifest(_) | Self::Random(_) => None,
        }
    }
}

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
}

/// What would be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the cluster says about itself.
    pub discovered: Discovered,
    /// Settings that matter, the blocking ones first.
    pub findings: Vec<Finding>,
    /// The gateways.
    pub gateways: Choice,
    /// What the broker is asked for.
    pub cidrs: CidrRequests,
}

/// Reads the cluster and decides. Nothing is touched.
///
/// # Errors
/// [`InstallError`] when the cluster cannot be read, or the request makes no sense. Blocks that could not be found are in
/// [`Discovered::missing`], so that what was found can be shown beside them.
pub async fn plan(client: &Client, cidrs: &CidrRequests) -> Result<Plan, InstallError> {
    let flags = Flags {
        pod: exact(&cidrs.pod)?,
        service: exact(&cidrs.service)?,
    };
    let facts = discover::read(client).await?;
    let discovered = discover::decide(&facts, &flags);
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes
        .list(&ListParams::default())
        .await
        .map_err(|e| KubeError::of("list", "nodes", e))?;
    let gateways = gateway_nodes::choose(&nodes.items);
    let found = |found: &[discover::Found]| {
        let blocks = found.iter().map(|found| CidrRequest::Exact(found.cidr));
        blocks.collect()
    };
    let wanted = CidrRequests {
        pod: found(&discovered.pod),
        service: found(&discovered.service),
        ..cidrs.clone()
    };
    Ok(Plan {
        findings: findings(&discovered, &[]),
        discovered,
        gateways,
        cidrs: wanted,
    })
}

fn exact(requests: &[CidrRequest]) -> Result<Vec<Cidr>, InstallError> {
    let one = |request: &CidrRequest| match request {
        CidrRequest::Exact(cidr) => Ok(*cidr),
        CidrRequest::Auto { .. } => Err(InstallError::Auto),
    };
    requests.iter().map(one).collect()
}

/// The bits of `--road-mask` that Cilium does not use.
const CILIUM_MASK: u32 = 0x3000;

fn uses_cilium(discovered: &Discovered) -> bool {
    discovered
        .cni
        .iter()
        .any(|cni| matches!(cni, Cni::Cilium(_)))
}

fn findings(discovered: &Discovered, remote: &[Cidr]) -> Vec<Finding> {
    let mut marks = Marks::default();
    if uses_cilium(discovered) {
        // As the settings will say.
        marks.gateway = CILIUM_MASK;
    }
    let around = Surroundings { remote, marks };
    let mut found = cni::findings(&discovered.cni, &discovered.proxy, around);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

impl Plan {
    /// What `config.yaml` says at first: who knows the blocks of the nodes' pods, and marks that Cilium does not use.
    fn settings(&self) -> String {
        let mask = if uses_cilium(&self.discovered) {
            format!("gateway:\n  # Cilium uses 0x0f00.\n  roadMask: {CILIUM_MASK:#x}\n")
        } else {
            String::new()
        };
        format!(
            "{mask}agent:\n  podPrefixes: {}\n",
            self.discovered.prefix_source()
        )
    }

    /// Refuses a plan that cannot be carried out.
    ///
    /// # Errors
    /// [`InstallError::Missing`], [`InstallError::NoNode`], and [`InstallError::Blocked`] unless findings are ignored.
    pub fn check(&self, ignore_findings: bool) -> Result<(), InstallError> {
        let missing = self.discovered.missing();
        if !missing.is_empty() {
            return Err(InstallError::Missing(missing.to_vec()));
        }
        if self.gateways.all().next().is_none() {
            return Err(InstallError::NoNode);
        }
        let blocks = self
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Blocks);
        let blocks: Vec<Finding> = blocks.cloned().collect();
        if !blocks.is_empty() && !ignore_findings {
            return Err(InstallError::Blocked(blocks));
        }
        Ok(())
    }
}

/// Asks the broker whether it would admit the cluster with these blocks; none where the token was used, by an earlier join with
/// the same file: then only the admission itself can tell.
///
/// # Errors
/// [`InstallError::Broker`]. Conflicts are in the report.
pub async fn preflight(
    file: &JoinFile,
    plan: &mut Plan,
) -> Result<Option<PreflightReport>, InstallError> {
    if file.role != Role::Member {
        return Err(InstallError::Role(file.role));
    }
    let client = BrokerClient::anonymous(&file.broker, None).map_err(InstallError::Broker)?;
    let request = PreflightRequest {
        fleet: file.fleet.clone(),
        token: file.token.clone(),
        cluster: file.cluster.clone(),
        cidrs: plan.cidrs.clone(),
    };
    match client.preflight(&request).await {
        Ok(report) => {
            let remote: Vec<Cidr> = report.others.iter().map(|o| o.allocation.cidr).collect();
            plan.findings = findings(&plan.discovered, &remote);
            Ok(Some(report))
        }
        Err(ClientError::Problem(Problem {
            code: Code::TokenUsed,
            ..
        })) => Ok(None),
        Err(error) => Err(InstallError::Broker(error)),
    }
}

/// Installs everything and has the cluster admitted.
///
/// # Errors
/// [`InstallError`]. It can be repeated.
pub async fn install(
    client: &Client,
    file: &JoinFile,
    plan: &Plan,
    options: &InstallOptions,
    progress: Progress<'_>,
) -> Result<EnrolmentFile, InstallError> {
    let namespace = &options.manifests.namespace;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let there = secret(&secrets, namespace).await?;
    let before = there.as_ref().and_then(enrolment);
    if let Some(before) = before
        && (before.fleet != file.fleet || before.cluster != file.cluster)
    {
        return Err(InstallError::OtherCluster {
            namespace: namespace.clone(),
            cluster: before.cluster.to_string(),
            fleet: before.fleet.to_string(),
        });
    }
    let service_accounts = service_accounts(client, namespace).await?;
    let chosen = ClusterOptions {
        config: Some(plan.settings()),
        ..options.manifests.clone()
    };
    let (daemons, rest): (Vec<Object>, Vec<Object>) = manifests::cluster(&chosen)?
        .into_iter()
        .partition(|object| object.types.as_ref().is_some_and(|t| t.kind == "DaemonSet"));
    let settings: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let settings = settings.get_opt(manifests::SETTINGS).await;
    let settings = settings.map_err(|e| {
        KubeError::of(
            "get",
            format!("ConfigMap {namespace}/{}", manifests::SETTINGS),
            e,
        )
    })?;
    // Once they are there, settings are the operator's.
    let mine = |object: &Object| settings.is_none() || object.name_any() != manifests::SETTINGS;
    let rest: Vec<Object> = rest.into_iter().filter(mine).collect();
    let mut applier = Applier::new(client.clone(), options.force);
    // Of a leave that was interrupted: it would sweep what is installed now.
    remove::end_sweeper(client, namespace, options.timeout).await?;
    applier.apply(&rest, &mut *progress).await?;
    let text = |file: &EnrolmentFile| {
        let text = file.to_yaml();
        text.map_err(|e| InstallError::Broker(ClientError::Protocol(e.to_string())))
    };
    // The cluster keeps it before the broker hears of it: a join that dies between the two is repeated with the same.
    let credential = if let Some(credential) = there.as_ref().and_then(credential) {
        credential
    } else {
        let made = random()?;
        // With who the cluster is to be: a leave can tell the broker even if this ends before the answer comes.
        let known = EnrolmentFile::new(
            file.fleet.clone(),
            file.cluster.clone(),
            file.broker.clone(),
        );
        let values = [
            (CREDENTIAL_FILE, made.expose()),
            (ENROLMENT_FILE, text(&known)?),
        ];
        keep(&secrets, namespace, &values, options.force).await?;
        made
    };
    let broker = BrokerClient::anonymous(&file.broker, None).map_err(InstallError::Broker)?;
    let admitted = broker
        .admit(&AdmitRequest {
            fleet: file.fleet.clone(),
            cluster: file.cluster.clone(),
            token: file.token.clone(),
            credential: credential.clone(),
            cidrs: plan.cidrs.clone(),
            service_accounts,
        })
        .await
        .map_err(InstallError::Broker)?;
    progress(&format!(
        "cluster {} is a member of fleet {}",
        admitted.cluster, admitted.fleet
    ));
    if !wanted::satisfied(Role::Member, &plan.cidrs, &admitted.allocations) {
        let blocks = admitted.allocations.iter().map(|a| a.cidr.to_string());
        return Err(InstallError::OtherBlocks(
            blocks.collect::<Vec<_>>().join(", "),
        ));
    }
    let file = EnrolmentFile::new(admitted.fleet, admitted.cluster, admitted.broker);
    let all = [
        (CREDENTIAL_FILE, credential.expose()),
        (ENROLMENT_FILE, text(&file)?),
    ];
    keep(&secrets, namespace, &all, options.force).await?;
    for node in &plan.gateways.to_label {
        label(client, node).await?;
        progress(&format!("labelled node {node} {}=true", labels::GATEWAY));
    }
    // One after the other: while the agent of a gateway's node starts anew, other nodes go by the other gateways.
    for daemon in &daemons {
        applier
            .apply(std::slice::from_ref(daemon), &mut *progress)
            .await?;
        if there.is_some() {
            let name = daemon.name_any();
            wait::rolled_out(client, namespace, &name, options.timeout, &mut *progress).await?;
        }
    }
    Ok(file)
}

async fn secret(secrets: &Api<Secret>, namespace: &str) -> Result<Option<Secret>, KubeError> {
    let what = || format!("Secret {namespace}/{SECRET}");
    let found = secrets.get_opt(SECRET).await;
    found.map_err(|e| KubeError::of("get", what(), e))
}

fn value<'s>(secret: &'s Secret, key: &str) -> Option<&'s str> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(bytes).ok()
}

fn credential(secret: &Secret) -> Option<Token> {
    value(secret, CREDENTIAL_FILE)?.trim().parse().ok()
}

/// Who the cluster is, as the Secret has it.
pub fn enrolment(secret: &Secret) -> Option<EnrolmentFile> {
    EnrolmentFile::parse(value(secret, ENROLMENT_FILE)?).ok()
}

async fn keep(
    secrets: &Api<Secret>,
    namespace: &str,
    values: &[(&str, String)],
    force: bool,
) -> Result<(), KubeError> {
    let values: BTreeMap<&str, &String> = values.iter().map(|(key, value)| (*key, value)).collect();
    let mut all = BTreeMap::from(labels::ours());
    all.insert(labels::COMPONENT, "enrolment");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace, "labels": all},
        "type": "Opaque",
        "stringData": values,
    });
    // Whoever put one there for us, such as an operator of external secrets, is not contradicted silently.
    let mut params = PatchParams::apply(MANAGER);
    params.force = force;
    let done = secrets.patch(SECRET, &params, &Patch::Apply(&secret)).await;
    done.map(drop)
        .map_err(|e| KubeError::of("apply", format!("Secret {namespace}/{SECRET}"), e))
}

/// 256 random bits.
fn random() -> Result<Token, InstallError> {
    let mut secret = zeroize::Zeroizing::new([0; 32]);
    let mut id = [0; 4];
    getrandom::fill(&mut *secret).map_err(InstallError::Random)?;
    getrandom::fill(&mut id).map_err(InstallError::Random)?;
    Ok(Token::from_parts(u32::from_be_bytes(id), *secret))
}

/// How the broker can check the tokens of the cluster's service accounts.
async fn service_accounts(
    client: &Client,
    namespace: &str,
) -> Result<ServiceAccounts, InstallError> {
    let unusable = |why: String| InstallError::Issuer { why };
    let read = async |path: &'static str| {
        let request = hyper::Request::get(path).body(Vec::new());
        let request = request.map_err(|e| unusable(e.to_string()))?;
        let answer = client.request_text(request).await;
        answer.map_err(|e| InstallError::Kube(KubeError::of("get", path, e)))
    };
    let configuration = read("/.well-known/openid-configuration").await?;
    let configuration: serde_json::Value =
        serde_json::from_str(&configuration).map_err(|e| unusable(e.to_string()))?;
    let issuer = configuration["issuer"].as_str().unwrap_or_default();
    let keys = read("/openid/v1/jwks").await?;
    Ok(ServiceAccounts {
        issuer: issuer.parse().map_err(|e| unusable(format!("{e}")))?,
        namespace: namespace.parse().map_err(|e| unusable(format!("{e}")))?,
        keys: Jwks::parse(&keys).map_err(|e| unusable(e.to_string()))?,
    })
}

/// Labels a node, in our name: only what is ours goes again.
async fn label(client: &Client, node: &str) -> Result<(), KubeError> {
    let labels = json!({ labels::GATEWAY: "true" });
    node_labels(client, node, &labels).await
}

/// Takes our label from a node; one that the operator set stays.
pub(super) async fn unlabel(client: &Client, node: &str) -> Result<(), KubeError> {
    node_labels(client, node, &json!({})).await
}

async fn node_labels(
    client: &Client,
    node: &str,
    labels: &serde_json::Value,
) -> Result<(), KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let there = nodes.get_opt(node).await;
    let there = there.map_err(|e| KubeError::of("get", format!("Node {node}"), e))?;
    // With its uid, so that a node that goes meanwhile is not made anew by this.
    let Some(uid) = there.and_then(|node| node.metadata.uid) else {
        return Ok(());
    };
    let metadata = json!({"name": node, "uid": uid, "labels": labels});
    let wanted = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
    let params = PatchParams::apply(MANAGER).force();
    let done = nodes.patch(node, &params, &Patch::Apply(&wanted)).await;
    done.map(drop)
        .map_err(|e| KubeError::of("apply", format!("Node {node}"), e))
}
