//! flannel, by itself, in Canal and in k3s. PURE.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Severity, VXLAN_PORT};
use crate::kube::discover::facts::{Facts, short, text, yaml};
use crate::kube::discover::found::{Claims, Note, Rank};
use crate::kube::discover::query::Query;

/// flannel as it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flannel {
    /// `vxlan`, `host-gw`, `wireguard` and others, where it is known.
    pub backend: Option<String>,
    /// The backend's UDP port, where it is set.
    pub port: Option<u64>,
    /// The networks as they are written, IPv4 and IPv6.
    networks: Vec<(&'static str, String)>,
    from: String,
    broken: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NetConf {
    #[serde(rename = "Network")]
    network: Option<String>,
    #[serde(rename = "IPv6Network")]
    ipv6_network: Option<String>,
    #[serde(rename = "Backend")]
    backend: Backend,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Backend {
    #[serde(rename = "Type")]
    kind: Option<String>,
    #[serde(rename = "Port")]
    port: Option<u64>,
    #[serde(rename = "ListenPort")]
    listen_port: Option<u64>,
}

const DAEMON_SETS: [&str; 9] = [
    "kube-flannel-ds",
    "kube-flannel",
    "kube-flannel-ds-amd64",
    "kube-flannel-ds-arm64",
    "kube-flannel-ds-arm",
    "kube-flannel-ds-ppc64le",
    "kube-flannel-ds-s390x",
    "canal",
    "rke2-canal",
];
const BACKEND: &str = "/metadata/annotations/flannel.alpha.coreos.com~1backend-type";

impl Flannel {
    pub(super) fn detect(facts: &Facts) -> Option<Self> {
        let query = [Query::Flannel, Query::FlannelOld, Query::Canal]
            .into_iter()
            .find(|q| facts.entry(*q, "net-conf.json").is_some());
        // k3s has flannel inside, without a DaemonSet; its nodes have the annotations of both.
        let inside = facts.objects(Query::Nodes).iter().find_map(|node| {
            text(node, "/metadata/annotations/k3s.io~1node-args")?;
            text(node, BACKEND)
        });
        let runs = facts.runs(&DAEMON_SETS).unwrap_or(query.is_some());
        let mut flannel = Self {
            backend: None,
            port: None,
            networks: Vec::new(),
            from: "nodes' annotation flannel.alpha.coreos.com/backend-type".to_owned(),
            broken: None,
        };
        if !runs {
            flannel.backend = Some(inside?.to_owned());
            return Some(flannel);
        }
        let Some(query) = query else {
            return Some(flannel);
        };
        flannel.from = query.to_string();
        match yaml::<NetConf>(facts.entry(query, "net-conf.json").unwrap_or_default()) {
            Ok(conf) => {
                let both = [
                    ("Network", conf.network),
                    ("IPv6Network", conf.ipv6_network),
                ];
                flannel.networks = both
                    .into_iter()
                    .filter_map(|(key, network)| Some((key, network?)))
                    .collect();
                flannel.backend = conf.backend.kind;
                flannel.port = conf.backend.port.or(conf.backend.listen_port);
            }
            Err(error) => flannel.broken = Some(short(&error)),
        }
        Some(flannel)
    }

    /// flannel itself takes the nodes' blocks; its network must be the cluster's, but is written by hand.
    pub(super) fn claims(&self) -> Claims {
        let mut claims = Claims::default();
        for (key, network) in &self.networks {
            let place = format!("{}, net-conf.json, {key}", self.from);
            claims.pods(Rank::Record, &place, network);
        }
        if let Some(error) = &self.broken {
            claims.notes.push(Note::warning(format!(
                "{}, net-conf.json could not be understood: {error}",
                self.from
            )));
        }
        claims
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let backend = self.backend.as_deref().unwrap_or("unknown");
        let mut all = vec![Finding::fine(
            "flannel",
            format!("flannel, backend {backend} ({})", self.from),
            "its masquerade is in netfilter, where Subsea has kept the source before",
        )];
        if self.port == Some(VXLAN_PORT) {
            all.push(Finding::bad(
                Severity::Blocks,
                "flannel-port",
                format!(
                    "flannel's backend has UDP port {VXLAN_PORT} ({})",
                    self.from
                ),
                "the agents' VXLAN has that port",
                "run the agents with `--vxlan-port` and another one",
            ));
        }
        if backend == "wireguard" && self.port.is_none_or(|p| p == 51820) {
            all.push(Finding::bad(
                Severity::Warns,
                "flannel-wireguard-port",
                format!("flannel's WireGuard has UDP port 51820 ({})", self.from),
                "a gateway listens there by default",
                "run the gateways with `--listen-port` and another one",
            ));
        }
        all
    }
}

impl fmt::Display for Flannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backend {
            Some(backend) => write!(f, "flannel ({})", short(backend)),
            None => f.write_str("flannel"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::discover::facts::fixture::{config_map, facts};

    const SET: &str = r#"{"metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"}}"#;

    fn with(conf: &str) -> Option<Flannel> {
        let map = config_map("net-conf.json", conf);
        Flannel::detect(&facts(&[
            (Query::Flannel, map.as_str()),
            (Query::DaemonSets, SET),
        ]))
    }

    #[test]
    fn its_networks_are_read_in_both_families() {
        let found = with(
            "{\n  \"Network\": \"10.244.0.0/16\",\n  \"EnableIPv6\": true,\n  \"IPv6Network\": \"fd00:10:244::/56\",\n  \
             \"EnableNFTables\": false,\n  \"Backend\": {\n    \"Type\": \"vxlan\"\n  }\n}\n",
        )
        .unwrap();
        assert_eq!(found.to_string(), "flannel (vxlan)");
        let blocks: Vec<String> = found
            .claims()
            .pod
            .iter()
            .map(|f| format!("{} {}", f.cidr, f.from))
            .collect();
        assert_eq!(
            blocks,
            [
                "10.244.0.0/16 ConfigMap kube-flannel/kube-flannel-cfg, net-conf.json, Network",
                "fd00:10:244::/56 ConfigMap kube-flannel/kube-flannel-cfg, net-conf.json, IPv6Network",
            ]
        );
        assert!(
            found
                .findings()
                .iter()
                .all(|f| f.severity == Severity::Fine)
        );
    }

    #[test]
    fn ports_that_meet_ours_are_named() {
        let clash =
            with(r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Port": 4851}}"#);
        let worst = |f: Option<Flannel>| f.unwrap().findings().iter().map(|f| f.severity).max();
        assert_eq!(worst(clash), Some(Severity::Blocks));
        let both = with(r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard"}}"#);
        assert_eq!(worst(both), Some(Severity::Warns));
        let other = with(
            r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard", "ListenPort": 51830}}"#,
        );
        assert_eq!(worst(other), Some(Severity::Fine));
    }

    #[test]
    fn what_is_left_over_does_not_count_and_rubbish_is_said() {
        let map = config_map("net-conf.json", r#"{"Network": "10.1.0.0/16"}"#);
        let left = facts(&[
            (Query::Flannel, map.as_str()),
            (Query::DaemonSets, r#"{"metadata": {"name": "cilium"}}"#),
        ]);
        assert_eq!(Flannel::detect(&left), None);
        let broken = with("{ not json").unwrap();
        assert_eq!(broken.claims().notes.len(), 1);
        let k3s = facts(&[
            (
                Query::Nodes,
                include_str!("../discover/fixtures/nodes-k3s.yaml"),
            ),
            (Query::DaemonSets, ""),
        ]);
        assert_eq!(
            Flannel::detect(&k3s).unwrap().to_string(),
            "flannel (vxlan)"
        );
    }
}
