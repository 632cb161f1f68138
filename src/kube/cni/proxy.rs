//! Which program makes ClusterIPs work, and how. PURE.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use super::finding::{Finding, Severity, Surroundings};
use super::plugin::Cni;
use crate::kube::discover::facts::{Facts, short, text, yaml};
use crate::kube::discover::found::{Claims, Note, Rank};
use crate::kube::discover::query::Query;

/// How ClusterIPs are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyMode {
    /// kube-proxy with iptables, its default.
    Iptables,
    /// kube-proxy with nftables.
    Nftables,
    /// kube-proxy with IPVS.
    Ipvs,
    /// The network plugin does it.
    Replaced(&'static str),
    /// Nothing says so.
    Unknown,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables => f.pad("kube-proxy, iptables"),
            Self::Nftables => f.pad("kube-proxy, nftables"),
            Self::Ipvs => f.pad("kube-proxy, IPVS"),
            Self::Replaced(by) => f.pad(&format!("replaced by {by}")),
            Self::Unknown => f.pad("unknown"),
        }
    }
}

impl Serialize for ProxyMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The service proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// How it works.
    pub mode: ProxyMode,
    /// Where that was found.
    pub from: Option<String>,
    /// The bit of the mark by which it knows what to masquerade.
    pub masquerade_bit: u32,
}

/// kube-proxy's own default.
const MASQUERADE_BIT: u32 = 14;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    mode: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    iptables: Masquerading,
    nftables: Masquerading,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Masquerading {
    masquerade_bit: Option<u32>,
}

fn mode(text: &str) -> Option<ProxyMode> {
    match text {
        "" | "iptables" => Some(ProxyMode::Iptables),
        "nftables" => Some(ProxyMode::Nftables),
        "ipvs" => Some(ProxyMode::Ipvs),
        _ => None,
    }
}

/// kube-proxy, or what stands in for it, and what its configuration says about blocks.
pub(super) fn detect(facts: &Facts, plugins: &[Cni]) -> (Proxy, Claims) {
    let mut claims = Claims::default();
    let mut proxy = Proxy {
        mode: ProxyMode::Unknown,
        from: None,
        masquerade_bit: MASQUERADE_BIT,
    };
    for (query, key) in [
        (Query::KubeProxy, "config.conf"),
        (Query::KubeProxyEks, "config"),
    ] {
        let Some(text) = facts.entry(query, key) else {
            continue;
        };
        match yaml::<Configuration>(text) {
            Ok(found) => {
                let list = found.cluster_cidr.as_deref().unwrap_or_default();
                claims.pods(Rank::Record, &format!("{query}, clusterCIDR"), list);
                let named = found.mode.unwrap_or_default();
                match mode(&named) {
                    Some(mode) => {
                        let bits = match mode {
                            ProxyMode::Nftables => found.nftables.masquerade_bit,
                            ProxyMode::Iptables
                            | ProxyMode::Ipvs
                            | ProxyMode::Replaced(_)
                            | ProxyMode::Unknown => found.iptables.masquerade_bit,
                        };
                        proxy.mode = mode;
                        proxy.from = Some(format!("{query}, mode"));
                        proxy.masquerade_bit = bits.unwrap_or(MASQUERADE_BIT);
                    }
                    None => claims.notes.push(Note::warning(format!(
                        "{query}: kube-proxy's mode `{}` is not known",
                        short(&named)
                    ))),
                }
            }
            Err(error) => claims.notes.push(Note::warning(format!(
                "{query} could not be understood: {error}"
            ))),
        }
    }
    if proxy.mode == ProxyMode::Unknown {
        command_lines(facts, &mut proxy);
    }
    // A ConfigMap may outlive kube-proxy; one that runs beside a plugin's own proxy is another matter.
    let by = plugins.iter().find_map(Cni::replaces_proxy);
    if let Some((name, from)) = by {
        if facts.runs(&["kube-proxy"]) == Some(true) {
            claims.notes.push(Note::info(format!(
                "{name} replaces kube-proxy, which runs all the same"
            )));
        }
        proxy.mode = ProxyMode::Replaced(name);
        proxy.from = Some(from);
    }
    (proxy, claims)
}

/// kube-proxy as a static pod, or inside k3s.
fn command_lines(facts: &Facts, proxy: &mut Proxy) {
    use crate::kube::discover::control_plane::{command_line, flag};
    for pod in facts.objects(Query::ControlPlane) {
        if text(pod, "/metadata/labels/component") != Some("kube-proxy") {
            continue;
        }
        let words = command_line(pod);
        let name = text(pod, "/metadata/name").unwrap_or("?");
        // Its settings may be in a file on the node, which is not seen from here.
        let wanted = flag(&words, "proxy-mode");
        if flag(&words, "config").is_some() && wanted.is_none() {
            continue;
        }
        if let Some(mode) = mode(wanted.unwrap_or_default()) {
            proxy.mode = mode;
            proxy.from = Some(format!("pod kube-system/{name}, --proxy-mode"));
            return;
        }
    }
    for node in facts.objects(Query::Nodes) {
        let Some(words) = text(node, "/metadata/annotations/k3s.io~1node-args")
            .and_then(|t| serde_json::from_str::<Vec<String>>(t).ok())
        else {
            continue;
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words.contains(&"--disable-kube-proxy") {
            return;
        }
        let wanted = words.iter().find_map(|w| {
            w.trim_start_matches("--kube-proxy-arg=")
                .strip_prefix("proxy-mode=")
        });
        if let Some(mode) = mode(wanted.unwrap_or_default()) {
            proxy.mode = mode;
            let name = text(node, "/metadata/name").unwrap_or("?");
            proxy.from = Some(format!("node {name}, k3s.io/node-args"));
            if wanted.is_some() {
                return;
            }
        }
    }
}

impl Proxy {
    pub(super) fn findings(&self, around: Surroundings<'_>) -> Vec<Finding> {
        let mut all = Vec::new();
        let from = self.from.as_deref().unwrap_or("nowhere");
        let found = format!("{} ({from})", self.mode);
        match self.mode {
            ProxyMode::Iptables => all.push(Finding::fine(
                "proxy-iptables",
                found,
                "translates in netfilter on the node by which a packet comes in; Subsea keeps the source before it is masqueraded",
            )),
            ProxyMode::Nftables => all.push(Finding::fine(
                "proxy-nftables",
                found,
                "translates in netfilter on the node by which a packet comes in; Subsea keeps the source before it is masqueraded",
            )),
            ProxyMode::Ipvs => all.push(Finding::bad(
                Severity::Warns,
                "proxy-ipvs",
                found,
                "IPVS takes packets to ClusterIPs at the node's input, on another way through the kernel than iptables and nftables \
                 mode; with Subsea this was not tested",
                "try a ClusterIP from another cluster; where it does not answer, set kube-proxy's mode to nftables or iptables",
            )),
            ProxyMode::Replaced(_) => {}
            ProxyMode::Unknown => all.push(Finding::bad(
                Severity::Warns,
                "proxy-unknown",
                "kube-proxy's mode was not found",
                "ClusterIPs reached from other clusters are translated by it",
                "if this cluster has no kube-proxy, see `docs/cni.md` for what stands in for it",
            )),
        }
        let bit = 1_u32.checked_shl(self.masquerade_bit).unwrap_or(0);
        let is_kube_proxy = matches!(
            self.mode,
            ProxyMode::Iptables | ProxyMode::Nftables | ProxyMode::Ipvs
        );
        if is_kube_proxy && bit & around.marks.all() != 0 {
            all.push(Finding::bad(
                Severity::Blocks,
                "proxy-mark",
                format!(
                    "kube-proxy's masqueradeBit is {} ({from})",
                    self.masquerade_bit
                ),
                format!(
                    "that is {bit:#x} of the packet mark, which Subsea uses ({:#x})",
                    around.marks.all()
                ),
                format!("set masqueradeBit to {MASQUERADE_BIT}, its default"),
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::discover::facts::fixture::{config_map, facts};

    fn config(mode: &str, more: &str) -> String {
        let text = include_str!("fixtures/kube-proxy.yaml")
            .replace("mode: \"\"", &format!("mode: \"{mode}\""));
        config_map("config.conf", &(text + more))
    }

    #[test]
    fn modes_are_read_from_its_configuration() {
        for (written, mode) in [
            ("", ProxyMode::Iptables),
            ("iptables", ProxyMode::Iptables),
            ("nftables", ProxyMode::Nftables),
            ("ipvs", ProxyMode::Ipvs),
            ("userspace", ProxyMode::Unknown),
        ] {
            let (proxy, claims) = detect(&facts(&[(Query::KubeProxy, &config(written, ""))]), &[]);
            assert_eq!(proxy.mode, mode, "{written}");
            assert_eq!(proxy.masquerade_bit, 14);
            assert_eq!(claims.pod.len(), 1);
            assert_eq!(claims.pod[0].cidr.to_string(), "10.244.0.0/16");
            assert_eq!(claims.notes.len(), usize::from(mode == ProxyMode::Unknown));
        }
    }

    #[test]
    fn a_masquerade_bit_among_ours_blocks() {
        let text = config("", "").replace("masqueradeBit: null", "masqueradeBit: 5");
        let (proxy, _) = detect(&facts(&[(Query::KubeProxy, &text)]), &[]);
        assert_eq!(proxy.masquerade_bit, 5);
        let found = proxy.findings(Surroundings::default());
        let bad: Vec<_> = found
            .iter()
            .filter(|f| f.severity == Severity::Blocks)
            .collect();
        assert_eq!(bad.len(), 1);
        assert!(bad[0].why.contains("0x20"), "{bad:?}");
        let other = Proxy {
            masquerade_bit: 40,
            ..proxy
        };
        assert!(
            other
                .findings(Surroundings::default())
                .iter()
                .all(|f| f.severity == Severity::Fine)
        );
    }

    #[test]
    fn a_static_pod_and_k3s_say_it_on_their_command_line() {
        let pod = r#"{"metadata": {"name": "kube-proxy-a", "labels": {"component": "kube-proxy"}}, "spec": {"containers": [
            {"command": ["/bin/sh", "-c", "exec kube-proxy --cluster-cidr=10.4.0.0/14 --proxy-mode=iptables --v=2 1>>/var/log/kube-proxy.log"]}]}}"#;
        let (proxy, _) = detect(&facts(&[(Query::ControlPlane, pod)]), &[]);
        assert_eq!(proxy.mode, ProxyMode::Iptables);
        assert_eq!(
            proxy.from.as_deref(),
            Some("pod kube-system/kube-proxy-a, --proxy-mode")
        );

        let node = |args: &str| {
            serde_json::json!({"metadata": {"name": "n", "annotations": {"k3s.io/node-args": args}}}).to_string()
        };
        for (args, mode) in [
            (r#"["server"]"#, ProxyMode::Iptables),
            (
                r#"["server","--kube-proxy-arg","proxy-mode=ipvs"]"#,
                ProxyMode::Ipvs,
            ),
            (
                r#"["server","--kube-proxy-arg=proxy-mode=nftables"]"#,
                ProxyMode::Nftables,
            ),
            (r#"["server","--disable-kube-proxy"]"#, ProxyMode::Unknown),
        ] {
            let (proxy, _) = detect(&facts(&[(Query::Nodes, &node(args))]), &[]);
            assert_eq!(proxy.mode, mode, "{args}");
        }
    }
}
