//! Which blocks are the cluster's, out of all that was read. PURE.
//!
//! For each kind and family the sources of the best [`Rank`](super::found::Rank) count:
//!
//! 1. a flag;
//! 2. what hands the addresses out: Calico's pools, Cilium's, OVN-Kubernetes' subnets; ServiceCIDR objects;
//! 3. the command line of a running program: the controller manager's `--cluster-cidr` where it allocates blocks to nodes, the
//!    API server's `--service-cluster-ip-range`, k3s' arguments, OpenShift's status for services;
//! 4. what was written down: kubeadm's ConfigMap, flannel's, kube-proxy's.
//!
//! Sources of one rank must agree; where they do not, neither counts, and the flag is asked for. One of a worse rank that
//! says something else is shown as a warning. An allocator cannot be wrong about what it hands out; a record can be old.
//!
//! The nodes' own blocks are never an answer: the block of a node that joins tomorrow is not among them, and the smallest
//! block around those of today may be larger or smaller than the cluster's. They are evidence: where pods' addresses come
//! out of them, all of them must lie in the blocks that were found. So must the address of the service `kubernetes`.

use std::net::IpAddr;

use serde::Serialize;
use subsea_api::Cidr;

use super::control_plane;
use super::facts::Facts;
use super::found::{Claims, Found, Note, Weight, listed};
use super::nodes::{Node, nodes, pod_evidence};
use super::prefixes::PrefixSource;
use super::query::Query;
use super::settle::Kind;
use crate::kube::cni::{self, Cni, Ipam, Proxy};

/// What the operator gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--pod-cidr`.
    pub pod: Vec<Cidr>,
    /// `--service-cidr`.
    pub service: Vec<Cidr>,
}

/// A flag that must be given, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The flag.
    pub flag: &'static str,
    /// What was found instead.
    pub why: String,
}

/// What the cluster says about itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Discovered {
    /// The blocks of pods.
    pub pod: Vec<Found>,
    /// The blocks of services.
    pub service: Vec<Found>,
    /// All nodes, by name.
    pub nodes: Vec<Node>,
    /// The plugins, the one that gives addresses first.
    pub cni: Vec<Cni>,
    /// What makes ClusterIPs work.
    pub proxy: Proxy,
    /// What is to be shown beside it.
    pub notes: Vec<Note>,
    missing: Vec<Missing>,
}

/// A line of the table for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `pod`, `service`, `node`, `plugin` or `proxy`.
    pub what: &'static str,
    /// The block, address or name.
    pub value: String,
    /// Where it was found.
    pub from: String,
}

/// Decides.
pub fn decide(facts: &Facts, flags: &Flags) -> Discovered {
    let nodes = nodes(facts);
    let (plugins, proxy) = cni::detect(facts);
    let mut claims = control_plane::claims(facts);
    claims.extend(cni::claims(facts, &plugins));
    let mut notes = claims.notes.clone();
    for (query, why) in facts.failures() {
        let flag = asked_for(query).map_or(String::new(), |f| format!("; {f} stands in for it"));
        notes.push(Note::warning(format!(
            "{query} could not be read: {why}{flag}"
        )));
    }
    let mut missing = Vec::new();

    let evidence = pod_evidence(facts, &nodes, &plugins);
    let pod = Kind {
        name: "pods",
        flag: "--pod-cidr",
        given: &flags.pod,
        claims: &claims.pod,
        evidence,
    }
    .settle(&mut notes, &mut missing, &|| {
        why_no_pods(facts, &nodes, &plugins, &claims)
    });

    let addresses = control_plane::kubernetes_addresses(facts);
    let service = Kind {
        name: "services",
        flag: "--service-cidr",
        given: &flags.service,
        claims: &claims.service,
        evidence: addresses
            .into_iter()
            .map(|a| (Cidr::host(a), "the service default/kubernetes".to_owned()))
            .collect(),
    }
    .settle(&mut notes, &mut missing, &|| why_no_services(facts));

    notes.sort_by_key(|note| std::cmp::Reverse(note.weight));
    notes.dedup();
    Discovered {
        pod,
        service,
        nodes,
        cni: plugins,
        proxy,
        notes,
        missing,
    }
}

impl Discovered {
    /// The flags that must be given before the cluster can join. Empty when all is known.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Where the agents learn the blocks of their nodes' pods.
    pub fn prefix_source(&self) -> PrefixSource {
        match self.cni.iter().find(|p| p.gives_addresses()) {
            Some(Cni::Calico(calico)) => match calico.ipam {
                Ipam::Calico => PrefixSource::Calico,
                Ipam::HostLocal | Ipam::Elsewhere => PrefixSource::Node,
            },
            Some(Cni::Cilium(cilium)) => match cilium.ipam.as_str() {
                "cluster-pool" | "cluster-pool-v2beta" | "multi-pool" => PrefixSource::Cilium,
                "kubernetes" => PrefixSource::Node,
                _ => PrefixSource::None,
            },
            Some(Cni::Flannel(_)) => PrefixSource::Node,
            Some(Cni::OvnKubernetes(_)) => PrefixSource::OvnKubernetes,
            Some(Cni::AwsVpc(_)) => PrefixSource::None,
            Some(Cni::Other { .. }) | None => PrefixSource::Auto,
        }
    }

    /// The addresses of all nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.nodes
            .iter()
            .flat_map(|n| n.addresses.iter().map(|a| (n.name.as_str(), *a)))
    }

    /// The lines of a table for people.
    pub fn rows(&self) -> Vec<Row> {
        let blocks = |what, found: &[Found]| -> Vec<Row> {
            let row = |f: &Found| Row {
                what,
                value: f.cidr.to_string(),
                from: f.from.to_string(),
            };
            found.iter().map(row).collect()
        };
        let mut rows = blocks("pod", &self.pod);
        rows.extend(blocks("service", &self.service));
        let (shown, rest) = self.nodes.split_at(self.nodes.len().min(MAX_NODE_ROWS));
        rows.extend(shown.iter().map(|node| {
            let addresses: Vec<String> = node.addresses.iter().map(IpAddr::to_string).collect();
            Row {
                what: "node",
                value: addresses.join(", "),
                from: format!("node {}", node.name),
            }
        }));
        if !rest.is_empty() {
            rows.push(Row {
                what: "node",
                value: format!("and {} more", rest.len()),
                from: String::new(),
            });
        }
        rows.extend(self.cni.iter().map(|plugin| Row {
            what: "plugin",
            value: plugin.to_string(),
            from: String::new(),
        }));
        rows.push(Row {
            what: "proxy",
            value: self.proxy.mode.to_string(),
            from: self.proxy.from.clone().unwrap_or_default(),
        });
        rows
    }
}

/// More nodes are not shown one by one.
const MAX_NODE_ROWS: usize = 8;

/// The flag by which the operator can do without what could not be read.
fn asked_for(query: Query) -> Option<&'static str> {
    match query {
        Query::Kubeadm
        | Query::ControlPlane
        | Query::Nodes
        | Query::OpenShiftNetwork
        | Query::Ovn
        | Query::OvnOpenShift => {
            Some("--pod-cidr and --service-cidr, where the blocks are not found elsewhere,")
        }
        Query::KubeProxy
        | Query::KubeProxyEks
        | Query::CalicoPools
        | Query::CalicoPoolsStored
        | Query::Cilium
        | Query::CiliumOwnNamespace
        | Query::CiliumPools
        | Query::CiliumPoolsV2
        | Query::Flannel
        | Query::FlannelOld
        | Query::Canal => Some("--pod-cidr, where the blocks are not found elsewhere,"),
        Query::ServiceCidrs | Query::ServiceCidrsBeta => {
            Some("--service-cidr, where the blocks are not found elsewhere,")
        }
        Query::KubernetesService
        | Query::DaemonSets
        | Query::Felix
        | Query::FelixStored
        | Query::CalicoInstallation
        | Query::CalicoConfig
        | Query::CalicoIpam
        | Query::CiliumMasquerade
        | Query::CiliumNodes
        | Query::OpenShiftOperator
        | Query::EniConfigs => None,
    }
}

fn why_no_pods(facts: &Facts, nodes: &[Node], plugins: &[Cni], claims: &Claims) -> String {
    if plugins.iter().any(|p| matches!(p, Cni::AwsVpc(_))) {
        let note = claims
            .notes
            .iter()
            .find(|n| n.weight == Weight::Info && n.text.starts_with("with the AWS VPC CNI"));
        return note.map_or_else(String::new, |n| n.text.clone());
    }
    let blocks: Vec<Cidr> = nodes.iter().flat_map(|n| n.pod_cidrs.clone()).collect();
    let refused = refused(facts);
    if blocks.is_empty() {
        return format!("nothing says which blocks pods' addresses come from{refused}");
    }
    format!(
        "the nodes have {}, and nothing says out of which block further nodes get theirs{refused}",
        listed(blocks)
    )
}

fn why_no_services(facts: &Facts) -> String {
    let addresses = control_plane::kubernetes_addresses(facts);
    let hint = addresses
        .first()
        .map_or_else(String::new, |a| format!(" ({a} is among them)"));
    format!(
        "nothing says which blocks ClusterIPs come from{hint}{}",
        refused(facts)
    )
}

fn refused(facts: &Facts) -> String {
    let failed: Vec<String> = facts
        .failures()
        .filter(|(q, _)| asked_for(*q).is_some())
        .map(|(q, _)| q.to_string())
        .collect();
    match failed.len() {
        0 => String::new(),
        1..=3 => format!("; could not be read: {}", failed.join(", ")),
        more => format!(
            "; {more} things could not be read, {} among them",
            failed[0]
        ),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
