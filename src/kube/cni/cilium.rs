//! Cilium: its address pools, host routing, masquerade and kube-proxy replacement. PURE.

use std::fmt;

use serde::{Deserialize, Serialize};
use subsea_api::Cidr;

use super::finding::{Finding, Severity, Surroundings, uncovered};
use crate::kube::discover::facts::{Facts, switch, text, yaml};
use crate::kube::discover::found::{Claims, Note, Rank, listed};
use crate::kube::discover::query::Query;

/// How Cilium masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masquerade {
    /// Not at all.
    Off,
    /// By iptables.
    Iptables,
    /// In eBPF.
    Ebpf,
}

/// Cilium as it is set up. A `CiliumNodeConfig` may set single nodes up in another way, which is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of Cilium's own, on or off"
)]
pub struct Cilium {
    /// `cluster-pool`, `kubernetes`, `multi-pool`, `eni`, `azure` and others.
    pub ipam: String,
    /// Whether packets of pods go by eBPF from device to device, past netfilter.
    pub ebpf_host_routing: bool,
    /// How it masquerades.
    pub masquerade: Masquerade,
    /// Whether it does kube-proxy's work.
    pub replaces_proxy: bool,
    /// Whether ClusterIPs answer to what comes from outside the cluster.
    pub external_cluster_ip: bool,
    /// Blocks whose traffic is not masqueraded.
    pub native: Vec<Cidr>,
    /// What its ip-masq-agent leaves alone, where that is on.
    pub ip_masq_agent: Option<Vec<Cidr>>,
    /// The devices that its programs are attached to, where they are named.
    pub devices: Option<String>,
    /// Whether pods' packets are taken out of connection tracking.
    pub no_conntrack: bool,
    /// The plugin that it is chained to.
    pub chained: Option<String>,
    /// The ConfigMap.
    from: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct MasqAgent {
    #[serde(rename = "nonMasqueradeCIDRs")]
    non_masquerade: Option<Vec<String>>,
}

/// What the ip-masq-agent leaves alone when it has no configuration.
const NOT_MASQUERADED: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];

/// The bits of marks that Cilium's programs write.
const MARK_MASK: u32 = 0x0f00;

impl Cilium {
    pub(super) fn detect(facts: &Facts) -> Option<Self> {
        let query = [Query::Cilium, Query::CiliumOwnNamespace]
            .into_iter()
            .find(|q| facts.object(*q).is_some())?;
        // The ConfigMap may be left over.
        if facts.runs(&["cilium"]) == Some(false) {
            return None;
        }
        let entry = |key: &str| facts.entry(query, key).map(str::trim);
        let is_on = |key: &str| entry(key).and_then(switch);
        let replaces_proxy = matches!(
            entry("kube-proxy-replacement"),
            Some("true" | "strict" | "partial" | "probe")
        );
        let masks = is_on("enable-ipv4-masquerade").unwrap_or(true)
            || is_on("enable-ipv6-masquerade").unwrap_or(false)
            || is_on("masquerade").unwrap_or(false);
        let masquerade = match (masks, is_on("enable-bpf-masquerade")) {
            (false, _) => Masquerade::Off,
            (true, Some(true)) => Masquerade::Ebpf,
            (true, _) => Masquerade::Iptables,
        };
        let netkit = entry("datapath-mode").is_some_and(|mode| mode.starts_with("netkit"));
        let legacy = is_on("enable-host-legacy-routing") == Some(true);
        let native = [
            "ipv4-native-routing-cidr",
            "ipv6-native-routing-cidr",
            "native-routing-cidr",
        ]
        .iter()
        .filter_map(|key| entry(key)?.parse().ok())
        .collect();
        let agent = is_on("enable-ip-masq-agent") == Some(true);
        Some(Self {
            ipam: entry("ipam").unwrap_or("cluster-pool").to_owned(),
            // It falls back to the kernel's routing where it masquerades by iptables, or leaves services to kube-proxy.
            ebpf_host_routing: netkit
                || (!legacy && replaces_proxy && masquerade != Masquerade::Iptables),
            masquerade,
            replaces_proxy,
            external_cluster_ip: is_on("bpf-lb-external-clusterip") == Some(true),
            native,
            ip_masq_agent: agent.then(|| left_alone(facts)),
            devices: entry("devices")
                .filter(|d| !d.is_empty())
                .map(str::to_owned),
            no_conntrack: is_on("install-no-conntrack-iptables-rules") == Some(true),
            chained: entry("cni-chaining-mode")
                .filter(|mode| !["none", "portmap", ""].contains(mode))
                .map(str::to_owned),
            from: query.to_string(),
        })
    }

    pub(super) fn replaces_proxy(&self) -> Option<String> {
        self.replaces_proxy
            .then(|| format!("{}, kube-proxy-replacement", self.from))
    }

    pub(super) fn claims(&self, facts: &Facts) -> Claims {
        let mut claims = Claims::default();
        if self.chained.is_some() {
            return claims;
        }
        match self.ipam.as_str() {
            "cluster-pool" | "cluster-pool-v2beta" => {
                for key in ["cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr"] {
                    for query in [Query::Cilium, Query::CiliumOwnNamespace] {
                        let list = facts.entry(query, key).unwrap_or_default();
                        claims.pods(Rank::Allocator, &format!("{query}, {key}"), list);
                    }
                }
            }
            "multi-pool" => pools(facts, &mut claims),
            // The controller manager's blocks, as with other plugins.
            "kubernetes" => {}
            other => claims.notes.push(Note::warning(format!(
                "Cilium's IPAM mode is `{other}`: pods have addresses of the cloud's subnets, which the API does not tell"
            ))),
        }
        claims
    }

    pub(super) fn findings(&self, around: Surroundings<'_>) -> Vec<Finding> {
        let mut all = Vec::new();
        if self.ebpf_host_routing {
            all.push(Finding::bad(
                Severity::Blocks,
                "cilium-host-routing",
                format!("Cilium routes in eBPF ({}: kube-proxy-replacement, enable-bpf-masquerade, enable-host-legacy-routing)", self.from),
                "pods' packets pass by netfilter and, in some versions, by routing rules; Subsea needs both",
                "set Helm's `bpf.hostLegacyRouting=true` (`enable-host-legacy-routing: \"true\"`) and restart Cilium",
            ));
        } else {
            all.push(Finding::fine(
                "cilium-host-routing",
                format!("Cilium leaves routing to the kernel ({})", self.from),
                "Subsea's routing rules apply to pods' packets",
            ));
        }
        match self.masquerade {
            Masquerade::Ebpf => all.push(self.ebpf_masquerade(around.remote)),
            Masquerade::Iptables => all.push(Finding::fine(
                "cilium-masquerade",
                format!(
                    "Cilium masquerades by iptables ({}, enable-bpf-masquerade)",
                    self.from
                ),
                "Subsea has kept the source before",
            )),
            Masquerade::Off => {}
        }
        if self.replaces_proxy && !self.external_cluster_ip {
            all.push(Finding::bad(
                Severity::Warns,
                "cilium-cluster-ip",
                format!("{}, bpf-lb-external-clusterip is off", self.from),
                "ClusterIPs of this cluster do not answer to what comes from outside it, other clusters among that; pods' addresses do",
                "set Helm's `bpf.lbExternalClusterIP=true`, and where `devices` is set, add subsea+ to it",
            ));
        }
        if self.no_conntrack {
            all.push(Finding::bad(
                Severity::Blocks,
                "cilium-no-conntrack",
                format!("{}, install-no-conntrack-iptables-rules is on", self.from),
                "pods' packets have no connection, so their source cannot be kept and replies cannot be led back to their gateway",
                "set Helm's `installNoConntrackIptablesRules=false`",
            ));
        }
        if around.marks.gateway & MARK_MASK != 0 {
            all.push(Finding::bad(
                Severity::Warns,
                "cilium-mark",
                format!("Cilium uses the bits {MARK_MASK:#x} of marks"),
                format!(
                    "gateways with the kernel driver use {:#x} of them",
                    around.marks.gateway & MARK_MASK
                ),
                "run the gateways with `--road-mask 0x3000`",
            ));
        }
        if around.marks.own & MARK_MASK != 0 || around.marks.agent & MARK_MASK != 0 {
            all.push(Finding::bad(
                Severity::Blocks,
                "cilium-mark-own",
                format!("Cilium uses the bits {MARK_MASK:#x} of marks"),
                "so do Subsea's packets or its agents",
                "leave `--mark` at its default",
            ));
        }
        all
    }

    fn ebpf_masquerade(&self, remote: &[Cidr]) -> Finding {
        const ID: &str = "cilium-masquerade";
        const WHY: &str = "pods' packets to other clusters may get the node's address, in eBPF, where nftables cannot exempt them; the other \
                           cluster drops them";
        let mut spared = self.native.clone();
        spared.extend(self.ip_masq_agent.iter().flatten());
        let without = uncovered(remote, &spared);
        let instead = "set `ipMasqAgent.enabled=true` and list the other clusters' blocks in `nonMasqueradeCIDRs`";
        if !remote.is_empty() && without.is_empty() {
            return Finding::fine(
                ID,
                format!(
                    "Cilium masquerades in eBPF, and spares the blocks of the other clusters ({})",
                    self.from
                ),
                WHY,
            );
        }
        let found = if remote.is_empty() {
            format!("Cilium masquerades in eBPF ({})", self.from)
        } else {
            format!(
                "Cilium masquerades in eBPF, and does not spare {} ({})",
                listed(without),
                self.from
            )
        };
        // It masquerades on the devices that it is attached to alone, which may not be ours: not certain to fail.
        Finding::bad(Severity::Warns, ID, found, WHY, instead)
    }
}

fn pools(facts: &Facts, claims: &mut Claims) {
    for query in [Query::CiliumPools, Query::CiliumPoolsV2] {
        for object in facts.objects(query) {
            let name = text(object, "/metadata/name").unwrap_or("?");
            for family in ["ipv4", "ipv6"] {
                let list = object
                    .pointer(&format!("/spec/{family}/cidrs"))
                    .and_then(serde_json::Value::as_array);
                for block in list.into_iter().flatten() {
                    // A plain text, or an object with the block in it.
                    let cidr = block.as_str().or_else(|| text(block, "/cidr"));
                    let place = format!("CiliumPodIPPool {name}, spec.{family}.cidrs");
                    claims.pods(Rank::Allocator, &place, cidr.unwrap_or_default());
                }
            }
        }
        // Both versions are the same objects.
        if !claims.pod.is_empty() {
            return;
        }
    }
}

fn left_alone(facts: &Facts) -> Vec<Cidr> {
    let written = facts
        .object(Query::CiliumMasquerade)
        .and_then(|o| o.get("data")?.as_object()?.values().next()?.as_str())
        .and_then(|text| yaml::<MasqAgent>(text).ok())
        .and_then(|config| config.non_masquerade);
    let default = || NOT_MASQUERADED.iter().map(ToString::to_string).collect();
    let list: Vec<String> = written.unwrap_or_else(default);
    list.iter().filter_map(|c| c.parse().ok()).collect()
}

impl fmt::Display for Cilium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routing = if self.ebpf_host_routing {
            "routes in eBPF"
        } else {
            "kernel routing"
        };
        write!(f, "Cilium (IPAM {}, {routing}", self.ipam)?;
        if let Some(chained) = &self.chained {
            write!(f, ", chained to {chained}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
#[path = "cilium_tests.rs"]
mod tests;
