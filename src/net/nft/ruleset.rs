//! What table `inet subsea` should hold, as text for `nft -f -`. PURE.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use subsea_api::{Cidr, Family};

/// The name of our table, of family `inet`.
pub const TABLE: &str = "subsea";

/// What the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The tunnel device.
    pub device: String,
    /// Our own blocks.
    pub local: BTreeSet<Cidr>,
    /// The blocks of other clusters.
    pub remote: BTreeSet<Cidr>,
}

impl Ruleset {
    /// One transaction that puts the whole table in place of what there was. The first line makes the second
    /// one succeed when there is no table yet. No chain has a drop policy, and nobody else's table is named.
    pub fn render(&self) -> String {
        let mut text =
            format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
        for (family, number, kind) in [(Family::V4, 4, "ipv4_addr"), (Family::V6, 6, "ipv6_addr")] {
            set(
                &mut text,
                &format!("local{number}"),
                kind,
                &self.local,
                family,
            );
            set(
                &mut text,
                &format!("remote{number}"),
                kind,
                &self.remote,
                family,
            );
        }
        keep_source(&mut text);
        self.clamp(&mut text);
        text.push_str("}\n");
        text
    }

    /// TCP learns the tunnel's MTU from the handshake, whichever side opens and whichever side is asked:
    /// `rt mtu` is the smaller of the two directions.
    fn clamp(&self, text: &mut String) {
        text.push_str(
            "\tchain clamp {\n\t\ttype filter hook forward priority mangle; policy accept;\n",
        );
        for direction in ["oifname", "iifname"] {
            let _ = writeln!(
                text,
                "\t\t{direction} \"{}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
                self.device
            );
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

fn set(text: &mut String, name: &str, kind: &str, blocks: &BTreeSet<Cidr>, family: Family) {
    let _ = write!(
        text,
        "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n"
    );
    let blocks = without_covered(blocks, family);
    if !blocks.is_empty() {
        text.push_str("\t\telements = { ");
        for (i, block) in blocks.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            let _ = write!(text, "{separator}{block}");
        }
        text.push_str(" }\n");
    }
    text.push_str("\t}\n");
}

/// Intervals of a set must not overlap: a block inside another one goes. In their order a block stands directly
/// before those inside it.
fn without_covered(blocks: &BTreeSet<Cidr>, family: Family) -> Vec<Cidr> {
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

    fn blocks(texts: &[&str]) -> BTreeSet<Cidr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_whole_table() {
        let ruleset = Ruleset {
            device: "subsea0".into(),
            local: blocks(&["10.32.0.0/16", "198.19.0.1/32", "fd00:32::/48"]),
            remote: blocks(&["10.64.0.0/16", "10.64.7.0/24", "10.65.0.0/16"]),
        };
        let expected = r#"add table inet subsea
delete table inet subsea
table inet subsea {
	set local4 {
		type ipv4_addr
		flags interval
		elements = { 10.32.0.0/16, 198.19.0.1/32 }
	}
	set remote4 {
		type ipv4_addr
		flags interval
		elements = { 10.64.0.0/16, 10.65.0.0/16 }
	}
	set local6 {
		type ipv6_addr
		flags interval
		elements = { fd00:32::/48 }
	}
	set remote6 {
		type ipv6_addr
		flags interval
	}
	chain keep-source {
		type nat hook postrouting priority 90; policy accept;
		ip saddr @local4 ip daddr @remote4 snat ip to ip saddr
		ip saddr @remote4 ip daddr @local4 snat ip to ip saddr
		ip6 saddr @local6 ip6 daddr @remote6 snat ip6 to ip6 saddr
		ip6 saddr @remote6 ip6 daddr @local6 snat ip6 to ip6 saddr
	}
	chain clamp {
		type filter hook forward priority mangle; policy accept;
		oifname "subsea0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		iifname "subsea0" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
	}
}
"#;
        assert_eq!(ruleset.render(), expected);
    }
}
