//! Who may send by VXLAN, and what: as text for `nft`. PURE.
//!
//! VXLAN has no key of its own. So a frame counts only when it comes from the node that its hardware address belongs
//! to, by the link to the nodes, and carries a source that this node may send. The node, in turn, lets none of its pods
//! send to the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use subsea_api::{Cidr, Family};

use super::counters::{VXLAN_SENDER, VXLAN_SOURCE};
use super::ruleset::{FAMILIES, intervals, without_covered};
use crate::net::netlink::overlay::Mac;

/// What stands in a listing of our table only when it guards VXLAN.
pub(super) const CHAIN: &str = "chain vxlan-inner {";

/// Who may send by VXLAN, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The VXLAN device.
    pub device: String,
    /// Its UDP port.
    pub port: u16,
    /// The devices by which other nodes are reached; empty for any.
    pub links: BTreeSet<String>,
    /// The nodes: by which address, with which hardware address inside.
    pub senders: BTreeSet<(IpAddr, Mac)>,
    /// The sources inside that each hardware address may send.
    pub sources: BTreeSet<(Mac, Cidr)>,
}

/// The sets of the guard: name, and what stands in their braces.
pub(super) fn sources(guard: &Guard) -> impl Iterator<Item = (String, String)> {
    let mut by_mac: BTreeMap<Mac, BTreeSet<Cidr>> = BTreeMap::new();
    for (mac, block) in &guard.sources {
        by_mac.entry(*mac).or_default().insert(*block);
    }
    FAMILIES.into_iter().map(move |(family, number, kind)| {
        let elements = by_mac.iter().flat_map(|(mac, blocks)| {
            let blocks = without_covered(blocks, family);
            blocks
                .into_iter()
                .map(move |block| format!("{mac} . {block}"))
        });
        let body = intervals(
            &format!("ether_addr . {kind}"),
            &elements.collect::<Vec<_>>(),
        );
        (format!("vxlan-sources{number}"), body)
    })
}

/// The counters and chains of the guard. The counters go on from what they have `counted`.
pub(super) fn render(text: &mut String, guard: &Guard, counted: &BTreeMap<String, u64>) {
    for name in [VXLAN_SENDER, VXLAN_SOURCE] {
        let packets = counted.get(name).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "\tcounter {name} {{\n\t\tpackets {packets} bytes 0\n\t}}"
        );
    }
    let _ = write!(
        text,
        "\t{CHAIN}
\t\tether saddr . ip saddr @vxlan-sources4 accept
\t\tether saddr . ip6 saddr @vxlan-sources6 accept
\t\tcounter name \"{VXLAN_SOURCE}\" drop
\t}}
\tchain vxlan-outer {{
",
    );
    let links: Vec<String> = guard.links.iter().map(|l| format!("\"{l}\"")).collect();
    let link = if links.is_empty() {
        String::new()
    } else {
        format!("iifname {{ {} }} ", links.join(", "))
    };
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let of_family = |addr: &IpAddr| Cidr::host(*addr).family() == family;
        let senders: Vec<String> = guard
            .senders
            .iter()
            .filter(|(addr, _)| of_family(addr))
            .map(|(addr, mac)| format!("{addr} . {:#x}", number_of(*mac)))
            .collect();
        if !senders.is_empty() {
            // The hardware address of the sender is 22 bytes into UDP: 8 of UDP, 8 of VXLAN, 6 of the receiver's.
            let _ = writeln!(
                text,
                "\t\t{link}{ip} saddr . @th,176,48 {{ {} }} accept",
                senders.join(", ")
            );
        }
    }
    let _ = write!(
        text,
        "\t\tcounter name \"{VXLAN_SENDER}\" drop
\t}}
\tchain vxlan {{
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"{}\" goto vxlan-inner
\t\tudp dport {port} fib daddr type local goto vxlan-outer
\t}}
\tchain vxlan-in {{
\t\ttype filter hook input priority -10; policy accept;
\t\tudp dport {port} goto vxlan-outer
\t}}
",
        guard.device,
        // Again after any translation of the destination: what was for another port may be for this one now.
        port = guard.port
    );
    forwarded(text, guard);
}

/// What this node forwards has not been sent by it: a pod that is seen by the node's address, behind a masquerade, could
/// send in the node's name.
fn forwarded(text: &mut String, guard: &Guard) {
    text.push_str(
        "\tchain vxlan-forward {\n\t\ttype filter hook forward priority filter; policy accept;\n",
    );
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let addresses = guard.senders.iter().map(|(address, _)| *address);
        let addresses: BTreeSet<String> = addresses
            .filter(|address| Cidr::host(*address).family() == family)
            .map(|address| address.to_string())
            .collect();
        if !addresses.is_empty() {
            let addresses: Vec<String> = addresses.into_iter().collect();
            let _ = writeln!(
                text,
                "\t\tudp dport {} {ip} daddr {{ {} }} counter name \"{VXLAN_SENDER}\" drop",
                guard.port,
                addresses.join(", ")
            );
        }
    }
    text.push_str("\t}\n");
}

fn number_of(mac: Mac) -> u64 {
    mac.0
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_tied_to_their_hardware_addresses() {
        let mac = Mac([2, 0, 0, 0, 0, 10]);
        let guard = Guard {
            device: "subsea-vx".into(),
            port: 4850,
            links: BTreeSet::from(["eth0".into()]),
            senders: BTreeSet::from([("192.0.2.2".parse().unwrap(), mac)]),
            sources: ["10.32.1.0/24", "10.32.0.0/16", "fe80::a/128"]
                .map(|block| (mac, block.parse().unwrap()))
                .into(),
        };
        let mut text = String::new();
        let counted = BTreeMap::from([(VXLAN_SOURCE.to_owned(), 3)]);
        render(&mut text, &guard, &counted);
        let sets: Vec<_> = sources(&guard).collect();
        for ((name, body), (number, kind, block)) in sets.iter().zip([
            (4, "ipv4_addr", "10.32.0.0/16"),
            (6, "ipv6_addr", "fe80::a/128"),
        ]) {
            let block = [format!("02:00:00:00:00:0a . {block}")];
            assert_eq!(name, &format!("vxlan-sources{number}"));
            assert_eq!(body, &intervals(&format!("ether_addr . {kind}"), &block));
        }
        let expected = r#"	counter vxlan-sender {
		packets 0 bytes 0
	}
	counter vxlan-source {
		packets 3 bytes 0
	}
	chain vxlan-inner {
		ether saddr . ip saddr @vxlan-sources4 accept
		ether saddr . ip6 saddr @vxlan-sources6 accept
		counter name "vxlan-source" drop
	}
	chain vxlan-outer {
		iifname { "eth0" } ip saddr . @th,176,48 { 192.0.2.2 . 0x2000000000a } accept
		counter name "vxlan-sender" drop
	}
	chain vxlan {
		type filter hook prerouting priority raw; policy accept;
		iifname "subsea-vx" goto vxlan-inner
		udp dport 4850 fib daddr type local goto vxlan-outer
	}
	chain vxlan-in {
		type filter hook input priority -10; policy accept;
		udp dport 4850 goto vxlan-outer
	}
	chain vxlan-forward {
		type filter hook forward priority filter; policy accept;
		udp dport 4850 ip daddr { 192.0.2.2 } counter name "vxlan-sender" drop
	}
"#;
        assert_eq!(text, expected);
    }
}
