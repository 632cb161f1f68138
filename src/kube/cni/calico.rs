//! Calico: its pools, its data plane, and what of it stands in the way. PURE.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use subsea_api::Cidr;

use super::finding::{Finding, Severity, Surroundings, VXLAN_PORT, uncovered};
use crate::kube::discover::facts::{Facts, is_on, text, texts};
use crate::kube::discover::found::{Claims, Note, Rank, listed};
use crate::kube::discover::query::Query;

/// How Calico moves packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataPlane {
    /// iptables, its default.
    Iptables,
    /// nftables.
    Nftables,
    /// eBPF, without kube-proxy.
    Ebpf,
}

/// Who gives pods their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipam {
    /// Calico, out of its pools.
    Calico,
    /// Each node, out of its `spec.podCIDRs`.
    HostLocal,
    /// Another plugin: Calico is there for policies.
    Elsewhere,
}

/// An `IPPool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its block, as it is written.
    pub cidr: String,
    /// Whether it is out of use for new pods.
    pub disabled: bool,
    /// Whether Calico masquerades what leaves it for elsewhere.
    pub nat_outgoing: bool,
    /// `VXLAN`, `IPIP`, or none.
    pub encapsulation: String,
    /// Whether pods get addresses of it, rather than tunnels or load balancers.
    pub for_pods: bool,
}

/// Calico as it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Calico {
    /// How it moves packets.
    pub data_plane: DataPlane,
    /// Who gives pods their addresses.
    pub ipam: Ipam,
    /// All its pools.
    pub pools: Vec<Pool>,
    /// In eBPF mode: devices of others by which traffic to services may come, as a regular expression.
    pub l3_devices: Option<String>,
    /// The bits of the packet mark that it may use.
    pub mark_mask: u32,
    /// The bit of the connection mark that eBPF mode sets for services from outside, where it is told to.
    pub service_connmark: u32,
    /// The UDP port of its VXLAN.
    pub vxlan_port: u64,
    /// The UDP ports of its WireGuard, where that is on.
    pub wireguard_ports: Vec<u64>,
    /// Whether a node takes addresses out of its own blocks alone.
    pub strict_affinity: Option<bool>,
    /// Where the data plane was found.
    from: String,
}

/// Where gateways listen by default: with the kernel driver one port for each gateway of another cluster.
const GATEWAY_PORTS: std::ops::Range<u64> = 51820..51828;
const NODE: &str = "calico-node";
const CANAL: [&str; 2] = ["canal", "rke2-canal"];

impl Calico {
    pub(super) fn detect(facts: &Facts) -> Option<Self> {
        let sets = [NODE, CANAL[0], CANAL[1]];
        let pools_from = [Query::CalicoPools, Query::CalicoPoolsStored]
            .into_iter()
            .find(|q| !facts.objects(*q).is_empty())
            .unwrap_or(Query::CalicoPoolsStored);
        // Its definitions and pools outlive it, so they count only where the DaemonSets could not be read.
        let runs = facts.runs(&sets).unwrap_or_else(|| {
            !facts.objects(pools_from).is_empty() || facts.object(Query::CalicoConfig).is_some()
        });
        if !runs {
            return None;
        }
        let empty = Value::Null;
        let (felix, felix_from) = [Query::Felix, Query::FelixStored]
            .into_iter()
            .find_map(|q| facts.object(q).map(|o| (o, q)))
            .unwrap_or((&empty, Query::FelixStored));
        let installation = facts.object(Query::CalicoInstallation).unwrap_or(&empty);
        let wanted = text(installation, "/spec/calicoNetwork/linuxDataplane");
        let by_variable = |name| facts.variable(&sets, name) == Some("true");
        let number = |path: &str| felix.pointer(path).and_then(Value::as_u64);
        let (data_plane, from) = if is_on(felix, "/spec/bpfEnabled") == Some(true) {
            (DataPlane::Ebpf, format!("{felix_from}, bpfEnabled"))
        } else if wanted == Some("BPF") {
            (
                DataPlane::Ebpf,
                format!("{}, linuxDataplane", Query::CalicoInstallation),
            )
        } else if by_variable("FELIX_BPFENABLED") {
            (
                DataPlane::Ebpf,
                format!("DaemonSet {NODE}, FELIX_BPFENABLED"),
            )
        } else if text(felix, "/spec/nftablesMode") == Some("Enabled") {
            (DataPlane::Nftables, format!("{felix_from}, nftablesMode"))
        } else if wanted == Some("Nftables") {
            (
                DataPlane::Nftables,
                format!("{}, linuxDataplane", Query::CalicoInstallation),
            )
        } else {
            (DataPlane::Iptables, format!("{felix_from}, the default"))
        };
        let mask = if data_plane == DataPlane::Nftables {
            number("/spec/nftablesMarkMask")
        } else {
            number("/spec/iptablesMarkMask")
        };
        Some(Self {
            data_plane,
            ipam: ipam(facts, installation),
            pools: facts.objects(pools_from).iter().map(pool).collect(),
            l3_devices: text(felix, "/spec/bpfL3IfacePattern")
                .filter(|p| !p.is_empty())
                .map(str::to_owned),
            mark_mask: mask
                .and_then(|m| u32::try_from(m).ok())
                .unwrap_or(0xffff_0000),
            service_connmark: number("/spec/bpfExtToServiceConnmark")
                .and_then(|m| u32::try_from(m).ok())
                .unwrap_or(0),
            wireguard_ports: [("", 51820), ("V6", 51821)]
                .into_iter()
                .filter(|(v, _)| is_on(felix, &format!("/spec/wireguardEnabled{v}")) == Some(true))
                .map(|(v, port)| {
                    number(&format!("/spec/wireguardListeningPort{v}")).unwrap_or(port)
                })
                .collect(),
            vxlan_port: number("/spec/vxlanPort").unwrap_or(4789),
            strict_affinity: facts
                .object(Query::CalicoIpam)
                .map(|o| is_on(o, "/spec/strictAffinity").unwrap_or(false)),
            from,
        })
    }

    /// Pools that are in use for pods. A disabled one is not counted: Calico gives no more addresses of it, and other
    /// clusters' blocks are written as such.
    pub(super) fn claims(&self) -> Claims {
        let mut claims = Claims::default();
        if self.ipam != Ipam::Calico {
            return claims;
        }
        for pool in self.pools.iter().filter(|p| p.for_pods) {
            let place = format!("IPPool {}, spec.cidr", pool.name);
            if pool.disabled {
                claims.notes.push(Note::info(format!(
                    "IPPool {} ({}) is disabled and left out; if pods still have addresses of it, give all blocks by --pod-cidr",
                    pool.name, pool.cidr
                )));
            } else {
                claims.pods(Rank::Allocator, &place, &pool.cidr);
            }
        }
        claims
    }

    pub(super) fn replaces_proxy(&self) -> Option<String> {
        (self.data_plane == DataPlane::Ebpf).then(|| self.from.clone())
    }

    pub(super) fn findings(&self, around: Surroundings<'_>) -> Vec<Finding> {
        let mut all = Vec::new();
        let translates = self.pools.iter().any(|p| p.nat_outgoing && !p.disabled);
        match self.data_plane {
            DataPlane::Iptables | DataPlane::Nftables => all.push(Finding::fine(
                "calico-netfilter",
                format!("Calico without eBPF ({})", self.from),
                "`natOutgoing` masquerades in netfilter, where Subsea has kept the source before; no pools for other clusters are needed",
            )),
            DataPlane::Ebpf => {
                if translates {
                    all.push(self.pools_for_others(around.remote));
                }
                if !self.l3_devices.as_ref().is_some_and(|p| p.contains("subsea")) {
                    all.push(Finding::bad(
                        Severity::Warns,
                        "calico-ebpf-devices",
                        format!(
                            "Calico in eBPF mode, bpfL3IfacePattern is {}",
                            self.l3_devices.as_deref().unwrap_or("not set")
                        ),
                        "ClusterIPs are translated only on devices that Calico's programs are attached to; what comes out of a tunnel of \
                         Subsea comes by another one",
                        "set `bpfL3IfacePattern: ^subsea.*$` in FelixConfiguration default, so that ClusterIPs of this cluster answer to \
                         others",
                    ));
                }
            }
        }
        let ours = around.marks.all();
        let theirs = self.mark_mask | self.service_connmark;
        if theirs & ours != 0 {
            all.push(Finding::bad(
                Severity::Blocks,
                "calico-mark",
                format!("Calico may use the bits {theirs:#x} of marks (iptablesMarkMask, nftablesMarkMask, bpfExtToServiceConnmark)"),
                format!("Subsea uses {:#x} of them", theirs & ours),
                "set Calico's masks within 0xffff0000, its default",
            ));
        }
        if self.vxlan_port == VXLAN_PORT {
            all.push(Finding::bad(
                Severity::Blocks,
                "calico-vxlan-port",
                format!("Calico's vxlanPort is {VXLAN_PORT}"),
                "the agents' VXLAN has that UDP port",
                "run the agents with `--vxlan-port` and another one",
            ));
        }
        if let Some(port) = self
            .wireguard_ports
            .iter()
            .find(|p| GATEWAY_PORTS.contains(p))
        {
            all.push(Finding::bad(
                Severity::Warns,
                "calico-wireguard-port",
                format!("Calico's WireGuard has UDP port {port}"),
                "a gateway listens there by default, and with the kernel driver on the ports after it",
                "run the gateways with `--listen-port` and another one, or set wireguardListeningPort and wireguardListeningPortV6 in \
                 FelixConfiguration default",
            ));
        }
        if self.ipam == Ipam::Calico && self.strict_affinity == Some(false) {
            all.push(Finding::fine(
                "calico-borrowing",
                format!("{}, strictAffinity is false", Query::CalicoIpam),
                "a node whose blocks are full takes single addresses of another node's block; packets to such a pod go to the block's node \
                 first, and on by Calico's routes. It takes pools that are nearly full",
            ));
        }
        all
    }

    /// In eBPF mode, a block of another cluster must be a pool, or packets to it are masqueraded where nftables cannot help.
    fn pools_for_others(&self, remote: &[Cidr]) -> Finding {
        const WHY: &str = "pods' packets to what is in no pool get the node's address, in eBPF, where nothing can be exempted; the other \
                           cluster drops them";
        const ID: &str = "calico-ebpf-masquerade";
        let pools: Vec<Cidr> = self
            .pools
            .iter()
            .filter_map(|p| p.cidr.parse().ok())
            .collect();
        let without = uncovered(remote, &pools);
        let instead = "make an IPPool with `disabled: true`, `natOutgoing: false` and `disableBGPExport: true` for each block of the \
                       other clusters";
        if remote.is_empty() {
            return Finding::bad(
                Severity::Warns,
                ID,
                "Calico in eBPF mode with natOutgoing",
                WHY,
                instead,
            );
        }
        if without.is_empty() {
            return Finding::fine(
                ID,
                "Calico in eBPF mode with natOutgoing, and a pool for each block of the other clusters",
                WHY,
            );
        }
        Finding::bad(
            Severity::Blocks,
            ID,
            format!(
                "Calico in eBPF mode with natOutgoing, without a pool for {}",
                listed(without.iter().copied())
            ),
            WHY,
            instead,
        )
    }
}

fn ipam(facts: &Facts, installation: &Value) -> Ipam {
    if facts.runs(&CANAL) == Some(true) {
        return Ipam::Elsewhere;
    }
    match text(installation, "/spec/cni/type") {
        None | Some("Calico") => {}
        Some(_) => return Ipam::Elsewhere,
    }
    match text(installation, "/spec/cni/ipam/type") {
        Some("HostLocal") => return Ipam::HostLocal,
        Some("Calico") => return Ipam::Calico,
        Some(_) => return Ipam::Elsewhere,
        None => {}
    }
    // The manifest has it in a CNI configuration with place-holders that are no JSON.
    let by_manifest = facts
        .entry(Query::CalicoConfig, "cni_network_config")
        .unwrap_or_default();
    if by_manifest.contains("\"host-local\"") {
        return Ipam::HostLocal;
    }
    // Without a network of its own it is there for policies.
    let backend = facts.variable(&[NODE], "CALICO_NETWORKING_BACKEND");
    if backend == Some("none") {
        return Ipam::Elsewhere;
    }
    Ipam::Calico
}

fn pool(object: &Value) -> Pool {
    let one = |path: &str| text(object, path).filter(|mode| *mode != "Never");
    let uses = texts(object, "/spec/allowedUses");
    let encapsulation = match (one("/spec/vxlanMode"), one("/spec/ipipMode")) {
        (Some(mode), _) => format!("VXLAN {mode}"),
        (None, Some(mode)) => format!("IPIP {mode}"),
        (None, None) => "none".to_owned(),
    };
    Pool {
        name: text(object, "/metadata/name").unwrap_or("?").to_owned(),
        cidr: text(object, "/spec/cidr").unwrap_or_default().to_owned(),
        disabled: is_on(object, "/spec/disabled").unwrap_or(false),
        nat_outgoing: is_on(object, "/spec/natOutgoing").unwrap_or(false),
        encapsulation,
        for_pods: uses.is_empty() || uses.contains(&"Workload"),
    }
}

impl fmt::Display for Calico {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plane = match self.data_plane {
            DataPlane::Iptables => "iptables",
            DataPlane::Nftables => "nftables",
            DataPlane::Ebpf => "eBPF",
        };
        let ipam = match self.ipam {
            Ipam::Calico => "",
            Ipam::HostLocal => ", host-local addresses",
            Ipam::Elsewhere => ", policies only",
        };
        write!(f, "Calico ({plane}{ipam})")
    }
}

#[cfg(test)]
#[path = "calico_tests.rs"]
mod tests;
