//! The VXLAN device between the nodes of a cluster, and who is behind it. PURE.

use std::fmt;
use std::net::IpAddr;

/// The hardware address of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VXLAN device. It learns nothing by itself: whoever is behind it is told to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Its name.
    pub name: String,
    /// The number of the network, below 2^24.
    pub vni: u32,
    /// The UDP port at both ends.
    pub port: u16,
    /// The address of this node that packets leave by.
    pub local: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
    /// Its MTU, in bytes.
    pub mtu: u32,
}

impl Vxlan {
    /// Whether it is the same device: of what is left, all can be changed later.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let with_mtu = Self {
            mtu: self.mtu,
            ..other.clone()
        };
        *self == with_mtu
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} type vxlan id {} dstport {} local {} address {}",
            self.name, self.vni, self.port, self.local, self.mac
        )
    }
}

/// To which node frames for a hardware address go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fdb {
    /// The name of the VXLAN device.
    pub device: String,
    /// The hardware address.
    pub mac: Mac,
    /// The address of the node.
    pub dst: IpAddr,
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {} dst {}", self.mac, self.device, self.dst)
    }
}

/// The hardware address behind an address, for ever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The name of the device.
    pub device: String,
    /// The address.
    pub addr: IpAddr,
    /// The hardware address.
    pub mac: Mac,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dev {} lladdr {} permanent",
            self.addr, self.device, self.mac
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_read_like_ip_and_bridge() {
        let mac = Mac([2, 0, 0, 0, 0, 0xa]);
        let vxlan = Vxlan {
            name: "subsea-vx".into(),
            vni: 583,
            port: 4850,
            local: "192.0.2.1".parse().unwrap(),
            mac,
            mtu: 1370,
        };
        assert_eq!(
            vxlan.to_string(),
            "subsea-vx type vxlan id 583 dstport 4850 local 192.0.2.1 address 02:00:00:00:00:0a"
        );
        let narrow = Vxlan {
            mtu: 1280,
            ..vxlan.clone()
        };
        assert!(vxlan.is_same_as(&narrow));
        assert!(!vxlan.is_same_as(&Vxlan {
            port: 4851,
            ..vxlan.clone()
        }));
        let fdb = Fdb {
            device: "subsea-vx".into(),
            mac,
            dst: "192.0.2.2".parse().unwrap(),
        };
        assert_eq!(
            fdb.to_string(),
            "02:00:00:00:00:0a dev subsea-vx dst 192.0.2.2"
        );
        let neighbour = Neighbour {
            device: "subsea-vx".into(),
            addr: "fe80::a".parse().unwrap(),
            mac,
        };
        assert_eq!(
            neighbour.to_string(),
            "fe80::a dev subsea-vx lladdr 02:00:00:00:00:0a permanent"
        );
    }
}
