//! Which tunnel devices there are, which blocks go to each, and how large their packets may be. PURE.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::Cidr;

use super::mesh::{Mesh, Path};

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

/// The device towards each remote block, that of the gateway that it goes to; none where that device is `lost`. Blocks of
/// members without a gateway go to the first, which answers that nobody has them.
pub fn blocks(
    mesh: &Mesh,
    device_of: impl Fn(u16) -> String,
    lost: &BTreeMap<String, String>,
) -> BTreeMap<Cidr, Option<String>> {
    let of_path = |path: &Path| {
        let inner = path.inner.iter().copied().map(Cidr::host);
        let blocks = inner.chain(path.cidrs.iter().copied());
        blocks.map(|block| (block, path.slot)).collect::<Vec<_>>()
    };
    let slots: BTreeMap<Cidr, u16> = mesh.paths.iter().flat_map(of_path).collect();
    let device = |block: &Cidr| {
        let device = device_of(slots.get(block).copied().unwrap_or(0));
        Some(device).filter(|device| !lost.contains_key(device))
    };
    let remote = mesh.remote.iter();
    remote.map(|block| (*block, device(block))).collect()
}

#[cfg(test)]
mod tests {
    use subsea_api::PublicKey;

    use super::super::mesh::PathId;
    use super::*;

    fn path(node: &str, slot: u16, inner: &str, cidrs: &[&str]) -> Path {
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
            cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn blocks_go_to_the_device_of_the_gateway_that_has_them() {
        let paths = vec![
            path("gw-1", 0, "198.19.0.1", &[]),
            path("gw-2", 1, "198.19.0.2", &["10.2.0.0/16"]),
        ];
        let remote = [
            "10.2.0.0/16",
            "10.3.0.0/16",
            "198.19.0.1/32",
            "198.19.0.2/32",
        ];
        let mesh = Mesh {
            paths,
            remote: remote.map(|c| c.parse().unwrap()).to_vec(),
            ..Mesh::default()
        };
        let device_of = |slot| format!("subsea{slot}");
        let devices = |lost: &BTreeMap<_, _>| -> Vec<Option<String>> {
            blocks(&mesh, device_of, lost).into_values().collect()
        };
        let some = |name: &str| Some(name.to_owned());
        let [first, second] = ["subsea0", "subsea1"].map(some);
        assert_eq!(
            devices(&BTreeMap::new()),
            [&second, &first, &first, &second].map(Clone::clone)
        );
        let lost = BTreeMap::from([("subsea1".to_owned(), "gone".to_owned())]);
        assert_eq!(devices(&lost), [None, first.clone(), first, None]);
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
