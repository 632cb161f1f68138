//! `struct virtio_net_hdr`, which stands before each packet of a device with `IFF_VNET_HDR`
//! (`linux/virtio_net.h`; virtio 1.2, section 5.1.6). In the byte order of the machine. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

/// Its length in bytes.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// What the packet behind it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vnet {
    /// Whether its checksum is to be completed, and where.
    pub checksum: Checksum,
    /// Whether it stands for several packets, and of which size.
    pub gso: Option<Gso>,
    /// The length of all headers; a hint when read.
    pub header: u16,
}

/// The state of a packet's checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As it was on the wire: to be verified by who cares.
    #[default]
    Complete,
    /// As it was on the wire, and verified.
    Verified,
    /// The sum of the pseudo-header stands at `start + offset`; to be completed over all from `start`.
    Partial {
        /// Where the transport header begins.
        start: u16,
        /// Where in it the checksum stands.
        offset: u16,
    },
}

/// A packet that stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Of which protocol.
    pub kind: Kind,
    /// The payload of each packet but the last, which may be shorter.
    pub size: u16,
}

/// A protocol whose packets can be segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

impl Vnet {
    /// Reads it; `None` for what no kernel sends to who asked for nothing else.
    pub fn read(bytes: &[u8; LEN]) -> Option<Self> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let size = u16::from_ne_bytes([s0, s1]);
        let kind = match gso {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Kind::TcpV4),
            GSO_TCPV6 => Some(Kind::TcpV6),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => return None,
        };
        if kind.is_some() && size == 0 {
            return None;
        }
        let checksum = if flags & NEEDS_CSUM != 0 {
            Checksum::Partial {
                start: u16::from_ne_bytes([c0, c1]),
                offset: u16::from_ne_bytes([o0, o1]),
            }
        } else if flags & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        Some(Self {
            checksum,
            gso: kind.map(|kind| Gso { kind, size }),
            header: u16::from_ne_bytes([h0, h1]),
        })
    }

    /// Its bytes.
    pub fn write(&self) -> [u8; LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Complete => (0, 0, 0),
            Checksum::Verified => (DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
        };
        let (gso, size) = match self.gso {
            None => (GSO_NONE, 0),
            Some(Gso { kind, size }) => {
                let gso = match kind {
                    Kind::TcpV4 => GSO_TCPV4,
                    Kind::TcpV6 => GSO_TCPV6,
                    Kind::Udp => GSO_UDP_L4,
                };
                (gso, size)
            }
        };
        let [h0, h1] = self.header.to_ne_bytes();
        let [s0, s1] = size.to_ne_bytes();
        let [c0, c1] = start.to_ne_bytes();
        let [o0, o1] = offset.to_ne_bytes();
        [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let with = |gso: u8, size: u8| Vnet::read(&[1, gso, 0, 0, size, 0, 20, 0, 16, 0]);
        assert!(with(0, 0).is_some());
        assert!(with(1, 9).is_some());
        for (gso, size) in [(1, 0), (4, 0), (5, 0), (3, 9), (0x81, 9), (2, 9)] {
            assert_eq!(with(gso, size), None, "{gso:#x} {size}");
        }
    }

    proptest! {
        #[test]
        fn it_is_read_as_it_was_written(bytes: [u8; LEN]) {
            if let Some(vnet) = Vnet::read(&bytes) {
                prop_assert_eq!(Vnet::read(&vnet.write()), Some(vnet));
            }
        }
    }
}
