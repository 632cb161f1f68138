//! Which blocks are the cluster's, out of all that was read. PURE.
//!
//! For each kind and family the sources of the best [`Rank`] count:
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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;
use subsea_api::{Cidr, Family};

use super::control_plane;
use super::facts::{Facts, text, texts};
use super::found::{Claims, Found, Note, Rank, Source, Weight, listed, of_family};
use super::prefixes::PrefixSource;
use super::query::Query;
use crate::kube::cni::{self, Cni, Ipam, Proxy};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What the operator gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--pod-cidr`.
    pub pod: Vec<Cidr>,
    /// `--service-cidr`.
    pub service: Vec<Cidr>,
}

/// A node, as far as blocks and addresses go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its `InternalIP`s.
    pub addresses: Vec<IpAddr>,
    /// Its `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
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

    let evidence = pod_evidence(&nodes, &plugins);
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

    notes.sort_by(|a, b| b.weight.cmp(&a.weight));
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
            Some(Cni::Other(_)) | None => PrefixSource::Auto,
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

/// The nodes, by name.
fn nodes(facts: &Facts) -> Vec<Node> {
    let mut all: Vec<Node> = facts.objects(Query::Nodes).iter().map(node).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn node(object: &Value) -> Node {
    let addresses = object
        .pointer("/status/addresses")
        .and_then(Value::as_array);
    let internal = |a: &&Value| text(a, "/type") == Some("InternalIP");
    Node {
        name: text(object, "/metadata/name").unwrap_or("?").to_owned(),
        addresses: addresses
            .into_iter()
            .flatten()
            .filter(internal)
            .filter_map(|a| text(a, "/address")?.parse().ok())
            .collect(),
        pod_cidrs: node_blocks(object),
    }
}

/// A node's own blocks. The older field is the first of the newer list.
pub(super) fn node_blocks(object: &Value) -> Vec<Cidr> {
    let mut all = texts(object, "/spec/podCIDRs");
    if all.is_empty() {
        all.extend(text(object, "/spec/podCIDR"));
    }
    all.iter().filter_map(|c| c.parse().ok()).collect()
}

/// The nodes' blocks, where pods' addresses come out of them.
fn pod_evidence(nodes: &[Node], plugins: &[Cni]) -> Vec<(Cidr, String)> {
    let uses = plugins
        .iter()
        .find(|p| p.gives_addresses())
        .and_then(Cni::uses_node_blocks);
    if uses == Some(false) {
        return Vec::new();
    }
    let of = |n: &Node| -> Vec<(Cidr, String)> {
        let name = format!("node {}", n.name);
        n.pod_cidrs.iter().map(|c| (*c, name.clone())).collect()
    };
    nodes.iter().flat_map(of).collect()
}

/// The blocks of one kind, before they are decided on.
struct Kind<'a> {
    name: &'static str,
    flag: &'static str,
    given: &'a [Cidr],
    claims: &'a [Found],
    evidence: Vec<(Cidr, String)>,
}

impl Kind<'_> {
    fn settle(
        &self,
        notes: &mut Vec<Note>,
        missing: &mut Vec<Missing>,
        nothing: &dyn Fn() -> String,
    ) -> Vec<Found> {
        let flag = Source::new(Rank::Flag, format!("flag {}", self.flag));
        let mut claims: Vec<Found> = self
            .given
            .iter()
            .map(|cidr| Found {
                cidr: *cidr,
                from: flag.clone(),
            })
            .collect();
        claims.extend(self.claims.iter().cloned());
        let mut chosen = Vec::new();
        for family in FAMILIES {
            let of: Vec<&Found> = of_family(&claims, family).collect();
            match self.best(&of, notes) {
                Ok(found) => chosen.extend(found),
                Err(why) => missing.push(Missing {
                    flag: self.flag,
                    why,
                }),
            }
        }
        let conflict = missing.iter().any(|m| m.flag == self.flag);
        if chosen.is_empty() && !conflict {
            missing.push(Missing {
                flag: self.flag,
                why: nothing(),
            });
            return chosen;
        }
        self.hold_against_evidence(&chosen, conflict, notes, missing);
        chosen
    }

    /// The blocks of the best rank, if its sources agree.
    fn best(&self, found: &[&Found], notes: &mut Vec<Note>) -> Result<Vec<Found>, String> {
        let mut sources: BTreeMap<&Source, BTreeSet<Cidr>> = BTreeMap::new();
        for f in found {
            sources.entry(&f.from).or_default().insert(f.cidr);
        }
        let Some(rank) = sources.keys().map(|s| s.rank).min() else {
            return Ok(Vec::new());
        };
        // Several objects of one kind make one allocator: each pool has its block, and all count.
        let top: Vec<(&Source, &BTreeSet<Cidr>)> = sources
            .iter()
            .filter(|(s, _)| s.rank == rank)
            .map(|(s, c)| (*s, c))
            .collect();
        let mut groups: BTreeMap<String, BTreeSet<Cidr>> = BTreeMap::new();
        for (source, cidrs) in &top {
            groups
                .entry(group(&source.place))
                .or_default()
                .extend(*cidrs);
        }
        let mut sets = groups.values();
        let first = sets.next().cloned().unwrap_or_default();
        if sets.any(|other| *other != first) {
            let said: Vec<String> = top
                .iter()
                .map(|(source, cidrs)| format!("{} ({source})", listed(cidrs.iter().copied())))
                .collect();
            return Err(format!(
                "sources contradict each other about the blocks of {}: {}",
                self.name,
                said.join("; ")
            ));
        }
        for (source, cidrs) in sources.iter().filter(|(s, _)| s.rank > rank) {
            if *cidrs != first {
                let by: BTreeSet<&str> = top.iter().map(|(s, _)| s.place.as_str()).collect();
                let text = format!(
                    "{source} says {} for {}; {} counts ({})",
                    listed(cidrs.iter().copied()),
                    self.name,
                    listed(first.iter().copied()),
                    by.into_iter().take(3).collect::<Vec<_>>().join("; ")
                );
                // A source of less weight that is within what was found says nothing against it.
                let within = cidrs.iter().all(|c| first.iter().any(|f| f.covers(*c)));
                notes.push(if within {
                    Note::info(text)
                } else {
                    Note::warning(text)
                });
            }
        }
        // Each block once, by the first source that has it.
        let mut seen = BTreeSet::new();
        let of_rank = found.iter().filter(|f| f.from.rank == rank);
        Ok(of_rank
            .filter(|f| seen.insert(f.cidr))
            .map(|f| (*f).clone())
            .collect())
    }

    fn hold_against_evidence(
        &self,
        chosen: &[Found],
        conflict: bool,
        notes: &mut Vec<Note>,
        missing: &mut Vec<Missing>,
    ) {
        let outside: Vec<&(Cidr, String)> = self
            .evidence
            .iter()
            .filter(|(block, _)| !chosen.iter().any(|f| f.cidr.covers(*block)))
            .collect();
        let Some((block, holder)) = outside.first() else {
            return;
        };
        let all = if outside.len() == 1 {
            format!("{block} of {holder} is")
        } else {
            format!(
                "{} blocks, among them {block} of {holder}, are",
                outside.len()
            )
        };
        let found = if chosen.is_empty() {
            "none was found".to_owned()
        } else {
            listed(chosen.iter().map(|f| f.cidr))
        };
        let text = format!("{all} outside of the blocks of {}: {found}", self.name);
        if self.given.is_empty() {
            // One reason for a flag is enough.
            if !conflict {
                missing.push(Missing {
                    flag: self.flag,
                    why: text,
                });
            }
        } else {
            notes.push(Note::warning(text));
        }
    }
}

/// The part of a place that is the same for all objects of one kind, so that pools add up and other sources do not. Also
/// of nodes and pods, which say the same each for itself and must agree.
fn group(place: &str) -> String {
    for kind in ["IPPool ", "CiliumPodIPPool ", "ServiceCIDR "] {
        if place.starts_with(kind) {
            return kind.to_owned();
        }
    }
    place.to_owned()
}

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
