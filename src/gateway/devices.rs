//! Which tunnel devices there are, which blocks go to each, and how large their packets may be. PURE.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::{Cidr, ClusterId};

use super::mesh::{Mesh, Path, PathId};

/// The MTU of the tunnel devices where the underlay allows it.
const MTU: u32 = 1420;
/// What `WireGuard` adds to a packet, over IPv6.
const OVERHEAD: u32 = 80;
/// The least that IPv6 needs.
const MIN_MTU: u32 = 1280;

/// The MTU: what the operator says, else what fits into the underlay's.
pub fn mtu(wanted: Option<u32>, underlay: Option<u32>) -> u32 {
    let fits = underlay.map_or(MTU, |underlay| underlay.saturating_sub(OVERHEAD));
    wanted.unwrap_or_else(|| fits.clamp(MIN_MTU, MTU))
}

/// The names of all devices; that of slot 0 is always among them.
pub fn names(paths: &[Path], device_of: impl Fn(u16) -> String) -> BTreeSet<String> {
    let slots = paths.iter().map(|path| path.slot).chain([0]);
    slots.map(device_of).collect()
}

/// The device towards each remote block: of inner addresses that of their gateway, of a cluster's blocks that of the first
/// gateway that carries them; none where that device is `lost`. Blocks of members without a gateway go to the first device,
/// which answers that nobody has them.
pub fn blocks(
    mesh: &Mesh,
    in_use: &BTreeSet<PathId>,
    device_of: impl Fn(u16) -> String,
    lost: &BTreeMap<String, String>,
) -> BTreeMap<Cidr, Option<String>> {
    let mut slots: BTreeMap<Cidr, u16> = BTreeMap::new();
    for path in &mesh.paths {
        slots.extend(path.inner.iter().map(|addr| (Cidr::host(*addr), path.slot)));
    }
    for (cluster, blocks) in &mesh.blocks {
        let carriers = carriers(mesh, cluster, in_use);
        let slot = carriers.into_iter().next().unwrap_or(0);
        slots.extend(blocks.iter().map(|block| (*block, slot)));
    }
    let device = |block: &Cidr| {
        let device = device_of(slots.get(block).copied().unwrap_or(0));
        Some(device).filter(|device| !lost.contains_key(device))
    };
    let remote = mesh.remote.iter();
    remote.map(|block| (*block, device(block))).collect()
}

/// The slots of the gateways that carry a cluster's flows; of all its gateways, while nobody has said which.
pub(super) fn carriers(
    mesh: &Mesh,
    cluster: &ClusterId,
    in_use: &BTreeSet<PathId>,
) -> BTreeSet<u16> {
    let of_cluster = || mesh.paths.iter().filter(|path| path.id.cluster == *cluster);
    let used: BTreeSet<u16> = of_cluster()
        .filter(|path| in_use.contains(&path.id))
        .map(|path| path.slot)
        .collect();
    if used.is_empty() {
        of_cluster().map(|path| path.slot).collect()
    } else {
        used
    }
}

#[cfg(test)]
pub(super) mod tests {
    use subsea_api::PublicKey;

    use super::*;

    fn path(node: &str, slot: u16, inner: &str) -> Path {
        Path {
            id: PathId {
                cluster: "west".parse().unwrap(),
                node: node.parse().unwrap(),
            },
            key: PublicKey::from_bytes([7; 32]).unwrap(),
            endpoint: None,
            inner: vec![inner.parse().unwrap()],
            slot,
            stripes: Vec::new(),
            stock: None,
            until: None,
            expired: None,
        }
    }

    pub(in super::super) fn mesh() -> Mesh {
        let remote = [
            "10.2.0.0/16",
            "10.3.0.0/16",
            "198.19.0.1/32",
            "198.19.0.2/32",
        ];
        let [west, north]: [ClusterId; 2] = ["west", "north"].map(|c| c.parse().unwrap());
        Mesh {
            paths: vec![path("gw-1", 0, "198.19.0.1"), path("gw-2", 1, "198.19.0.2")],
            remote: remote.map(|c| c.parse().unwrap()).to_vec(),
            blocks: [
                (west, vec!["10.2.0.0/16".parse().unwrap()]),
                (north, vec!["10.3.0.0/16".parse().unwrap()]),
            ]
            .into(),
            ..Mesh::default()
        }
    }

    pub(in super::super) fn device_of(slot: u16) -> String {
        format!("subsea{slot}")
    }

    pub(in super::super) fn used(nodes: &[&str]) -> BTreeSet<PathId> {
        let id = |node: &&str| PathId {
            cluster: "west".parse().unwrap(),
            node: node.parse().unwrap(),
        };
        nodes.iter().map(id).collect()
    }

    #[test]
    fn blocks_go_to_a_device_of_a_gateway_that_carries_them() {
        let mesh = mesh();
        let devices = |in_use: &[&str], lost: &BTreeMap<_, _>| -> Vec<Option<String>> {
            let blocks = blocks(&mesh, &used(in_use), device_of, lost);
            blocks.into_values().collect()
        };
        let some = |name: &str| Some(name.to_owned());
        let [first, second] = ["subsea0", "subsea1"].map(some);
        let none = BTreeMap::new();
        assert_eq!(
            devices(&["gw-2"], &none),
            [&second, &first, &first, &second].map(Clone::clone)
        );
        assert_eq!(devices(&["gw-1", "gw-2"], &none)[0], first);
        assert_eq!(devices(&[], &none)[0], first);
        let lost = BTreeMap::from([("subsea1".to_owned(), "gone".to_owned())]);
        assert_eq!(
            devices(&["gw-2"], &lost),
            [None, first.clone(), first, None]
        );
        assert_eq!(names(&mesh.paths, device_of).len(), 2);
        assert_eq!(names(&[], device_of), BTreeSet::from(["subsea0".into()]));
    }

    #[test]
    fn the_mtu_fits_into_the_underlay_but_ipv6_fits_into_it() {
        for (wanted, underlay, mtu) in [
            (None, None, 1420),
            (None, Some(1500), 1420),
            (None, Some(9000), 1420),
            (None, Some(1450), 1370),
            (None, Some(1300), 1280),
            (Some(1300), Some(1500), 1300),
        ] {
            assert_eq!(super::mtu(wanted, underlay), mtu);
        }
    }
}
