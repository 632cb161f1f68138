//! Looks whether legacy iptables, which nftables does not list, drops what we forward. Shell.

use crate::net::tool::Tool;

/// The file that names the tables of a family in this network namespace, and the tool that lists them.
const FAMILIES: [(&str, Tool); 2] = [
    (
        "/proc/net/ip_tables_names",
        Tool {
            name: "iptables-legacy",
            package: "iptables",
        },
    ),
    (
        "/proc/net/ip6_tables_names",
        Tool {
            name: "ip6tables-legacy",
            package: "iptables",
        },
    ),
];

/// What stands in the way of packets through `device`: texts for people.
pub async fn legacy_obstacles(device: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (names, tool) in FAMILIES {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if !tables.lines().any(|t| t == "filter") {
            continue;
        }
        match tool.run(&["-S", "FORWARD"], "").await {
            Ok(listing) if drops(&listing, device) => problems.push(format!(
                "chain `FORWARD` (`{} -S FORWARD`) drops forwarded packets that none of its rules accepts: let it accept \
                 what comes in and goes out by {device}",
                tool.name
            )),
            Ok(_) => {}
            Err(error) => {
                problems.push(format!("could not see whether legacy iptables drops forwarded packets: {error}"));
            }
        }
    }
    problems
}

/// Whether legacy iptables has this chain in its table `nat`. Where the tool is missing, it is not known to.
pub async fn has_nat_chain(name: &str) -> bool {
    for (names, tool) in FAMILIES {
        let tables = std::fs::read_to_string(names).unwrap_or_default();
        if tables.lines().any(|t| t == "nat")
            && tool.run(&["-t", "nat", "-S", name], "").await.is_ok()
        {
            return true;
        }
    }
    false
}

/// Whether the chain drops by default and has no rules that accept a device in both directions. PURE.
fn drops(listing: &str, device: &str) -> bool {
    let accepts = |flag: &str| {
        listing
            .lines()
            .any(|l| l.contains(&format!(" {flag} {device} ")) && l.ends_with("-j ACCEPT"))
    };
    listing.lines().any(|l| l == "-P FORWARD DROP") && !(accepts("-i") && accepts("-o"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_policy_counts_unless_our_device_is_accepted() {
        assert!(!drops("-P FORWARD ACCEPT\n", "subsea0"));
        assert!(drops(
            "-P FORWARD DROP\n-A FORWARD -i docker0 -j ACCEPT\n",
            "subsea0"
        ));
        assert!(!drops(
            "-P FORWARD DROP\n-A FORWARD -i subsea0 -j ACCEPT\n-A FORWARD -o subsea0 -j ACCEPT\n",
            "subsea0"
        ));
    }
}
