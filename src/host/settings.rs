//! Which names and numbers of the kernel are ours. PURE.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::net::netlink::types::{Mark, RULE_PREF, TABLE};
use crate::net::nft::ruleset;

/// Which of the daemons that share a kernel: each keeps its own part, and takes nothing of the other's for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// What leads into the tunnels.
    #[default]
    Gateway,
    /// What leads to a gateway.
    Agent,
}

impl Part {
    /// The numbers of its next hops and groups.
    pub fn next_hop_ids(self) -> Range<u32> {
        match self {
            Self::Gateway => 0x5300_0000..0x5380_0000,
            Self::Agent => 0x5380_0000..0x5400_0000,
        }
    }

    /// The name of its table of nftables, of family `inet`.
    pub fn nft_table(self) -> &'static str {
        match self {
            Self::Gateway => ruleset::TABLE,
            Self::Agent => ruleset::AGENT_TABLE,
        }
    }
}

/// Which names and numbers of the kernel are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whose they are.
    pub part: Part,
    /// The tunnel device, if there is one; those of further slots are named after it.
    pub device: Option<String>,
    /// The VXLAN device between nodes, if there may be one.
    pub vxlan: Option<String>,
    /// The routing table.
    pub table: u32,
    /// Further routing tables.
    pub tables: BTreeSet<u32>,
    /// The preference of the rule.
    pub rule_pref: u32,
    /// What our own sockets are marked with.
    pub mark: Mark,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            part: Part::Gateway,
            device: Some("subsea0".into()),
            vxlan: None,
            table: TABLE,
            tables: BTreeSet::new(),
            rule_pref: RULE_PREF,
            mark: Mark::default(),
        }
    }
}

impl Settings {
    /// All routing tables.
    pub fn all_tables(&self) -> BTreeSet<u32> {
        let mut all = self.tables.clone();
        all.insert(self.table);
        all
    }

    /// The device, and the preference, by which rules for what comes in by a device are ours.
    pub(super) fn from(&self) -> Option<(&str, u32)> {
        let device = self.vxlan.as_deref();
        device.map(|device| (device, self.rule_pref.saturating_sub(2)))
    }

    /// Refuses what the kernel would refuse later, and what would touch things of others.
    pub(super) fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        for device in self.device.iter().chain(&self.vxlan) {
            if device.is_empty() || device.len() > 15 || !device.chars().all(plain) {
                return Err(format!(
                    "`{device}` is no device name: use 1 to 15 letters, digits, `.`, `_` and `-`"
                ));
            }
            if matches!(device.as_str(), "." | ".." | "all" | "default" | "lo") {
                return Err(format!("`{device}` cannot be the tunnel device"));
            }
        }
        if let Some(table) = self
            .all_tables()
            .into_iter()
            .find(|table| matches!(table, 0 | 253..=255))
        {
            return Err(format!(
                "table {table} belongs to the system: use another one"
            ));
        }
        if self.mark.value == 0 || self.mark.value & !self.mark.mask != 0 {
            return Err(format!(
                "mark {} has no bit, or bits outside its mask",
                self.mark
            ));
        }
        Ok(())
    }
}
