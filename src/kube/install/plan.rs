//! What a join would do: what the cluster says about itself, and what the broker says to it. Shell; nothing is touched.

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::ListParams;
use kube::{Api, Client};
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::member::{CidrRequests, PreflightAdmission, PreflightReport, PreflightRequest};
use subsea_api::{Cidr, CidrRequest, Role};

use super::InstallError;
use super::admission::{Standing, service_accounts};
use crate::broker_client::BrokerClient;
use crate::kube::cni::{self, Cni, Finding, Marks, Severity, Surroundings};
use crate::kube::discover::{self, Discovered, Flags};
use crate::kube::error::KubeError;
use crate::kube::gateway_nodes::{self, Choice};
use crate::kube::manifests;
use crate::kube::settings::Settings;
use crate::kube::tenants;

/// Who installs the daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installer {
    /// We do, and choose gateways and settings where nobody has.
    Subsea,
    /// Somebody else, who also labels nodes and writes the settings.
    Other,
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
    /// Whether the settings are there already: then they are the operator's.
    pub has_settings: bool,
    /// The bits of marks that the daemons will use.
    marks: Marks,
    /// What the broker is asked for.
    pub cidrs: CidrRequests,
}

/// Reads the cluster and decides. Nothing is touched.
///
/// # Errors
/// [`InstallError`] when the cluster cannot be read, or the request makes no sense. Blocks that could not be found are in
/// [`Discovered::missing`], so that what was found can be shown beside them.
pub async fn plan(
    client: &Client,
    cidrs: &CidrRequests,
    namespace: &str,
    installer: Installer,
) -> Result<Plan, InstallError> {
    if installer == Installer::Subsea {
        if tenants::has_broker(client, namespace).await? {
            return Err(InstallError::BrokerHere(namespace.to_owned()));
        }
        if let Some(home) = tenants::daemons_elsewhere(client, namespace).await? {
            let named = namespace.to_owned();
            return Err(InstallError::Elsewhere { home, named });
        }
    }
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
    let mut gateways = gateway_nodes::choose(&nodes.items);
    if installer == Installer::Other {
        gateways.to_label.clear();
    }
    let settings = settings(client, namespace).await?;
    let mut marks = Marks::default();
    if let Some(mask) = settings.as_ref().and_then(|s| s.gateway.road_mask) {
        marks.gateway = mask.mask();
    } else if settings.is_none() && installer == Installer::Subsea && uses_cilium(&discovered) {
        // As our settings will say.
        marks.gateway = CILIUM_MASK;
    }
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
        findings: findings(&discovered, &[], marks),
        discovered,
        gateways,
        has_settings: settings.is_some(),
        marks,
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

fn findings(discovered: &Discovered, remote: &[Cidr], marks: Marks) -> Vec<Finding> {
    let around = Surroundings { remote, marks };
    let mut found = cni::findings(&discovered.cni, &discovered.proxy, around);
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

/// What is in the ConfigMap of the daemons' settings, if there is one.
async fn settings(client: &Client, namespace: &str) -> Result<Option<Settings>, KubeError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = manifests::SETTINGS;
    let found = maps.get_opt(name).await;
    let found =
        found.map_err(|e| KubeError::of("get", format!("ConfigMap {namespace}/{name}"), e))?;
    // What cannot be read, the daemons name and leave aside.
    Ok(found.map(|map| {
        let data = map.data.unwrap_or_default();
        let text = data.get(manifests::CONFIG).map_or("", String::as_str);
        Settings::parse(text).unwrap_or_default()
    }))
}

impl Plan {
    /// What `config.yaml` says at first: who knows the blocks of the nodes' pods, and marks that Cilium does not use.
    pub(super) fn settings(&self) -> String {
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
        self.check_blocks()?;
        if self.gateways.all().next().is_none() {
            return Err(InstallError::NoNode);
        }
        if ignore_findings {
            return Ok(());
        }
        self.check_findings()
    }

    /// Refuses a plan without all blocks.
    ///
    /// # Errors
    /// [`InstallError::Missing`].
    pub fn check_blocks(&self) -> Result<(), InstallError> {
        match self.discovered.missing() {
            [] => Ok(()),
            missing => Err(InstallError::Missing(missing.to_vec())),
        }
    }

    /// Refuses settings of the cluster that stand in the way.
    ///
    /// # Errors
    /// [`InstallError::Blocked`].
    pub fn check_findings(&self) -> Result<(), InstallError> {
        let blocks = self
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Blocks);
        let blocks: Vec<Finding> = blocks.cloned().collect();
        if blocks.is_empty() {
            Ok(())
        } else {
            Err(InstallError::Blocked(blocks))
        }
    }
}

/// What a join file is worth to a cluster.
#[derive(Debug, Clone)]
pub enum Worth {
    /// It is unused, and an admission would come to this.
    Unused(PreflightReport),
    /// It was used, and the cluster has a credential that it may have been used with: only the admission itself can tell.
    Used,
    /// It admitted the cluster as this, and the broker remembers no token so old: there is nothing to ask.
    Spent(EnrolmentFile),
}

impl Worth {
    /// What the broker says to the blocks, where it was asked.
    pub fn report(&self) -> Option<&PreflightReport> {
        match self {
            Self::Unused(report) => Some(report),
            Self::Used | Self::Spent(_) => None,
        }
    }
}

/// Asks the broker whether it would admit the cluster with these blocks. Nothing is touched.
///
/// # Errors
/// [`InstallError::OtherCluster`], [`InstallError::UsedElsewhere`], [`InstallError::Broker`]. Conflicts are in the report.
pub async fn preflight(
    client: &Client,
    file: &JoinFile,
    standing: &Standing,
    plan: &mut Plan,
) -> Result<Worth, InstallError> {
    if file.role != Role::Member {
        return Err(InstallError::Role(file.role));
    }
    standing.check(file)?;
    let broker = BrokerClient::anonymous(&file.broker, None).map_err(InstallError::Broker)?;
    let request = PreflightRequest {
        fleet: file.fleet.clone(),
        token: file.token.clone(),
        cluster: file.cluster.clone(),
        cidrs: plan.cidrs.clone(),
        admission: Some(PreflightAdmission {
            credential: standing.credential_for(file),
            service_accounts: service_accounts(client, standing.namespace()).await?,
        }),
    };
    let refused = match broker.preflight(&request).await {
        Ok(report) => {
            let remote: Vec<Cidr> = report.others.iter().map(|o| o.allocation.cidr).collect();
            plan.findings = findings(&plan.discovered, &remote, plan.marks);
            return Ok(Worth::Unused(report));
        }
        Err(error) => InstallError::Broker(error),
    };
    if refused.is_used() {
        return match standing.credential_for(file) {
            Some(_) => Ok(Worth::Used),
            None => Err(InstallError::UsedElsewhere {
                namespace: standing.namespace().to_owned(),
                cluster: file.cluster.to_string(),
            }),
        };
    }
    match standing.enrolled() {
        Some(enrolled) if refused.is_spent() && standing.is_by(&file.token) => {
            Ok(Worth::Spent(enrolled))
        }
        Some(_) | None => Err(refused),
    }
}
