//! Which network plugin runs, by what it leaves in the API. PURE.

use std::fmt;

use serde::Serialize;

use super::aws::AwsVpc;
use super::calico::{Calico, Ipam};
use super::cilium::Cilium;
use super::flannel::Flannel;
use super::ovn::Ovn;
use super::proxy::{self, Proxy};
use crate::kube::discover::facts::{Facts, text};
use crate::kube::discover::found::{Claims, Note};
use crate::kube::discover::query::Query;

/// A network plugin with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "plugin", rename_all = "kebab-case")]
pub enum Cni {
    /// Calico, as network plugin or for policies alone.
    Calico(Calico),
    /// Cilium.
    Cilium(Cilium),
    /// flannel, also as a part of k3s or Canal.
    Flannel(Flannel),
    /// OVN-Kubernetes.
    OvnKubernetes(Ovn),
    /// Amazon's VPC CNI.
    AwsVpc(AwsVpc),
    /// One that Subsea knows by name alone.
    Other {
        /// How it is called.
        name: &'static str,
    },
}

impl fmt::Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calico(it) => it.fmt(f),
            Self::Cilium(it) => it.fmt(f),
            Self::Flannel(it) => it.fmt(f),
            Self::OvnKubernetes(it) => it.fmt(f),
            Self::AwsVpc(_) => f.write_str("AWS VPC CNI"),
            Self::Other { name } => f.write_str(name),
        }
    }
}

impl Cni {
    /// Whether it gives pods their addresses, by blocks of its own or by those of the nodes.
    pub fn gives_addresses(&self) -> bool {
        match self {
            Self::Calico(it) => it.ipam != Ipam::Elsewhere,
            Self::Cilium(it) => it.chained.is_none(),
            Self::Flannel(_) | Self::OvnKubernetes(_) | Self::AwsVpc(_) | Self::Other { .. } => {
                true
            }
        }
    }

    /// Whether pods' addresses come out of `Node.spec.podCIDRs`; unknown for plugins that Subsea does not know.
    pub fn uses_node_blocks(&self) -> Option<bool> {
        match self {
            Self::Calico(it) => Some(it.ipam == Ipam::HostLocal),
            Self::Cilium(it) => Some(it.ipam == "kubernetes"),
            Self::Flannel(_) => Some(true),
            Self::OvnKubernetes(_) | Self::AwsVpc(_) => Some(false),
            Self::Other { .. } => None,
        }
    }

    /// Its name and where that was found, if it does kube-proxy's work.
    pub(super) fn replaces_proxy(&self) -> Option<(&'static str, String)> {
        match self {
            Self::Calico(it) => it.replaces_proxy().map(|from| ("Calico", from)),
            Self::Cilium(it) => it.replaces_proxy().map(|from| ("Cilium", from)),
            Self::OvnKubernetes(_) => Some(("OVN-Kubernetes", "its own load balancers".to_owned())),
            Self::Flannel(_) | Self::AwsVpc(_) | Self::Other { .. } => None,
        }
    }
}

/// Plugins without a file of their own here: how their DaemonSet is called.
const OTHERS: [(&str, &str); 7] = [
    ("kindnet", "kindnet"),
    ("antrea-agent", "Antrea"),
    ("kube-router", "kube-router"),
    ("weave-net", "Weave Net"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("anetd", "GKE Dataplane V2"),
    ("azure-cns", "Azure CNI"),
];

/// Which plugins run, the one that gives pods their addresses first, and the service proxy.
pub fn detect(facts: &Facts) -> (Vec<Cni>, Proxy) {
    let plugins = plugins(facts);
    let (proxy, _) = proxy::detect(facts, &plugins);
    (plugins, proxy)
}

fn plugins(facts: &Facts) -> Vec<Cni> {
    let mut all: Vec<Cni> = [
        Ovn::detect(facts).map(Cni::OvnKubernetes),
        AwsVpc::detect(facts).map(Cni::AwsVpc),
        Cilium::detect(facts).map(Cni::Cilium),
        Flannel::detect(facts).map(Cni::Flannel),
        Calico::detect(facts).map(Cni::Calico),
    ]
    .into_iter()
    .flatten()
    .collect();
    for object in facts.objects(Query::DaemonSets) {
        let name = text(object, "/metadata/name").unwrap_or_default();
        if let Some((_, known)) = OTHERS.iter().find(|(set, _)| *set == name) {
            all.push(Cni::Other { name: known });
        }
    }
    // Calico beside flannel or AWS is there for policies, whatever pools are left over.
    if let Some(first) = all.iter().position(Cni::gives_addresses) {
        let main = all.remove(first);
        all.insert(0, main);
    }
    all
}

/// What plugins and proxy say about blocks.
pub(crate) fn claims(facts: &Facts, plugins: &[Cni]) -> Claims {
    let (_, mut claims) = proxy::detect(facts, plugins);
    for plugin in plugins {
        claims.extend(match plugin {
            Cni::Calico(it) => it.claims(),
            Cni::Cilium(it) => it.claims(facts),
            Cni::Flannel(it) => it.claims(),
            Cni::OvnKubernetes(_) => super::ovn::claims(facts),
            Cni::AwsVpc(it) => it.claims(),
            Cni::Other { .. } => Claims::default(),
        });
    }
    let givers: Vec<String> = plugins
        .iter()
        .filter(|p| p.gives_addresses())
        .map(Cni::to_string)
        .collect();
    if givers.len() > 1 {
        claims.notes.push(Note::warning(format!(
            "more than one network plugin seems to give addresses: {}; what is left over of an earlier one may mislead",
            givers.join(", ")
        )));
    }
    claims
}
