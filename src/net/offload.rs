//! What the kernel may do in our stead on the way of a packet, and whether it does. PURE.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Which offloads may be used, where the host has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a choice of its own on the command line"
)]
pub struct Offloads {
    /// Large TCP packets from and to the device (`IFF_VNET_HDR`, TSO).
    pub tun_tso: bool,
    /// Large UDP packets from and to the device (USO, Linux 6.2).
    pub tun_uso: bool,
    /// Many datagrams of the tunnel in one `sendmsg` (`UDP_SEGMENT`, Linux 4.18).
    pub udp_gso: bool,
    /// Many in one `recvmsg` (`UDP_GRO`, Linux 5.0).
    pub udp_gro: bool,
}

const NAMES: [&str; 4] = ["tun-tso", "tun-uso", "udp-gso", "udp-gro"];

impl Offloads {
    /// All that the host has.
    pub const AUTO: Self = Self::from_array([true; 4]);
    /// None.
    pub const OFF: Self = Self::from_array([false; 4]);

    const fn from_array([tun_tso, tun_uso, udp_gso, udp_gro]: [bool; 4]) -> Self {
        Self {
            tun_tso,
            tun_uso,
            udp_gso,
            udp_gro,
        }
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::AUTO
    }
}

/// A text that is no choice of offloads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no offload: use `auto`, `off`, or a list of tun-tso, tun-uso, udp-gso, udp-gro")]
pub struct OffloadsError(String);

impl FromStr for Offloads {
    type Err = OffloadsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => return Ok(Self::AUTO),
            "off" => return Ok(Self::OFF),
            _ => {}
        }
        let mut chosen = [false; 4];
        for part in text.split(',') {
            let known = chosen.iter_mut().zip(NAMES);
            match known.into_iter().find(|(_, name)| *name == part) {
                Some((flag, _)) => *flag = true,
                None => return Err(OffloadsError(part.chars().take(40).collect())),
            }
        }
        Ok(Self::from_array(chosen))
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [self.tun_tso, self.tun_uso, self.udp_gso, self.udp_gro];
        let names: Vec<&str> = NAMES
            .into_iter()
            .zip(flags)
            .filter(|(_, on)| *on)
            .map(|(name, _)| name)
            .collect();
        match names.len() {
            0 => f.write_str("off"),
            4 => f.write_str("auto"),
            _ => f.write_str(&names.join(",")),
        }
    }
}

/// Something in use until there is a reason against it, which is kept.
#[derive(Debug)]
pub struct Switch {
    on: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Switch {
    /// In use.
    pub fn on() -> Self {
        Self {
            on: AtomicBool::new(true),
            reason: Mutex::new(None),
        }
    }

    /// In use when `allowed`.
    pub fn allowed(allowed: bool) -> Self {
        let switch = Self::on();
        if !allowed {
            switch.turn_off("not allowed by --offloads");
        }
        switch
    }

    /// Whether it is in use.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Ends its use. The first reason is kept; true when this is the first.
    pub fn turn_off(&self, reason: impl fmt::Display) -> bool {
        let first = self.on.swap(false, Ordering::Relaxed);
        if first {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_string());
        }
        first
    }

    /// Why it is not in use.
    pub fn reason(&self) -> Option<String> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in [
            "auto",
            "off",
            "udp-gso",
            "tun-tso,udp-gro",
            "tun-tso,tun-uso,udp-gso",
        ] {
            assert_eq!(text.parse::<Offloads>().unwrap().to_string(), text);
        }
        assert_eq!(
            "udp-gro,tun-tso,udp-gso,tun-uso".parse(),
            Ok(Offloads::AUTO)
        );
        for bad in ["", "on", "udp-gso,", "auto,off", "tso"] {
            assert!(bad.parse::<Offloads>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_reason_is_kept() {
        let switch = Switch::on();
        assert!(switch.is_on() && switch.reason().is_none());
        assert!(switch.turn_off("one"));
        assert!(!switch.turn_off("two"));
        assert_eq!(
            (switch.is_on(), switch.reason().as_deref()),
            (false, Some("one"))
        );
        assert!(!Switch::allowed(false).is_on());
    }
}
