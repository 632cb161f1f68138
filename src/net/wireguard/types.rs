//! WireGuard devices of the kernel in our own words. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use subsea_api::snapshot::MAX_LISTENERS;
use subsea_api::{Cidr, PublicKey};

use crate::key::PrivateKey;

/// The group of every device that we make, by which we know it again: `ip link show group 583`.
pub const GROUP: u32 = 583;

/// The names of our devices: one for slot 0, and from its stem one for each further slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    device: String,
    stem: String,
    number: u32,
}

impl Names {
    /// The names that follow from the device of slot 0: after `subsea0` comes `subsea1`, after `tunnel` `tunnel1`.
    pub fn new(device: &str) -> Self {
        let stem = device.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = device.strip_prefix(stem).unwrap_or_default();
        // Too many digits for a number belong to the stem.
        let (stem, number) = digits
            .parse()
            .map_or((device, 0), |number: u16| (stem, u32::from(number)));
        Self {
            device: device.to_owned(),
            stem: stem.to_owned(),
            number,
        }
    }

    /// The device of a slot.
    pub fn of_slot(&self, slot: u16) -> String {
        if slot == 0 {
            self.device.clone()
        } else {
            format!("{}{}", self.stem, self.number + u32::from(slot))
        }
    }

    /// The device of the last slot that a gateway may have a listener for: the longest name there may be.
    pub fn of_last_slot(&self) -> String {
        let slots = u16::try_from(MAX_LISTENERS).unwrap_or(u16::MAX);
        self.of_slot(slots.saturating_sub(1))
    }

    /// The slot of a device, if the name may be one of ours.
    pub fn slot(&self, name: &str) -> Option<u16> {
        if name == self.device {
            return Some(0);
        }
        let number: u32 = name.strip_prefix(&self.stem)?.parse().ok()?;
        let slot = u16::try_from(number.checked_sub(self.number)?).ok()?;
        (self.of_slot(slot) == name).then_some(slot)
    }
}

/// A device of any kind, as far as the driver asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index; another device under the same name has another one.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it: `wireguard`, `tun`; `None` for hardware.
    pub kind: Option<String>,
    /// Its group.
    pub group: u32,
    /// The largest packet that it takes.
    pub mtu: u32,
    /// Whether its other end is there: with a TUN device, that a process is attached to it.
    pub attached: bool,
    /// Packets that it received and could not take.
    pub rx_errors: u64,
    /// Packets that it was to send and could not.
    pub tx_errors: u64,
}

impl Link {
    /// Whether we made it as a WireGuard device.
    pub fn is_ours(&self) -> bool {
        self.group == GROUP && self.kind.as_deref() == Some("wireguard")
    }
}

/// What the kernel knows of a WireGuard device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its own public key; none before it has a private key.
    pub public_key: Option<PublicKey>,
    /// The port that it listens on.
    pub port: u16,
    /// The mark of its packets.
    pub fwmark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// What the kernel knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where it is now.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
    /// Inner sources accepted from it, and inner destinations sent to it.
    pub allowed: BTreeSet<Cidr>,
    /// When the last handshake was completed, since the epoch.
    pub latest_handshake: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// A change of a device; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// A new private key ends all sessions.
    pub key: Option<PrivateKey>,
    /// The port to listen on.
    pub port: Option<u16>,
    /// The mark of its packets.
    pub fwmark: Option<u32>,
}

impl Settings {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.key.is_none() && self.port.is_none() && self.fwmark.is_none()
    }
}

/// A change of one peer, which is added if it is not there; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Which.
    pub key: PublicKey,
    /// Removes it.
    pub remove: bool,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: Option<u16>,
    /// Whether it loses all blocks first. Packets to it that come just then are refused.
    pub replace: bool,
    /// Blocks that it gets, from whichever peer of the device has them.
    pub allowed: Vec<Cidr>,
}

impl PeerChange {
    /// A change of nothing yet.
    pub fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            endpoint: None,
            keepalive: None,
            replace: false,
            allowed: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_first() {
        for (device, slot, name) in [
            ("subsea0", 0, "subsea0"),
            ("subsea0", 1, "subsea1"),
            ("subsea0", 12, "subsea12"),
            ("wg5", 0, "wg5"),
            ("wg5", 2, "wg7"),
            ("tunnel", 0, "tunnel"),
            ("tunnel", 1, "tunnel1"),
            ("x007", 0, "x007"),
            ("x007", 1, "x8"),
            ("a99999999999", 1, "a999999999991"),
        ] {
            let names = Names::new(device);
            assert_eq!(names.of_slot(slot), name);
            assert_eq!(names.slot(name), Some(slot), "{name} of {device}");
        }
    }

    #[test]
    fn the_longest_name_is_that_of_the_last_slot() {
        for (device, name) in [
            ("subsea0", "subsea15"),
            ("wg90", "wg105"),
            ("abcdefghijklmno", "abcdefghijklmno15"),
        ] {
            assert_eq!(Names::new(device).of_last_slot(), name);
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        for (device, name) in [
            ("subsea0", "subsea"),
            ("subsea0", "subsea01"),
            ("subsea0", "subsea1x"),
            ("subsea0", "sub1"),
            ("wg5", "wg4"),
            ("wg5", "wg"),
            ("tunnel", "tunnel0"),
            ("x007", "x7"),
        ] {
            assert_eq!(Names::new(device).slot(name), None, "{name} of {device}");
        }
    }
}
