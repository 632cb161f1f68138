//! What is read from an API server. PURE.

use std::fmt;

/// One thing that is read. The order is that of the table below, and of what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Query {
    /// All nodes.
    Nodes,
    /// The blocks of ClusterIPs, since Kubernetes 1.33.
    ServiceCidrs,
    /// The same in Kubernetes 1.31 and 1.32, where they are switched on.
    ServiceCidrsBeta,
    /// The service of the API server, whose address is in the block of services.
    KubernetesService,
    /// What `kubeadm init` was told.
    Kubeadm,
    /// The control plane's static pods, and kube-proxy where it is one.
    ControlPlane,
    /// kube-proxy's configuration as kubeadm writes it.
    KubeProxy,
    /// The same on EKS.
    KubeProxyEks,
    /// Which plugins run.
    DaemonSets,
    /// Calico's pools by its own API server.
    CalicoPools,
    /// The same as they are stored.
    CalicoPoolsStored,
    /// Calico's settings by its own API server.
    Felix,
    /// The same as they are stored.
    FelixStored,
    /// Calico as its operator installs it.
    CalicoInstallation,
    /// Calico as its manifest installs it.
    CalicoConfig,
    /// Whether a node may take an address out of another one's block.
    CalicoIpam,
    /// Cilium's settings.
    Cilium,
    /// The same where Cilium has a namespace of its own.
    CiliumOwnNamespace,
    /// What Cilium's ip-masq-agent leaves alone.
    CiliumMasquerade,
    /// Cilium's pools in the mode `multi-pool`.
    CiliumPools,
    /// The same as newer versions serve them.
    CiliumPoolsV2,
    /// What Cilium gave to each node.
    CiliumNodes,
    /// flannel's settings.
    Flannel,
    /// The same as older manifests install them.
    FlannelOld,
    /// flannel's settings under Canal.
    Canal,
    /// OpenShift's network as it is.
    OpenShiftNetwork,
    /// OpenShift's network as it was asked for.
    OpenShiftOperator,
    /// OVN-Kubernetes' settings.
    Ovn,
    /// The same on OpenShift.
    OvnOpenShift,
    /// Subnets of pods apart from the nodes', on AWS.
    EniConfigs,
}

/// Where a [`Query`] is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// API group; empty for the core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind of the objects.
    pub kind: &'static str,
    /// The kind in a path.
    pub plural: &'static str,
    /// In this namespace only.
    pub namespace: Option<&'static str>,
    /// This object only.
    pub name: Option<&'static str>,
    /// Objects with these labels only.
    pub labels: Option<&'static str>,
}

const KUBE_SYSTEM: &str = "kube-system";

impl Query {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::Nodes,
        Self::ServiceCidrs,
        Self::ServiceCidrsBeta,
        Self::KubernetesService,
        Self::Kubeadm,
        Self::ControlPlane,
        Self::KubeProxy,
        Self::KubeProxyEks,
        Self::DaemonSets,
        Self::CalicoPools,
        Self::CalicoPoolsStored,
        Self::Felix,
        Self::FelixStored,
        Self::CalicoInstallation,
        Self::CalicoConfig,
        Self::CalicoIpam,
        Self::Cilium,
        Self::CiliumOwnNamespace,
        Self::CiliumMasquerade,
        Self::CiliumPools,
        Self::CiliumPoolsV2,
        Self::CiliumNodes,
        Self::Flannel,
        Self::FlannelOld,
        Self::Canal,
        Self::OpenShiftNetwork,
        Self::OpenShiftOperator,
        Self::Ovn,
        Self::OvnOpenShift,
        Self::EniConfigs,
    ];

    /// Where it is answered.
    pub fn place(self) -> Place {
        match self {
            Self::Nodes => list("", "v1", "Node", "nodes"),
            Self::ServiceCidrs => list("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs"),
            Self::ServiceCidrsBeta => list(
                "networking.k8s.io",
                "v1beta1",
                "ServiceCIDR",
                "servicecidrs",
            ),
            Self::KubernetesService => Place {
                namespace: Some("default"),
                name: Some("kubernetes"),
                ..list("", "v1", "Service", "services")
            },
            Self::Kubeadm => config(KUBE_SYSTEM, "kubeadm-config"),
            Self::ControlPlane => Place {
                namespace: Some(KUBE_SYSTEM),
                labels: Some("component in (kube-apiserver,kube-controller-manager,kube-proxy)"),
                ..list("", "v1", "Pod", "pods")
            },
            Self::KubeProxy => config(KUBE_SYSTEM, "kube-proxy"),
            Self::KubeProxyEks => config(KUBE_SYSTEM, "kube-proxy-config"),
            Self::DaemonSets => list("apps", "v1", "DaemonSet", "daemonsets"),
            Self::CalicoPools => list("projectcalico.org", "v3", "IPPool", "ippools"),
            Self::CalicoPoolsStored => list("crd.projectcalico.org", "v1", "IPPool", "ippools"),
            Self::Felix => named(
                "default",
                list(
                    "projectcalico.org",
                    "v3",
                    "FelixConfiguration",
                    "felixconfigurations",
                ),
            ),
            Self::FelixStored => named(
                "default",
                list(
                    "crd.projectcalico.org",
                    "v1",
                    "FelixConfiguration",
                    "felixconfigurations",
                ),
            ),
            Self::CalicoInstallation => named(
                "default",
                list("operator.tigera.io", "v1", "Installation", "installations"),
            ),
            Self::CalicoConfig => config(KUBE_SYSTEM, "calico-config"),
            Self::CalicoIpam => named(
                "default",
                list("crd.projectcalico.org", "v1", "IPAMConfig", "ipamconfigs"),
            ),
            Self::Cilium => config(KUBE_SYSTEM, "cilium-config"),
            Self::CiliumOwnNamespace => config("cilium", "cilium-config"),
            Self::CiliumMasquerade => config(KUBE_SYSTEM, "ip-masq-agent"),
            Self::CiliumPools => list(
                "cilium.io",
                "v2alpha1",
                "CiliumPodIPPool",
                "ciliumpodippools",
            ),
            Self::CiliumPoolsV2 => list("cilium.io", "v2", "CiliumPodIPPool", "ciliumpodippools"),
            Self::CiliumNodes => list("cilium.io", "v2", "CiliumNode", "ciliumnodes"),
            Self::Flannel => config("kube-flannel", "kube-flannel-cfg"),
            Self::FlannelOld => config(KUBE_SYSTEM, "kube-flannel-cfg"),
            Self::Canal => config(KUBE_SYSTEM, "canal-config"),
            Self::OpenShiftNetwork => named(
                "cluster",
                list("config.openshift.io", "v1", "Network", "networks"),
            ),
            Self::OpenShiftOperator => named(
                "cluster",
                list("operator.openshift.io", "v1", "Network", "networks"),
            ),
            Self::Ovn => config("ovn-kubernetes", "ovn-config"),
            Self::OvnOpenShift => config("openshift-ovn-kubernetes", "ovnkube-config"),
            Self::EniConfigs => list(
                "crd.k8s.amazonaws.com",
                "v1alpha1",
                "ENIConfig",
                "eniconfigs",
            ),
        }
    }
}

fn list(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Place {
    Place {
        group,
        version,
        kind,
        plural,
        namespace: None,
        name: None,
        labels: None,
    }
}

fn named(name: &'static str, place: Place) -> Place {
    Place {
        name: Some(name),
        ..place
    }
}

fn config(namespace: &'static str, name: &'static str) -> Place {
    Place {
        namespace: Some(namespace),
        name: Some(name),
        ..list("", "v1", "ConfigMap", "configmaps")
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            group,
            version,
            kind,
            plural,
            namespace,
            name,
            labels: _,
        } = self;
        if let Some(name) = name {
            f.write_str(kind)?;
            if !group.is_empty() {
                write!(f, ".{group}")?;
            }
            let namespace = namespace.map(|n| format!("{n}/")).unwrap_or_default();
            return write!(f, " {namespace}{name}");
        }
        f.write_str(plural)?;
        if !group.is_empty() {
            write!(f, ".{group}/{version}")?;
        }
        match namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_holds_every_query_once_and_in_order() {
        assert!(Query::ALL.is_sorted());
        let places: Vec<String> = Query::ALL
            .iter()
            .map(|q| format!("{:?}", q.place()))
            .collect();
        for (i, place) in places.iter().enumerate() {
            assert!(!places[..i].contains(place), "{place} is read twice");
        }
    }

    #[test]
    fn places_read_as_kubectl_writes_them() {
        let text = |q: Query| q.to_string();
        assert_eq!(text(Query::Kubeadm), "ConfigMap kube-system/kubeadm-config");
        assert_eq!(
            text(Query::OpenShiftNetwork),
            "Network.config.openshift.io cluster"
        );
        assert_eq!(text(Query::ControlPlane), "pods in kube-system");
        assert_eq!(
            text(Query::CalicoPoolsStored),
            "ippools.crd.projectcalico.org/v1"
        );
    }
}
