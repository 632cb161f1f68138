//! How large packets to other nodes and to other clusters may be. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;

use subsea_api::{Cidr, ClusterId, Family};

use super::encap::Encap;

/// What VXLAN adds to a packet: Ethernet, its own header, UDP and IP.
const OVER_V4: u32 = 14 + 8 + 8 + 20;
const OVER_V6: u32 = 14 + 8 + 8 + 40;
/// The least that IPv6 needs.
const MIN_MTU: u32 = 1280;

/// The largest packet to the next node, by our address and the MTU of its link. The VXLAN device takes no more than gets to
/// any cluster, so that only those that take less than the others need routes that say so.
pub fn device(
    encap: Encap,
    address: Option<(IpAddr, u32)>,
    mtus: &BTreeMap<ClusterId, u32>,
) -> u32 {
    match (encap, address) {
        (Encap::Vxlan, _) => {
            let fits = vxlan_mtu(address);
            let most = mtus.values().copied().max().unwrap_or(fits);
            fits.min(most).max(MIN_MTU)
        }
        (Encap::None, Some((_, link))) => link,
        (Encap::None, None) => 1500,
    }
}

fn vxlan_mtu(address: Option<(IpAddr, u32)>) -> u32 {
    let (over, link) = match address {
        Some((IpAddr::V4(_), mtu)) => (OVER_V4, mtu),
        Some((IpAddr::V6(_), mtu)) => (OVER_V6, mtu),
        None => (OVER_V6, 1500),
    };
    link.saturating_sub(over).max(MIN_MTU)
}

/// The MTU of the route to a block, to which packets of `mtu` bytes get.
pub(super) fn route(block: Cidr, mtu: u32) -> u32 {
    match block.family() {
        Family::V4 => mtu,
        Family::V6 => mtu.max(MIN_MTU),
    }
}
