//! What a node is called inside the VXLAN of its cluster: a MAC and a link-local address, derived from its name, so that
//! every node knows those of every other and nothing has to be handed out. PURE.

use std::net::Ipv6Addr;

use ring::digest::{SHA256, digest};
use subsea_api::{ClusterId, FleetName, NodeName};

use crate::net::netlink::overlay::Mac;

/// What a node is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// Locally administered, unicast; 46 bits of a hash, so that the chance that two of 5,000 nodes share one is 2 in ten
    /// million.
    pub mac: Mac,
    /// In `fe80::/64`; 64 further bits of the hash.
    pub inner: Ipv6Addr,
}

impl Names {
    /// Those of a node.
    pub fn of(fleet: &FleetName, cluster: &ClusterId, node: &NodeName) -> Self {
        // No name has a slash in it, so no two nodes hash the same text.
        let text = format!("subsea vxlan/{fleet}/{cluster}/{node}");
        let hash = digest(&SHA256, text.as_bytes());
        let mut bytes = hash.as_ref().iter().copied();
        let mut mac = [0; 6];
        mac.fill_with(|| bytes.next().unwrap_or_default());
        // IEEE 802: bit 0 of the first byte is for groups, bit 1 says that nobody assigned it.
        mac[0] = (mac[0] & !1) | 2;
        let mut inner = [0; 16];
        inner[0] = 0xfe;
        inner[1] = 0x80;
        inner[8..].fill_with(|| bytes.next().unwrap_or_default());
        Self {
            mac: Mac(mac),
            inner: inner.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(cluster: &str, node: &str) -> Names {
        Names::of(
            &"harbour".parse().unwrap(),
            &cluster.parse().unwrap(),
            &node.parse().unwrap(),
        )
    }

    #[test]
    fn they_are_fixed_and_of_the_right_kind() {
        let names = of("east", "node-1");
        assert_eq!(names, of("east", "node-1"));
        assert!(names.inner.is_unicast_link_local());
        assert_eq!(names.inner.segments()[1..4], [0, 0, 0]);
        assert_eq!(names.mac.0[0] & 3, 2);
        assert_eq!(names.mac.to_string().len(), 17);
    }

    #[test]
    fn no_two_of_many_nodes_are_called_alike() {
        let all: Vec<Names> = (0..5_000)
            .map(|n| of("east", &format!("node-{n}")))
            .collect();
        let macs: BTreeSet<Mac> = all.iter().map(|names| names.mac).collect();
        let inner: BTreeSet<Ipv6Addr> = all.iter().map(|names| names.inner).collect();
        assert_eq!((macs.len(), inner.len()), (5_000, 5_000));
        assert_ne!(of("east", "node-1"), of("west", "node-1"));
    }
}
