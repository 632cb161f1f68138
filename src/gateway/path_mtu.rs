//! From what the paths take to the MTU of the routes that use them. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use subsea_api::{Cidr, ClusterId, Family};

use super::mesh::{Mesh, PathId};

/// What WireGuard adds to a packet: the outer headers, 16 bytes of its own and the tag of 16.
const OVER_V4: u32 = 20 + 8 + 16 + 16;
const OVER_V6: u32 = 40 + 8 + 16 + 16;
/// The least that IPv6 must be able to send: below it the outer packets go in fragments.
const MIN_V6: u32 = 1280;
/// The least that an IPv4 host must be able to receive, whatever somebody says about the path.
const MIN_V4: u32 = 576;

/// The largest inner packet that each path takes whole, in bytes; paths of which nothing is known are missing.
pub(super) type Inner = BTreeMap<PathId, u32>;

/// What WireGuard adds to a packet on the way to `endpoint`, in bytes; the most, while that is not known.
pub(super) fn overhead(endpoint: Option<SocketAddr>) -> u32 {
    match endpoint {
        Some(SocketAddr::V4(_)) => OVER_V4,
        Some(SocketAddr::V6(_)) | None => OVER_V6,
    }
}

/// The largest inner packet of a path: `outer` is what the underlay said (a link, or an ICMP "too big"), `measured` what
/// padded echo found. The smaller counts: an underlay may say nothing, and echo is not sent all the time.
pub(super) fn inner(
    endpoint: Option<SocketAddr>,
    outer: Option<u32>,
    measured: Option<u32>,
) -> Option<u32> {
    let said = outer.map(|outer| outer.saturating_sub(overhead(endpoint)));
    match (said, measured) {
        (Some(said), Some(measured)) => Some(said.min(measured)),
        (said, measured) => said.or(measured),
    }
}

/// The largest inner packet that gets to a cluster by every gateway in use, at most `device`, the MTU of the tunnel device.
pub(super) fn of_cluster(
    cluster: &ClusterId,
    in_use: &BTreeSet<PathId>,
    inner: &Inner,
    device: u32,
) -> u32 {
    let used = in_use.iter().filter(|id| id.cluster == *cluster);
    used.filter_map(|id| inner.get(id))
        .copied()
        .chain([device])
        .min()
        .unwrap_or(device)
}

/// The MTU of the routes of each block that takes less than the device.
pub(super) fn of_blocks(
    mesh: &Mesh,
    in_use: &BTreeSet<PathId>,
    inner: &Inner,
    device: u32,
) -> BTreeMap<Cidr, u32> {
    let of_paths = mesh.paths.iter().flat_map(|path| {
        let mtu = inner.get(&path.id).copied().unwrap_or(device);
        path.inner.iter().map(move |addr| (Cidr::host(*addr), mtu))
    });
    let of_clusters = mesh.blocks.iter().flat_map(|(cluster, blocks)| {
        let mtu = of_cluster(cluster, in_use, inner, device);
        blocks.iter().map(move |block| (*block, mtu))
    });
    of_paths
        .chain(of_clusters)
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

    #[test]
    fn what_a_path_takes_is_the_smaller_of_what_was_said_and_found() {
        let (v4, v6) = ("192.0.2.1:51820", "[2001:db8::1]:51820");
        for (endpoint, outer, measured, want) in [
            (v4, Some(1400), None, Some(1340)),
            (v6, Some(1400), None, Some(1320)),
            (v4, Some(1400), Some(1240), Some(1240)),
            (v4, Some(1300), Some(1420), Some(1240)),
            (v4, None, Some(1240), Some(1240)),
            (v4, None, None, None),
        ] {
            let endpoint = Some(endpoint.parse().unwrap());
            assert_eq!(inner(endpoint, outer, measured), want);
        }
    }

    fn id(node: &str) -> PathId {
        PathId {
            cluster: "west".parse().unwrap(),
            node: node.parse().unwrap(),
        }
    }

    fn mtus(inner: &[(&str, u32)], device: u32) -> Vec<(String, u32)> {
        let blocks = ["10.64.0.0/16", "fd00:64::/48"];
        let mesh = Mesh {
            blocks: [(
                id("gw-1").cluster,
                blocks.map(|block| block.parse().unwrap()).to_vec(),
            )]
            .into(),
            ..Mesh::default()
        };
        let inner = inner.iter().map(|(node, mtu)| (id(node), *mtu)).collect();
        let in_use = [id("gw-1"), id("gw-2")].into();
        let mtus = of_blocks(&mesh, &in_use, &inner, device).into_iter();
        mtus.map(|(block, mtu)| (block.to_string(), mtu)).collect()
    }

    #[test]
    fn a_block_takes_what_every_path_in_use_leaves() {
        let both = |v4, v6| {
            vec![
                ("10.64.0.0/16".to_owned(), v4),
                ("fd00:64::/48".to_owned(), v6),
            ]
        };
        assert_eq!(mtus(&[("gw-1", 1340)], 1420), both(1340, 1340));
        assert_eq!(
            mtus(&[("gw-1", 1340), ("gw-2", 1240)], 1420),
            both(1240, 1280)
        );
        assert_eq!(mtus(&[("gw-1", 8)], 1420), both(576, 1280), "a lie");
        assert_eq!(mtus(&[("gw-3", 1240)], 1420), [], "not in use");
        assert_eq!(mtus(&[("gw-1", 1420)], 1420), [], "the device says it");
        assert_eq!(
            mtus(&[("gw-1", 1240)], 1280),
            [("10.64.0.0/16".to_owned(), 1240)]
        );
    }
}
