//! Takes every trace of ours out of the kernel, and only ours. Shell.

use super::{HostError, Settings};
use crate::net::netlink::{Change, Netlink, PROTOCOL};
use crate::net::sysctl::{self, Saved};
use crate::net::{netlink, nft, wireguard};

/// Removes our rules, routes, addresses, table of nftables, TUN device and WireGuard devices, and puts the kernel parameters back. What is
/// gone already is fine, and a failure does not keep the rest from being tried.
///
/// # Errors
/// One for each thing that is still there.
pub async fn cleanup(settings: &Settings, saved: &Saved) -> Vec<HostError> {
    let mut errors = Vec::new();
    if let Err(error) = settings.check() {
        return vec![error];
    }
    match remove_routing(settings).await {
        Ok(refused) => errors.extend(refused.into_iter().map(HostError::Netlink)),
        Err(error) => errors.push(HostError::Netlink(error)),
    }
    let names = wireguard::Names::new(&settings.device);
    errors.extend(
        wireguard::remove(&names)
            .into_iter()
            .map(HostError::Wireguard),
    );
    errors.extend(nft::remove().await.err().map(HostError::Tool));
    errors.extend(sysctl::restore(saved).into_iter().map(HostError::Sysctl));
    errors
}

async fn remove_routing(
    settings: &Settings,
) -> Result<Vec<netlink::NetlinkError>, netlink::NetlinkError> {
    let netlink = Netlink::open()?;
    let observed = netlink.observe(settings.table).await?;
    // Without the rules nobody looks into our table any more.
    let rules = observed
        .rules
        .into_iter()
        .filter(|r| r.is_ours(settings.table))
        .map(Change::DeleteRule);
    let routes = observed
        .routes
        .into_iter()
        .filter(|r| r.is_ours() && r.table == settings.table)
        .map(Change::DeleteRoute);
    let on_device =
        |a: &netlink::Address| a.device == settings.device && a.protocol == Some(PROTOCOL);
    let addresses = observed
        .addresses
        .into_iter()
        .filter(on_device)
        .map(Change::DeleteAddress);
    // A device of another kind was made by somebody else.
    let is_tun = |l: &netlink::Link| l.name == settings.device && l.kind.as_deref() == Some("tun");
    let device = observed
        .links
        .into_iter()
        .filter(is_tun)
        .map(|l| Change::DeleteLink(l.name));
    let changes: Vec<Change> = rules.chain(routes).chain(addresses).chain(device).collect();
    Ok(netlink.apply(&changes).await)
}
