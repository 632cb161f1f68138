//! From the largest packet that a path of the underlay takes to the MTU of the routes that use it. PURE.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use subsea_api::{Cidr, Family, PublicKey};

use crate::tunnel::{TunnelConfig, TunnelStats};

/// What WireGuard adds to a packet: the outer headers, 16 bytes of its own and the tag of 16.
const OVER_V4: u32 = 20 + 8 + 16 + 16;
const OVER_V6: u32 = 40 + 8 + 16 + 16;
/// The least that IPv6 must be able to send: below it the outer packets go in fragments.
const MIN_V6: u32 = 1280;
/// The least that an IPv4 host must be able to receive, whatever somebody says about the path.
const MIN_V4: u32 = 576;

/// What fits through the paths that turned out to be narrow, by the peer's key.
pub(super) type Inner = BTreeMap<PublicKey, u32>;

/// Reads what the tunnel learnt.
pub(super) fn inner(stats: &TunnelStats) -> Inner {
    let narrow = stats.peers.iter().filter_map(|(key, peer)| {
        let overhead = match peer.endpoint {
            Some(SocketAddr::V4(_)) => OVER_V4,
            Some(SocketAddr::V6(_)) | None => OVER_V6,
        };
        Some((*key, peer.path_mtu?.saturating_sub(overhead)))
    });
    narrow.collect()
}

/// The MTU of the routes of each block whose path takes less than the device.
pub(super) fn of_blocks(inner: &Inner, tunnel: &TunnelConfig, device: u32) -> BTreeMap<Cidr, u32> {
    let narrow = inner
        .iter()
        .filter_map(|(key, mtu)| Some((tunnel.peers.get(key)?, *mtu)));
    let blocks = narrow.flat_map(|(peer, mtu)| peer.routes.iter().map(move |block| (*block, mtu)));
    blocks
        .map(|(block, mtu)| match block.family() {
            Family::V4 => (block, mtu.max(MIN_V4)),
            Family::V6 => (block, mtu.max(MIN_V6)),
        })
        .filter(|(_, mtu)| *mtu < device)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::{PeerConfig, PeerStats};

    fn mtus(endpoint: &str, path_mtu: Option<u32>, device: u32) -> Vec<(String, u32)> {
        let key = PublicKey::from_bytes([7; 32]).unwrap();
        let peer = PeerConfig {
            label: "west/gw-1".to_owned(),
            endpoint: None,
            sources: Vec::new(),
            routes: ["10.64.0.0/16", "fd00:64::/48"]
                .map(|b| b.parse().unwrap())
                .to_vec(),
            keepalive: None,
            slot: 0,
            stripes: Vec::new(),
        };
        let tunnel = TunnelConfig {
            local: Vec::new(),
            peers: BTreeMap::from([(key, peer)]),
        };
        let measured = PeerStats {
            endpoint: Some(endpoint.parse().unwrap()),
            path_mtu,
            ..PeerStats::default()
        };
        let stats = TunnelStats {
            peers: BTreeMap::from([(key, measured)]),
            drops: BTreeMap::new(),
        };
        of_blocks(&inner(&stats), &tunnel, device)
            .into_iter()
            .map(|(block, mtu)| (block.to_string(), mtu))
            .collect()
    }

    #[test]
    fn a_route_takes_what_the_path_leaves() {
        let both = |v4, v6| {
            vec![
                ("10.64.0.0/16".to_owned(), v4),
                ("fd00:64::/48".to_owned(), v6),
            ]
        };
        let (v4, v6) = ("192.0.2.1:51820", "[2001:db8::1]:51820");
        assert_eq!(mtus(v4, Some(1400), 1420), both(1340, 1340));
        assert_eq!(mtus(v6, Some(1400), 1420), both(1320, 1320));
        assert_eq!(mtus(v4, Some(1300), 1420), both(1240, 1280));
        assert_eq!(mtus(v6, Some(1300), 1420), both(1220, 1280));
        assert_eq!(mtus(v4, Some(68), 1420), both(576, 1280), "a lie");
    }

    #[test]
    fn a_route_says_nothing_where_the_device_says_it_already() {
        let v4 = "192.0.2.1:51820";
        assert!(mtus(v4, None, 1420).is_empty());
        assert!(mtus(v4, Some(1500), 1420).is_empty());
        assert!(mtus(v4, Some(1480), 1420).is_empty());
        assert_eq!(
            mtus(v4, Some(1300), 1280),
            [("10.64.0.0/16".to_owned(), 1240)]
        );
    }
}
