//! Takes every trace of ours out of the kernel, and only ours. Shell.

use super::plan::overlay;
use super::{HostError, Settings};
use crate::net::netlink::{Change, Netlink, PROTOCOL};
use crate::net::sysctl::{self, Saved};
use crate::net::{netlink, nft, wireguard};

/// Removes our rules, routes, next hops, addresses, table of nftables, TUN device, VXLAN device and WireGuard devices, and
/// puts the kernel parameters back. What is gone already is fine, and a failure does not keep the rest from being tried.
///
/// # Errors
/// One for each thing that is still there.
pub async fn cleanup(settings: &Settings, saved: &Saved) -> Vec<HostError> {
    let mut errors = Vec::new();
    if let Err(reason) = settings.check() {
        return vec![HostError::Settings { reason }];
    }
    match remove_routing(settings).await {
        Ok(refused) => errors.extend(refused.into_iter().map(HostError::Netlink)),
        Err(error) => errors.push(HostError::Netlink(error)),
    }
    if let Some(device) = &settings.device {
        let refused = wireguard::remove(&wireguard::Names::new(device)).into_iter();
        errors.extend(refused.map(HostError::Wireguard));
    }
    let table = settings.part.nft_table();
    errors.extend(nft::remove(table).await.err().map(HostError::Tool));
    errors.extend(sysctl::restore(saved).into_iter().map(HostError::Sysctl));
    errors
}

async fn remove_routing(
    settings: &Settings,
) -> Result<Vec<netlink::NetlinkError>, netlink::NetlinkError> {
    let netlink = Netlink::open()?;
    let tables = settings.all_tables();
    let ids = settings.part.next_hop_ids();
    let observed = netlink.observe_all(&tables, &ids, None).await?;
    // Without the rules nobody looks into our table any more.
    let rules = observed
        .rules
        .into_iter()
        .filter(|r| r.is_ours(&tables, settings.from()))
        .map(Change::DeleteRule);
    let routes = observed
        .routes
        .into_iter()
        .filter(|r| r.is_ours() && tables.contains(&r.table))
        .map(Change::DeleteRoute);
    // Groups first: without its last member one would go by itself.
    let is_group = |held: &netlink::Held| !matches!(held, netlink::Held::Hop(_));
    let mut next_hops: Vec<_> = observed
        .next_hops
        .into_iter()
        .filter(|(_, held)| *held != netlink::Held::Foreign)
        .collect();
    next_hops.sort_by_key(|(_, held)| !is_group(held));
    let next_hops = next_hops
        .into_iter()
        .map(|(id, _)| Change::DeleteNextHop(id));
    let is_device = |name: &String| Some(name) == settings.device.as_ref();
    let on_device = |a: &netlink::Address| is_device(&a.device) && a.protocol == Some(PROTOCOL);
    let addresses = observed
        .addresses
        .into_iter()
        .filter(on_device)
        .map(Change::DeleteAddress);
    // A device of another kind was made by somebody else.
    let is_vxlan =
        |l: &netlink::Link| Some(&l.name) == settings.vxlan.as_ref() && overlay::is_ours(l);
    let is_made =
        |l: &netlink::Link| is_vxlan(l) || (is_device(&l.name) && l.kind.as_deref() == Some("tun"));
    let device = observed
        .links
        .into_iter()
        .filter(is_made)
        .map(|l| Change::DeleteLink(l.name));
    let changes: Vec<Change> = rules
        .chain(routes)
        .chain(next_hops)
        .chain(addresses)
        .chain(device)
        .collect();
    Ok(netlink.apply(&changes).await)
}
