//! What network plugins and service proxies have left in this host's kernel. Shell.

use crate::net::netlink::{Mark, Netlink, NetlinkError, PROTOCOL};
use crate::net::{iptables, nft};

/// What there is of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprints {
    /// Names of devices, and their kinds: none for hardware.
    pub devices: Vec<(String, Option<String>)>,
    /// Whether nftables has kube-proxy's own table.
    pub proxy_table: bool,
    /// Whether iptables has the chain by which kube-proxy sees that its rules were flushed.
    pub proxy_canary: bool,
    /// Routing rules of others that look at marks: the mark that they match, and the rule in words.
    pub rules: Vec<(Mark, String)>,
}

/// Looks at all of it.
///
/// # Errors
/// When the kernel does not list devices or rules. A tool of netfilter that fails leaves out what it would have shown.
pub async fn footprints() -> Result<Footprints, NetlinkError> {
    const CANARY: &str = "KUBE-PROXY-CANARY";
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let rules = netlink.rules().await?;
    let others = rules.into_iter().filter(|rule| rule.protocol != PROTOCOL);
    Ok(Footprints {
        devices: links.into_iter().map(|l| (l.name, l.kind)).collect(),
        proxy_table: nft::has_table("kube-proxy").await,
        proxy_canary: nft::has_nat_chain(CANARY).await || iptables::has_nat_chain(CANARY).await,
        rules: others
            .filter_map(|rule| Some((rule.mark?, rule.to_string())))
            .collect(),
    })
}
