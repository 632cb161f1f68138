//! OVN-Kubernetes, upstream and as OpenShift sets it up. PURE.

use std::fmt;

use serde::Serialize;

use super::finding::{Finding, Severity};
use crate::kube::discover::facts::{Facts, is_on, text, texts};
use crate::kube::discover::found::{Claims, Note, Rank};
use crate::kube::discover::query::Query;

/// Which way pods' packets leave a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// Out of Open vSwitch, past the host's routes. The default.
    Shared,
    /// By the host's routes.
    Local,
}

/// OVN-Kubernetes as it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ovn {
    /// Which way pods' packets leave a node, where that is known.
    pub gateway: Option<GatewayMode>,
    /// Whether the host forwards between all its devices; OpenShift only.
    pub forwards: Option<bool>,
    /// Whether OpenShift's network operator looks after it.
    pub openshift: bool,
    from: String,
}

const DAEMON_SETS: [&str; 4] = [
    "ovnkube-node",
    "ovnkube-single-node-zone",
    "ovnkube-node-dpu",
    "ovnkube-local",
];
const GATEWAY: &str = "/spec/defaultNetwork/ovnKubernetesConfig/gatewayConfig";

impl Ovn {
    pub(super) fn detect(facts: &Facts) -> Option<Self> {
        let network = facts.object(Query::OpenShiftNetwork);
        let by_type =
            network.and_then(|o| text(o, "/status/networkType").or(text(o, "/spec/networkType")));
        let openshift = by_type == Some("OVNKubernetes");
        let map = facts.object(Query::Ovn).is_some() || facts.object(Query::OvnOpenShift).is_some();
        if !openshift && !facts.runs(&DAEMON_SETS).unwrap_or(map) {
            return None;
        }
        if let Some(operator) = facts.object(Query::OpenShiftOperator) {
            let via_host = is_on(operator, &format!("{GATEWAY}/routingViaHost")).unwrap_or(false);
            let forwarding = text(operator, &format!("{GATEWAY}/ipForwarding"));
            return Some(Self {
                gateway: Some(if via_host {
                    GatewayMode::Local
                } else {
                    GatewayMode::Shared
                }),
                forwards: Some(forwarding == Some("Global")),
                openshift: true,
                from: format!("{}, gatewayConfig", Query::OpenShiftOperator),
            });
        }
        let variable = facts.variable(&DAEMON_SETS, "OVN_GATEWAY_MODE");
        let gateway = match variable {
            Some("local") => Some(GatewayMode::Local),
            Some("shared") => Some(GatewayMode::Shared),
            Some(_) | None => None,
        };
        let failed = facts.failure(Query::OpenShiftOperator).is_some();
        Some(Self {
            gateway,
            forwards: None,
            openshift: openshift || failed,
            from: "DaemonSet ovnkube-node, OVN_GATEWAY_MODE".to_owned(),
        })
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        const WHY: &str = "in shared gateway mode pods' packets to outside the cluster leave Open vSwitch by the external bridge, and never come to \
                           the host's routes, where Subsea's are";
        let mut all = Vec::new();
        let instead = if self.openshift {
            "set `routingViaHost: true` (and `ipForwarding: Global`) in \
             spec.defaultNetwork.ovnKubernetesConfig.gatewayConfig of Network.operator.openshift.io cluster"
        } else {
            "run OVN-Kubernetes with gateway mode `local`"
        };
        match self.gateway {
            Some(GatewayMode::Shared) => all.push(Finding::bad(
                Severity::Blocks,
                "ovn-gateway-mode",
                format!("shared gateway mode ({})", self.from),
                WHY,
                instead,
            )),
            None => all.push(Finding::bad(
                Severity::Warns,
                "ovn-gateway-mode",
                "the gateway mode of OVN-Kubernetes was not found",
                WHY,
                instead,
            )),
            Some(GatewayMode::Local) => all.push(Finding::fine(
                "ovn-gateway-mode",
                format!("local gateway mode ({})", self.from),
                "pods' packets come to the host's routes",
            )),
        }
        if self.forwards == Some(false) {
            all.push(Finding::bad(
                Severity::Warns,
                "ovn-forwarding",
                format!("ipForwarding is not Global ({})", self.from),
                "the host then forwards between OVN's own devices alone, and Subsea's are none of them",
                "set `ipForwarding: Global` beside `routingViaHost: true`",
            ));
        }
        all.push(Finding::bad(
            Severity::Warns,
            "ovn-cluster-ip",
            "OVN-Kubernetes translates ClusterIPs itself",
            "whether a ClusterIP answers to what comes out of a tunnel was not tested; pods' addresses do not depend on it",
            "try one from another cluster",
        ));
        all
    }
}

/// The blocks of OpenShift's objects and of OVN-Kubernetes' own ConfigMaps.
pub(super) fn claims(facts: &Facts) -> Claims {
    let mut claims = Claims::default();
    if let Some(network) = facts.object(Query::OpenShiftNetwork) {
        // What is in force is in the status; the specification may be ahead of it.
        let part = if network.pointer("/status/clusterNetwork").is_some() {
            "status"
        } else {
            "spec"
        };
        let blocks = network
            .pointer(&format!("/{part}/clusterNetwork"))
            .and_then(serde_json::Value::as_array);
        for block in blocks.into_iter().flatten() {
            let place = format!("{}, {part}.clusterNetwork", Query::OpenShiftNetwork);
            claims.pods(
                Rank::Allocator,
                &place,
                text(block, "/cidr").unwrap_or_default(),
            );
        }
        let services = texts(network, &format!("/{part}/serviceNetwork")).join(",");
        let place = format!("{}, {part}.serviceNetwork", Query::OpenShiftNetwork);
        claims.services(Rank::Setting, &place, &services);
    }
    for query in [Query::Ovn, Query::OvnOpenShift] {
        if let Some(list) = facts.entry(query, "net_cidr") {
            claims.pods(
                Rank::Allocator,
                &format!("{query}, net_cidr"),
                &without_host_lengths(list),
            );
        }
        if let Some(list) = facts.entry(query, "svc_cidr") {
            claims.services(Rank::Record, &format!("{query}, svc_cidr"), list);
        }
        let Some(ini) = facts.entry(query, "ovnkube.conf") else {
            continue;
        };
        if ini.len() > 64 << 10 {
            claims
                .notes
                .push(Note::warning(format!("{query}, ovnkube.conf is too long")));
            continue;
        }
        for line in ini.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            let place = format!("{query}, ovnkube.conf, {}", key.trim());
            match key.trim() {
                "cluster-subnets" => {
                    claims.pods(Rank::Allocator, &place, &without_host_lengths(value));
                }
                "service-cidrs" => claims.services(Rank::Record, &place, value),
                _ => {}
            }
        }
    }
    claims
}

/// OVN-Kubernetes writes the length of a node's block behind the cluster's: `10.128.0.0/14/23`.
fn without_host_lengths(list: &str) -> String {
    let one = |word: &str| {
        let mut parts = word.trim().splitn(3, '/');
        match (parts.next(), parts.next()) {
            (Some(address), Some(length)) => format!("{address}/{length}"),
            _ => word.to_owned(),
        }
    };
    if list.len() > 8 << 10 {
        return list.to_owned();
    }
    list.split(',').map(one).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Ovn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.gateway {
            Some(GatewayMode::Shared) => "shared gateway mode",
            Some(GatewayMode::Local) => "local gateway mode",
            None => "gateway mode unknown",
        };
        write!(f, "OVN-Kubernetes ({mode})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::discover::facts::fixture::{config_map, facts};

    const NETWORK: &str = "
apiVersion: config.openshift.io/v1
kind: Network
metadata: {name: cluster}
spec:
  clusterNetwork: [{cidr: 10.128.0.0/13, hostPrefix: 23}]
  serviceNetwork: [172.30.0.0/16]
  networkType: OVNKubernetes
status:
  clusterNetwork: [{cidr: 10.128.0.0/14, hostPrefix: 23}]
  clusterNetworkMTU: 8901
  networkType: OVNKubernetes
  serviceNetwork: [172.30.0.0/16]
";
    const OPERATOR: &str = "
apiVersion: operator.openshift.io/v1
kind: Network
metadata: {name: cluster}
spec:
  defaultNetwork:
    ovnKubernetesConfig:
      egressIPConfig: {}
      gatewayConfig: {ipForwarding: Restricted, ipv4: {}, ipv6: {}, routingViaHost: false}
      genevePort: 6081
      ipsecConfig: {mode: Disabled}
      mtu: 8901
    type: OVNKubernetes
";

    #[test]
    fn openshift_says_it_in_its_status() {
        let conf = "[default]\nmtu=\"8901\"\ncluster-subnets=\"10.128.0.0/14/23\"\nencap-port=\"6081\"\n\n[kubernetes]\n\
                    service-cidrs=\"172.30.0.0/16\"\napiserver=\"https://api-int.c.example:6443\"\n";
        let map = config_map("ovnkube.conf", conf);
        let facts = facts(&[
            (Query::OpenShiftNetwork, NETWORK),
            (Query::OpenShiftOperator, OPERATOR),
            (Query::OvnOpenShift, map.as_str()),
        ]);
        let ovn = Ovn::detect(&facts).unwrap();
        assert_eq!(ovn.to_string(), "OVN-Kubernetes (shared gateway mode)");
        let claims = claims(&facts);
        let blocks: Vec<String> = claims
            .pod
            .iter()
            .chain(&claims.service)
            .map(|f| format!("{} {}", f.cidr, f.from))
            .collect();
        assert_eq!(
            blocks,
            [
                "10.128.0.0/14 Network.config.openshift.io cluster, status.clusterNetwork",
                "10.128.0.0/14 ConfigMap openshift-ovn-kubernetes/ovnkube-config, ovnkube.conf, cluster-subnets",
                "172.30.0.0/16 Network.config.openshift.io cluster, status.serviceNetwork",
                "172.30.0.0/16 ConfigMap openshift-ovn-kubernetes/ovnkube-config, ovnkube.conf, service-cidrs",
            ]
        );
        assert!(claims.notes.is_empty());
        let ids: Vec<_> = ovn.findings().iter().map(|f| (f.id, f.severity)).collect();
        assert_eq!(
            ids,
            [
                ("ovn-gateway-mode", Severity::Blocks),
                ("ovn-forwarding", Severity::Warns),
                ("ovn-cluster-ip", Severity::Warns),
            ]
        );
    }

    #[test]
    fn upstream_says_it_in_a_config_map_and_a_variable() {
        let map = r#"{"metadata": {"name": "ovn-config"}, "data": {"net_cidr": "10.244.0.0/16/24,fd00:10:244::/48/64", "svc_cidr": "10.96.0.0/16", "k8s_apiserver": "https://192.0.2.1:6443"}}"#;
        let set = r#"{"metadata": {"name": "ovnkube-node", "namespace": "ovn-kubernetes"}, "spec": {"template": {"spec": {"containers": [
            {"name": "ovn-controller"}, {"name": "ovnkube-node", "env": [{"name": "OVN_GATEWAY_MODE", "value": "local"}]}]}}}}"#;
        let facts = facts(&[(Query::Ovn, map), (Query::DaemonSets, set)]);
        let ovn = Ovn::detect(&facts).unwrap();
        assert_eq!(ovn.gateway, Some(GatewayMode::Local));
        assert!(
            ovn.findings()
                .iter()
                .all(|f| f.severity != Severity::Blocks)
        );
        let blocks: Vec<String> = claims(&facts)
            .pod
            .iter()
            .map(|f| f.cidr.to_string())
            .collect();
        assert_eq!(blocks, ["10.244.0.0/16", "fd00:10:244::/48"]);
    }
}
