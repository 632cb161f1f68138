//! Replies keep the road of their flow: marks of connections, as text for `nft`. PURE.
//!
//! Version 1.0.6 of `nft` sets bits of a mark only to constants, so each road has chains of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use subsea_api::Family;

use crate::net::netlink::overlay::Mac;
use crate::net::netlink::types::{Mark, Rule};

/// The bits of marks that tell roads; the others are left to others. Those who share a kernel use different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(u32);

impl std::str::FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let bits = number.ok().and_then(Self::new);
        bits.ok_or_else(|| "write bits that stand side by side, such as 0x3f00".to_owned())
    }
}

impl Bits {
    /// The agent's: 62 roads, and one number that is nobody's.
    pub const AGENT: Self = Self(0x3f);
    /// The gateway's. kube-proxy has 0x4000 and 0x8000, Calico the upper half.
    pub const GATEWAY: Self = Self(0x3f00);

    /// Bits that stand side by side; `None` if they do not, or if there are none.
    pub fn new(mask: u32) -> Option<Self> {
        let ones = mask.checked_shr(mask.trailing_zeros())?;
        (ones & ones.wrapping_add(1) == 0).then_some(Self(mask))
    }

    /// All of them.
    pub fn mask(self) -> u32 {
        self.0
    }

    /// The mark of a road; `None` when its number does not fit, and for the largest one, which is nobody's.
    pub fn mark(self, number: u8) -> Option<Mark> {
        let value = u32::from(number) << self.0.trailing_zeros();
        let fits = number > 0 && value >> self.0.trailing_zeros() == u32::from(number);
        (fits && value < self.0 && value & !self.0 == 0).then_some(Mark {
            value,
            mask: self.0,
        })
    }
}

impl Default for Bits {
    fn default() -> Self {
        Self::AGENT
    }
}

/// How packets come in by a road.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingress {
    /// By a device.
    Device(String),
    /// By a device, from a hardware address.
    Mac {
        /// The name of the device.
        device: String,
        /// The sender.
        mac: Mac,
    },
    /// From other clusters, by a link that others use, too, from a hardware address.
    Link {
        /// The name of the link.
        device: String,
        /// The sender.
        mac: Mac,
    },
}

/// A way by which flows come in, and by which their replies should leave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Road {
    /// Its number: the mark of its connections, see [`Bits::mark`]. Roads of one number have one table.
    pub number: u8,
    /// What comes in by it.
    pub ingress: Ingress,
    /// The table in which its replies look for their way.
    pub table: u32,
}

impl Road {
    /// The rule by which replies look in its table, for as long as who is behind it can take them; `None` when there is no
    /// mark for its number.
    pub fn rule(&self, bits: Bits, family: Family, pref: u32) -> Option<Rule> {
        let mark = bits.mark(self.number)?;
        Some(Rule::marked(family, pref, mark, self.table))
    }
}

/// The roads of a table of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roads {
    /// The bits of marks that tell them apart.
    pub bits: Bits,
    /// The ways by which flows come in that replies should leave by.
    pub all: Vec<Road>,
    /// Whether a flow of a remote block that goes on to come in otherwise has no road any more. Without it the last road
    /// stays.
    pub forget: bool,
}

/// The chains of roads. What comes in by a road takes its connection along; what answers in a connection with a
/// road, and did not come in by one, is marked for the rule of that road. A connection that began here has no road,
/// though answers come in by one: what else answers in it is the "too big" of our own host, which is for a pod here.
pub(super) fn render(text: &mut String, wanted: &Roads) {
    let bits = wanted.bits;
    let roads: BTreeMap<&Ingress, (u8, u32)> = wanted
        .all
        .iter()
        .filter_map(|road| Some((&road.ingress, (road.number, bits.mark(road.number)?.value))))
        .collect();
    if roads.is_empty() {
        return;
    }
    let mask = bits.mask();
    let rest = !mask;
    let numbers: BTreeMap<u8, u32> = roads.values().copied().collect();
    for (number, value) in &numbers {
        let _ = write!(
            text,
            "\tchain by-road-{number} {{
\t\tct direction original ct mark & {mask:#x} != {value} ct mark set ct mark & {rest:#x} | {value}
\t}}
\tchain to-road-{number} {{
\t\tmeta mark set meta mark & {rest:#x} | {value}
\t}}
"
        );
    }
    let (mut devices, mut macs, mut links) = (Vec::new(), Vec::new(), Vec::new());
    for (ingress, (number, _)) in &roads {
        match ingress {
            Ingress::Device(device) => {
                devices.push(format!("\"{device}\" : goto by-road-{number}"));
            }
            Ingress::Mac { device, mac } => {
                macs.push(format!("\"{device}\" . {mac} : goto by-road-{number}"));
            }
            Ingress::Link { device, mac } => {
                links.push(format!("\"{device}\" . {mac} : goto by-road-{number}"));
            }
        }
    }
    let numbers: Vec<String> = numbers
        .iter()
        .map(|(number, value)| format!("{value} : goto to-road-{number}"))
        .collect();
    // Only what goes to other clusters: an error about a flow, too, is an answer in it, and may go to a pod of ours.
    let numbers = numbers.join(", ");
    let mut reply = String::new();
    for to in ["ip daddr @remote4", "ip6 daddr @remote6"] {
        let _ = writeln!(
            reply,
            "\t\t{to} ct direction reply ct mark & {mask:#x} vmap {{ {numbers} }}"
        );
    }
    text.push_str(
        "\tchain roads-in {\n\t\ttype filter hook prerouting priority mangle; policy accept;\n",
    );
    let by_mac = "iifname . ether saddr";
    for (key, map) in [
        ("iifname", &devices),
        (by_mac, &macs),
        (&format!("ip saddr @remote4 {by_mac}"), &links),
        (&format!("ip6 saddr @remote6 {by_mac}"), &links),
    ] {
        if !map.is_empty() {
            let _ = writeln!(text, "\t\t{key} vmap {{ {} }}", map.join(", "));
        }
    }
    text.push_str(&reply);
    if wanted.forget {
        // Of no other connections: who else marks some by these bits keeps his.
        for from in ["ip saddr @remote4", "ip6 saddr @remote6"] {
            let _ = writeln!(
                text,
                "\t\t{from} ct direction original ct mark & {mask:#x} != 0 ct mark set ct mark & {rest:#x}"
            );
        }
    }
    text.push_str(
        "\t}\n\tchain roads-out {\n\t\ttype route hook output priority mangle; policy accept;\n",
    );
    text.push_str(&reply);
    text.push_str("\t}\n");
    done(text, roads.keys().copied(), mask);
}

/// The chain that takes marks away again where they would lead astray.
fn done<'r>(text: &mut String, roads: impl Iterator<Item = &'r Ingress>, mask: u32) {
    let rest = !mask;
    let overlays: BTreeSet<String> = roads
        .filter_map(|ingress| match ingress {
            Ingress::Device(_) | Ingress::Link { .. } => None,
            Ingress::Mac { device, .. } => Some(format!("\"{device}\"")),
        })
        .collect();
    if overlays.is_empty() {
        return;
    }
    // The mark has led the packet to its device. The kernel looks for the way of the packet around it by the same mark,
    // and would find the device again.
    let overlays: Vec<String> = overlays.into_iter().collect();
    let _ = write!(
        text,
        "\tchain roads-done {{
\t\ttype filter hook postrouting priority 300; policy accept;
\t\toifname {{ {} }} meta mark & {mask:#x} != 0 meta mark set meta mark & {rest:#x}
\t}}
",
        overlays.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_link_only_what_comes_from_other_clusters_takes_a_road() {
        let road = Road {
            number: 2,
            ingress: Ingress::Link {
                device: "eth0".into(),
                mac: Mac([2, 0, 0, 0, 0, 7]),
            },
            table: 587,
        };
        let mut text = String::new();
        let roads = Roads {
            all: vec![road],
            ..Roads::default()
        };
        render(&mut text, &roads);
        for ip in ["ip saddr @remote4", "ip6 saddr @remote6"] {
            let line = format!(
                "\t\t{ip} iifname . ether saddr vmap {{ \"eth0\" . 02:00:00:00:00:07 : goto by-road-2 }}\n"
            );
            assert!(text.contains(&line), "{text}");
        }
        assert!(!text.contains("roads-done"), "nothing is around the packet");
    }

    #[test]
    fn each_road_has_chains_and_a_rule() {
        let vx = |number, last| Road {
            number,
            ingress: Ingress::Mac {
                device: "subsea-vx".into(),
                mac: Mac([2, 0, 0, 0, 0, last]),
            },
            table: 585,
        };
        let own = Road {
            number: 3,
            ingress: Ingress::Device("subsea0".into()),
            table: 588,
        };
        let mut text = String::new();
        // Numbers that do not fit under the mask are nobody's.
        let roads = Roads {
            all: vec![vx(1, 10), vx(0, 11), vx(63, 12), own.clone()],
            ..Roads::default()
        };
        render(&mut text, &roads);
        let expected = r#"	chain by-road-1 {
		ct direction original ct mark & 0x3f != 1 ct mark set ct mark & 0xffffffc0 | 1
	}
	chain to-road-1 {
		meta mark set meta mark & 0xffffffc0 | 1
	}
	chain by-road-3 {
		ct direction original ct mark & 0x3f != 3 ct mark set ct mark & 0xffffffc0 | 3
	}
	chain to-road-3 {
		meta mark set meta mark & 0xffffffc0 | 3
	}
	chain roads-in {
		type filter hook prerouting priority mangle; policy accept;
		iifname vmap { "subsea0" : goto by-road-3 }
		iifname . ether saddr vmap { "subsea-vx" . 02:00:00:00:00:0a : goto by-road-1 }
		ip daddr @remote4 ct direction reply ct mark & 0x3f vmap { 1 : goto to-road-1, 3 : goto to-road-3 }
		ip6 daddr @remote6 ct direction reply ct mark & 0x3f vmap { 1 : goto to-road-1, 3 : goto to-road-3 }
	}
	chain roads-out {
		type route hook output priority mangle; policy accept;
		ip daddr @remote4 ct direction reply ct mark & 0x3f vmap { 1 : goto to-road-1, 3 : goto to-road-3 }
		ip6 daddr @remote6 ct direction reply ct mark & 0x3f vmap { 1 : goto to-road-1, 3 : goto to-road-3 }
	}
	chain roads-done {
		type filter hook postrouting priority 300; policy accept;
		oifname { "subsea-vx" } meta mark & 0x3f != 0 meta mark set meta mark & 0xffffffc0
	}
"#;
        assert_eq!(text, expected);
        assert_eq!(
            own.rule(Bits::AGENT, Family::V6, 581).unwrap().to_string(),
            "-6 pref 581 from all fwmark 0x3/0x3f lookup 588 proto 83"
        );
    }

    #[test]
    fn a_road_of_several_devices_and_flows_that_leave_it() {
        let road = |device: &str, number| Road {
            number,
            ingress: Ingress::Device(device.into()),
            table: 660,
        };
        let roads = Roads {
            bits: Bits::GATEWAY,
            all: vec![road("subsea1", 2), road("subsea0", 1), road("subsea9", 2)],
            forget: true,
        };
        let mut text = String::new();
        render(&mut text, &roads);
        let expected = r#"	chain by-road-1 {
		ct direction original ct mark & 0x3f00 != 256 ct mark set ct mark & 0xffffc0ff | 256
	}
	chain to-road-1 {
		meta mark set meta mark & 0xffffc0ff | 256
	}
	chain by-road-2 {
		ct direction original ct mark & 0x3f00 != 512 ct mark set ct mark & 0xffffc0ff | 512
	}
	chain to-road-2 {
		meta mark set meta mark & 0xffffc0ff | 512
	}
	chain roads-in {
		type filter hook prerouting priority mangle; policy accept;
		iifname vmap { "subsea0" : goto by-road-1, "subsea1" : goto by-road-2, "subsea9" : goto by-road-2 }
		ip daddr @remote4 ct direction reply ct mark & 0x3f00 vmap { 256 : goto to-road-1, 512 : goto to-road-2 }
		ip6 daddr @remote6 ct direction reply ct mark & 0x3f00 vmap { 256 : goto to-road-1, 512 : goto to-road-2 }
		ip saddr @remote4 ct direction original ct mark & 0x3f00 != 0 ct mark set ct mark & 0xffffc0ff
		ip6 saddr @remote6 ct direction original ct mark & 0x3f00 != 0 ct mark set ct mark & 0xffffc0ff
	}
	chain roads-out {
		type route hook output priority mangle; policy accept;
		ip daddr @remote4 ct direction reply ct mark & 0x3f00 vmap { 256 : goto to-road-1, 512 : goto to-road-2 }
		ip6 daddr @remote6 ct direction reply ct mark & 0x3f00 vmap { 256 : goto to-road-1, 512 : goto to-road-2 }
	}
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn numbers_that_do_not_fit_have_no_mark() {
        let mark = |mask, number| Bits::new(mask)?.mark(number).map(|mark| mark.value);
        assert_eq!(mark(0x3f, 62), Some(62));
        assert_eq!(mark(0x3f, 63), None);
        assert_eq!(mark(0x3f00, 1), Some(0x100));
        assert_eq!(mark(0x3f00, 0), None);
        assert_eq!(mark(0x3000, 2), Some(0x2000));
        assert_eq!(mark(0x3000, 4), None);
        assert_eq!(mark(0xf000_0000, 200), None);
        for odd in [0, 0x5, 0x3f01] {
            assert_eq!(Bits::new(odd), None);
        }
    }
}
