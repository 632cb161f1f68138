//! What plugins and proxies leave in the kernel of a node: it shows what runs there, whatever the API server says. PURE.

use super::finding::{Finding, Marks, Severity};
use super::proxy::ProxyMode;

/// What is taken from a node's kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// The devices.
    pub devices: Vec<Device>,
    /// Chains and tables of netfilter that are of kube-proxy.
    pub proxy: Vec<ProxyTrace>,
    /// Routing rules of others that look at marks.
    pub rules: Vec<MarkRule>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What made it: `veth`, `netkit`; none for hardware.
    pub kind: Option<String>,
}

/// What kube-proxy made in netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyTrace {
    /// The table of nftables mode.
    Table,
    /// The chain by which iptables mode sees that its rules were flushed.
    Canary,
}

/// A routing rule that looks at the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkRule {
    /// The bits that are set in what it matches. Where one of ours must not be set, what has our marks is not matched.
    pub bits: u32,
    /// The rule as `ip rule` prints it.
    pub text: String,
}

/// What a device says by the beginning of its name. Plugins that run beside others come first.
const BY_DEVICE: [(&str, &str); 12] = [
    ("ovn-k8s-mp0", "OVN-Kubernetes"),
    ("cilium_host", "Cilium"),
    ("flannel.", "flannel"),
    ("flannel-", "flannel"),
    ("vxlan.calico", "Calico"),
    ("wireguard.cali", "Calico"),
    ("bpfout.cali", "Calico"),
    ("cali", "Calico"),
    ("antrea-gw0", "Antrea"),
    ("kube-bridge", "kube-router"),
    ("ovn0", "Kube-OVN"),
    ("weave", "Weave Net"),
];
/// The device that holds `ClusterIP`s in IPVS mode.
const IPVS: &str = "kube-ipvs0";

impl Traces {
    /// The plugins whose devices are here, each once, and the device.
    pub fn plugins(&self) -> Vec<(&'static str, &str)> {
        let mut all: Vec<(&'static str, &str)> = Vec::new();
        for (prefix, plugin) in BY_DEVICE {
            if all.iter().any(|(known, _)| *known == plugin) {
                continue;
            }
            let device = self.devices.iter().find(|d| d.name.starts_with(prefix));
            all.extend(device.map(|d| (plugin, d.name.as_str())));
        }
        all
    }

    /// kube-proxy's mode, and by what it was seen.
    pub fn proxy_mode(&self) -> Option<(ProxyMode, &'static str)> {
        // The other modes leave their chains behind when the mode is changed, IPVS its device.
        if self.proxy.contains(&ProxyTrace::Table) {
            Some((ProxyMode::Nftables, "nftables' table kube-proxy"))
        } else if self.devices.iter().any(|d| d.name == IPVS) {
            Some((ProxyMode::Ipvs, "device kube-ipvs0"))
        } else if self.proxy.contains(&ProxyTrace::Canary) {
            Some((ProxyMode::Iptables, "iptables' chain KUBE-PROXY-CANARY"))
        } else {
            None
        }
    }

    /// What of it stands in the way.
    pub fn findings(&self, marks: Marks) -> Vec<Finding> {
        let mut all = Vec::new();
        if let Some(device) = self
            .devices
            .iter()
            .find(|d| d.kind.as_deref() == Some("netkit"))
        {
            all.push(Finding::bad(
                Severity::Blocks,
                "cilium-netkit",
                format!("pods have devices of the kind netkit (device {})", device.name),
                "their packets go by eBPF from device to device, past netfilter and, in some versions, routing rules; Subsea needs both",
                "set Cilium's `bpf.datapathMode=veth` and `bpf.hostLegacyRouting=true`, and restart its agents and the pods",
            ));
        }
        for rule in &self.rules {
            let ours = rule.bits & marks.all();
            if ours != 0 {
                all.push(Finding::bad(
                    Severity::Warns,
                    "rule-mark",
                    format!("another program's routing rule is for packets with the mark's bits {:#x} ({})", rule.bits, rule.text),
                    format!("{ours:#x} of them are Subsea's: packets of one may be taken for the other's"),
                    "give the other program other bits; gateways can have other ones by `--road-mask`",
                ));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(all: &[(&str, Option<&str>)]) -> Traces {
        let device = |(name, kind): &(&str, Option<&str>)| Device {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        Traces {
            devices: all.iter().map(device).collect(),
            ..Traces::default()
        }
    }

    #[test]
    fn plugins_are_known_by_their_devices() {
        let veth = Some("veth");
        for (names, wanted) in [
            (
                &["eth0", "cali12ab", "vxlan.calico"][..],
                &[("Calico", "vxlan.calico")][..],
            ),
            (&["cali12ab"], &[("Calico", "cali12ab")]),
            (
                &["cilium_host", "cilium_net", "lxc12"],
                &[("Cilium", "cilium_host")],
            ),
            (
                &["flannel.1", "cali1"],
                &[("flannel", "flannel.1"), ("Calico", "cali1")],
            ),
            (&["ovn-k8s-mp0"], &[("OVN-Kubernetes", "ovn-k8s-mp0")]),
            (&["eth0", "lo", "subsea0"], &[]),
        ] {
            let all: Vec<_> = names.iter().map(|name| (*name, veth)).collect();
            assert_eq!(devices(&all).plugins(), wanted);
        }
    }

    #[test]
    fn the_proxys_mode_is_known_by_what_it_made() {
        let mut traces = devices(&[("eth0", None)]);
        let mode = |traces: &Traces| traces.proxy_mode().map(|(mode, _)| mode);
        assert_eq!(mode(&traces), None);
        traces.proxy = vec![ProxyTrace::Canary];
        assert_eq!(mode(&traces), Some(ProxyMode::Iptables));
        traces.proxy.push(ProxyTrace::Table);
        assert_eq!(mode(&traces), Some(ProxyMode::Nftables));
        let ipvs = devices(&[("kube-ipvs0", Some("dummy"))]);
        assert_eq!(mode(&ipvs), Some(ProxyMode::Ipvs));
    }

    #[test]
    fn marks_that_meet_and_netkit_are_named() {
        let mut traces = devices(&[("lxc1", Some("netkit"))]);
        // AWS', Calico's WireGuard, Cilium's proxy, and wg-quick, which meets.
        for bits in [0x80, 0x0010_0000, 0x200, 0xca6c] {
            let text = format!("-4 pref 100 from all fwmark {bits:#x} lookup 99");
            traces.rules.push(MarkRule { bits, text });
        }
        let marks = Marks {
            gateway: 0x3000,
            ..Marks::default()
        };
        let found = traces.findings(marks);
        let ids: Vec<_> = found.iter().map(|f| (f.id, f.severity)).collect();
        assert_eq!(
            ids,
            [
                ("cilium-netkit", Severity::Blocks),
                ("rule-mark", Severity::Warns)
            ]
        );
        assert!(found[1].found.contains("0xca6c") && found[1].why.starts_with("0x6c"));
    }
}
