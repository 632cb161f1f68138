//! Source translation in eBPF, which no nftables rule of ours can exempt a flow from. PURE.

/// Devices that a CNI with translation in eBPF makes, and the setting that spares our flows.
const MARKS: [(&str, &str); 2] = [
    (
        "cilium_host",
        "Cilium may masquerade in eBPF, where it cannot be exempted by nftables: with `bpf.masquerade=true`, enable its \
         ip-masq-agent (`ipMasqAgent.enabled=true`) and list the other clusters' blocks in `nonMasqueradeCIDRs`",
    ),
    (
        "bpfout.cali",
        "Calico's eBPF data plane translates outside of nftables: make a disabled IPPool with `natOutgoing: false` for each \
         block of the other clusters",
    ),
];

/// What to set, when one of the host's devices says that a CNI may translate our flows in eBPF.
pub(super) fn masquerade<'a>(links: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let links: Vec<&str> = links.into_iter().collect();
    MARKS
        .iter()
        .filter(|(device, _)| links.contains(device))
        .map(|(device, advice)| format!("{advice} (device {device} is here)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_named_only_where_such_a_cni_is() {
        assert!(masquerade(["eth0", "cni0"]).is_empty());
        let found = masquerade(["eth0", "cilium_host"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("nonMasqueradeCIDRs"), "{found:?}");
    }
}
