//! How packets get from node to node: in VXLAN, or as they are where both nodes are on one link. PURE.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, Family};

/// How packets get from node to node; the same on all nodes of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encap {
    /// In VXLAN: what is between the nodes sees their own addresses only.
    #[default]
    Vxlan,
    /// As they are, to nodes on the same link.
    None,
}

impl fmt::Display for Encap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::None => "none",
        })
    }
}

/// A network that a link of ours is connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connected {
    /// The network, longer than nothing and shorter than a single address.
    pub network: Cidr,
    /// The name of the link.
    pub device: String,
}

impl Connected {
    /// The network of an address with its prefix on a link; none where the address is alone.
    pub fn of(address: IpAddr, prefix_len: u8, device: &str) -> Option<Self> {
        let network = Cidr::containing(address, prefix_len);
        let alone = network.prefix_len() == network.family().bits();
        let useful = !alone && network.prefix_len() > 0 && !is_link_local(address);
        useful.then(|| Self {
            network,
            device: device.to_owned(),
        })
    }
}

/// A node's addresses on our link, by family, each with the link that leads there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnLink(BTreeMap<Family, (IpAddr, String)>);

impl OnLink {
    /// Those of `addresses` that are in networks of ours: the first of each family.
    pub fn of(addresses: impl IntoIterator<Item = IpAddr>, connected: &[Connected]) -> Self {
        let mut found = BTreeMap::new();
        for address in addresses {
            let networks = connected.iter().filter(|c| c.network.contains(address));
            let nearest = networks.max_by_key(|c| c.network.prefix_len());
            if let Some(Connected { network, device }) = nearest {
                found
                    .entry(network.family())
                    .or_insert_with(|| (address, device.clone()));
            }
        }
        Self(found)
    }

    /// The address of a family, and the link that leads there.
    pub fn get(&self, family: Family) -> Option<(IpAddr, &str)> {
        let found = self.0.get(&family);
        found.map(|(address, device)| (*address, device.as_str()))
    }

    /// All of them, by family.
    pub fn all(&self) -> impl Iterator<Item = (Family, IpAddr, &str)> {
        let all = self.0.iter();
        all.map(|(family, (address, device))| (*family, *address, device.as_str()))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(address: &str, prefix_len: u8, device: &str) -> Option<Connected> {
        Connected::of(address.parse().unwrap(), prefix_len, device)
    }

    #[test]
    fn a_node_is_on_link_by_the_nearest_network() {
        let networks: Vec<Connected> = [
            connected("192.0.2.1", 24, "eth0"),
            connected("192.0.2.129", 25, "eth1"),
            connected("2001:db8::1", 64, "eth0"),
            // Alone, and the same on every link.
            connected("198.51.100.1", 32, "eth0"),
            connected("fe80::1", 64, "eth0"),
        ]
        .into_iter()
        .flatten()
        .collect();
        assert_eq!(networks.len(), 3);
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|a| a.parse().unwrap());
            let found = OnLink::of(addresses, &networks);
            let texts = found.all().map(|(_, a, d)| format!("{a} {d}"));
            texts.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(of(&["192.0.2.2", "192.0.2.3"]), "192.0.2.2 eth0");
        assert_eq!(of(&["192.0.2.200"]), "192.0.2.200 eth1");
        assert_eq!(
            of(&["2001:db8::7", "192.0.2.7"]),
            "192.0.2.7 eth0, 2001:db8::7 eth0"
        );
        assert_eq!(of(&["198.51.100.2", "203.0.113.1", "fe80::2"]), "");
    }
}
