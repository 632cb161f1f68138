//! What a table of ours should hold, as text for `nft`; [`super::standing`] puts it into transactions. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use subsea_api::{Cidr, Family};

use super::counters::{FOREIGN_DESTINATION, OUTBOUND_SOURCE};
pub use super::guard::Guard;
pub use super::roads::{Bits, Ingress, Road, Roads};
use super::standing::Text;
use super::{guard, roads};

/// The name of the gateway's table, of family `inet`.
pub const TABLE: &str = "subsea";
/// The name of the agent's.
pub const AGENT_TABLE: &str = "subsea-agent";

/// What stands in a listing of our table only when it checks what comes out of the tunnels.
pub const INBOUND: &str = "chain inbound {";

pub(super) const FAMILIES: [(Family, u8, &str); 2] =
    [(Family::V4, 4, "ipv4_addr"), (Family::V6, 6, "ipv6_addr")];

/// What the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tunnel devices.
    pub devices: BTreeSet<String>,
    /// Links of others by which packets to and from other clusters go as they are.
    pub links: BTreeSet<String>,
    /// Our own blocks.
    pub local: BTreeSet<Cidr>,
    /// The blocks of other clusters.
    pub remote: BTreeSet<Cidr>,
    /// What may come out of the tunnels as a destination, and go into them as a source, where the driver itself does
    /// not look at that.
    pub checked: Option<BTreeSet<Cidr>>,
    /// What keeps replies on the road of their flow.
    pub roads: Roads,
    /// Who may send by VXLAN.
    pub guard: Option<Guard>,
}

impl Ruleset {
    /// Whether packets are let in only because of what this checks.
    pub fn checks(&self) -> bool {
        self.checked.is_some() || self.guard.is_some()
    }

    /// Whether a listing of our table holds the checks that this wants.
    pub fn is_checked_by(&self, listing: &str) -> bool {
        let checked = self.checked.is_none() || listing.contains(INBOUND);
        checked && (self.guard.is_none() || listing.contains(guard::CHAIN))
    }

    /// The whole table, in parts. The counters go on from what they have `counted`.
    pub fn render(&self, counted: &BTreeMap<String, u64>) -> Text {
        let (mut sets, mut text) = (Vec::new(), String::new());
        for (family, number, kind) in FAMILIES {
            for (name, blocks) in [("local", &self.local), ("remote", &self.remote)] {
                sets.push(set(&format!("{name}{number}"), kind, blocks, family));
            }
        }
        keep_source(&mut text);
        // With no device there is nothing to match.
        let checked = self.checked.as_ref().filter(|_| !self.devices.is_empty());
        if !self.devices.is_empty() || !self.links.is_empty() {
            self.clamp(&mut text);
        }
        if let Some(ours) = checked {
            for (family, number, kind) in FAMILIES {
                sets.push(set(&format!("ours{number}"), kind, ours, family));
            }
            self.check(&mut text, counted);
        }
        if let Some(guard) = &self.guard {
            sets.extend(guard::sources(guard));
            guard::render(&mut text, guard, counted);
        }
        roads::render(&mut text, &self.roads);
        Text { sets, rest: text }
    }

    /// A rule's match of our devices.
    fn devices(&self) -> String {
        Self::any_of(&self.devices)
    }

    fn any_of(devices: &BTreeSet<String>) -> String {
        let names: Vec<String> = devices.iter().map(|d| format!("\"{d}\"")).collect();
        match names.as_slice() {
            [one] => one.clone(),
            many => format!("{{ {} }}", many.join(", ")),
        }
    }

    /// The checks of both directions for a driver that has none: the kernel's `WireGuard` knows the sender's blocks, but
    /// not ours. Before any translation of the destination, and after any of the source. Since only ours may come in,
    /// nothing goes from tunnel to tunnel.
    fn check(&self, text: &mut String, counted: &BTreeMap<String, u64>) {
        for name in [FOREIGN_DESTINATION, OUTBOUND_SOURCE] {
            let packets = counted.get(name).copied().unwrap_or(0);
            let _ = writeln!(
                text,
                "\tcounter {name} {{\n\t\tpackets {packets} bytes 0\n\t}}"
            );
        }
        let devices = self.devices();
        let _ = write!(
            text,
            "\t{INBOUND}
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname != {devices} accept
\t\tip daddr != @ours4 counter name \"{FOREIGN_DESTINATION}\" drop
\t\tip6 daddr != @ours6 counter name \"{FOREIGN_DESTINATION}\" drop
\t}}
\tchain outbound {{
\t\ttype filter hook postrouting priority 300; policy accept;
\t\toifname != {devices} accept
"
        );
        // What the kernel says to its neighbours has none to hear it: it is no drop that anybody should look into.
        for quiet in [
            "ip saddr { 0.0.0.0, 169.254.0.0/16 }",
            "ip daddr { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }",
            "ip6 saddr { ::, fe80::/10 }",
            "ip6 daddr { fe80::/10, ff00::/8 }",
        ] {
            let _ = writeln!(text, "\t\t{quiet} drop");
        }
        let _ = write!(
            text,
            "\t\tip saddr != @ours4 counter name \"{OUTBOUND_SOURCE}\" drop
\t\tip6 saddr != @ours6 counter name \"{OUTBOUND_SOURCE}\" drop
\t}}
"
        );
    }

    /// TCP learns the tunnel's MTU from the handshake, whichever side opens and whichever side is asked:
    /// `rt mtu` is the smaller of the two directions.
    fn clamp(&self, text: &mut String) {
        text.push_str(
            "\tchain clamp {\n\t\ttype filter hook forward priority mangle; policy accept;\n",
        );
        let clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
        for (direction, end) in [("oifname", "daddr"), ("iifname", "saddr")] {
            if !self.devices.is_empty() {
                let devices = self.devices();
                let _ = writeln!(text, "\t\t{direction} {devices} {clamp}");
            }
            if self.links.is_empty() {
                continue;
            }
            let links = Self::any_of(&self.links);
            for (ip, number) in [("ip", 4), ("ip6", 6)] {
                let _ = writeln!(
                    text,
                    "\t\t{direction} {links} {ip} {end} @remote{number} {clamp}"
                );
            }
        }
        text.push_str("\t}\n");
    }
}

/// The source address survives: a flow that has a source translation already, though it be to itself, is
/// left alone by every later masquerade. An `accept` would not do: it ends our chain only.
fn keep_source(text: &mut String) {
    text.push_str(
        "\tchain keep-source {\n\t\ttype nat hook postrouting priority 90; policy accept;\n",
    );
    for (ip, number) in [("ip", 4), ("ip6", 6)] {
        for (from, to) in [("local", "remote"), ("remote", "local")] {
            let _ = writeln!(
                text,
                "\t\t{ip} saddr @{from}{number} {ip} daddr @{to}{number} snat {ip} to {ip} saddr"
            );
        }
    }
    text.push_str("\t}\n");
}

fn set(name: &str, kind: &str, blocks: &BTreeSet<Cidr>, family: Family) -> (String, String) {
    let blocks = without_covered(blocks, family);
    let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    (name.to_owned(), intervals(kind, &blocks))
}

/// What stands in the braces of a set of intervals.
pub(super) fn intervals(kind: &str, elements: &[String]) -> String {
    let mut text = format!("\t\ttype {kind}\n\t\tflags interval\n");
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
    }
    text
}

/// Intervals of a set must not overlap: a block inside another one goes. In their order a block stands directly
/// before those inside it.
pub(super) fn without_covered(blocks: &BTreeSet<Cidr>, family: Family) -> Vec<Cidr> {
    let mut kept: Vec<Cidr> = Vec::new();
    for block in blocks.iter().filter(|b| b.family() == family) {
        if !kept.last().is_some_and(|last| last.covers(*block)) {
            kept.push(*block);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nft::standing::Standing;

    fn blocks(texts: &[&str]) -> BTreeSet<Cidr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_whole_table() {
        let ruleset = Ruleset {
            devices: BTreeSet::from(["subsea0".into()]),
            checked: None,
            local: blocks(&["10.32.0.0/16", "198.19.0.1/32", "fd00:32::/48"]),
            remote: blocks(&["10.64.0.0/16", "10.64.7.0/24", "10.65.0.0/16"]),
            ..Ruleset::default()
        };
        let expected = r#"add table inet subsea
table inet subsea {
	set local4-a {
		type ipv4_addr
		flags interval
		elements = { 10.32.0.0/16, 198.19.0.1/32 }
	}
	set remote4-a {
		type ipv4_addr
		flags interval
		elements = { 10.64.0.0/16, 10.65.0.0/16 }
	}
	set local6-a {
		type ipv6_addr
		flags interval
		elements = { fd00:32::/48 }
	}
	set remote6-a {
		type ipv6_addr
		flags interval
	}
}
flush table inet subsea
table inet subsea {
	chain keep-source {
		type nat hook postrouting priority 90; policy accept;
		ip saddr @local4-a ip daddr @remote4-a snat ip to ip saddr
		ip saddr @remote4-a ip daddr @local4-a snat ip to ip saddr
		ip6 saddr @local6-a ip6 daddr @remote6-a snat ip6 to ip6 saddr
		ip6 saddr @remote6-a ip6 daddr @local6-a snat ip6 to ip6 saddr
	}
	chain clamp {
		type filter hook forward priority mangle; policy accept;
		oifname "subsea0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		iifname "subsea0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
	}
}
"#;
        let made = Standing::default().transactions(TABLE, &ruleset.render(&BTreeMap::new()));
        assert_eq!(made.concat(), expected);
    }

    #[test]
    fn on_links_of_others_only_what_is_for_other_clusters_is_clamped() {
        let ruleset = Ruleset {
            links: BTreeSet::from(["eth0".into()]),
            remote: blocks(&["10.64.0.0/16"]),
            ..Ruleset::default()
        };
        let text = ruleset.render(&BTreeMap::new()).rest;
        let clamps: Vec<&str> = text.lines().filter(|l| l.contains("maxseg")).collect();
        assert_eq!(clamps.len(), 4, "{text}");
        assert!(clamps.iter().all(|line| line.contains("@remote")), "{text}");
        assert!(clamps[0].contains("oifname \"eth0\" ip daddr @remote4 tcp flags"));
    }

    #[test]
    fn the_checks_of_a_driver_that_has_none() {
        let ruleset = Ruleset {
            devices: BTreeSet::from(["subsea0".into(), "subsea1".into()]),
            local: blocks(&["10.32.0.0/16", "192.0.2.0/24"]),
            remote: blocks(&["10.64.0.0/16"]),
            checked: Some(blocks(&["10.32.0.0/16", "fd00:32::/48"])),
            ..Ruleset::default()
        };
        let counted = BTreeMap::from([(OUTBOUND_SOURCE.to_owned(), 7)]);
        let Text { sets, rest: text } = ruleset.render(&counted);
        let ours = &sets[4..];
        let (four, six) = (
            intervals("ipv4_addr", &["10.32.0.0/16".into()]),
            intervals("ipv6_addr", &["fd00:32::/48".into()]),
        );
        assert_eq!(ours, [("ours4".into(), four), ("ours6".into(), six)]);
        let expected = r#"	counter foreign-destination {
		packets 0 bytes 0
	}
	counter outbound-source {
		packets 7 bytes 0
	}
	chain inbound {
		type filter hook prerouting priority raw; policy accept;
		iifname != { "subsea0", "subsea1" } accept
		ip daddr != @ours4 counter name "foreign-destination" drop
		ip6 daddr != @ours6 counter name "foreign-destination" drop
	}
	chain outbound {
		type filter hook postrouting priority 300; policy accept;
		oifname != { "subsea0", "subsea1" } accept
		ip saddr { 0.0.0.0, 169.254.0.0/16 } drop
		ip daddr { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } drop
		ip6 saddr { ::, fe80::/10 } drop
		ip6 daddr { fe80::/10, ff00::/8 } drop
		ip saddr != @ours4 counter name "outbound-source" drop
		ip6 saddr != @ours6 counter name "outbound-source" drop
	}
"#;
        assert!(text.ends_with(expected), "{text}");
        let clamp = r#"iifname { "subsea0", "subsea1" } tcp flags & (syn | rst) == syn"#;
        assert!(text.contains(clamp), "{text}");
    }
}
