//! Flags that several verbs share, and their values. PURE.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use subsea_api::member::CidrRequests;
use subsea_api::{Cidr, CidrRequest, NodeName, Role};

use crate::gateway::health_timing;
use crate::gateway::options::{Bits, Mark, Stripes};

/// Where the node keeps its keys and what it knows.
#[derive(Debug, clap::Args)]
pub(super) struct StateArg {
    /// The state directory of this node; one for each daemon
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: PathBuf,
}

/// The blocks of a cluster.
#[derive(Debug, clap::Args)]
pub(super) struct CidrArgs {
    /// A block of pod addresses, or auto/LENGTH (IPv6: auto6/LENGTH) for a free one; may repeat
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pod_cidr: Vec<CidrRequest>,

    /// A block of service addresses, or auto/LENGTH for a free one; may repeat
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Vec<CidrRequest>,

    /// A block of node addresses; none is registered unless given; may repeat
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    node_cidr: Vec<Cidr>,

    /// Let the other clusters route the node blocks, too
    #[arg(long, requires = "node_cidr")]
    export_nodes: bool,
}

impl From<CidrArgs> for CidrRequests {
    fn from(args: CidrArgs) -> Self {
        Self {
            pod: args.pod_cidr,
            service: args.service_cidr,
            node: args.node_cidr,
            export_nodes: args.export_nodes,
        }
    }
}

/// The name of a host as the name of a node: in small letters, with hyphens for what may not stand in one.
pub(super) fn node_name(host: &str) -> Option<NodeName> {
    let clean: String = host
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.' | '-') => c,
            _ => '-',
        })
        .collect();
    let labels: Vec<&str> = clean
        .split('.')
        .map(|label| label.trim_matches('-'))
        .filter(|l| !l.is_empty())
        .collect();
    labels.join(".").parse().ok()
}

/// `0x40/0x40`, or `0x40` for a mask of the same bits.
pub(super) fn mark(text: &str) -> Result<Mark, String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, text));
    match (number(value), number(mask)) {
        (Ok(value), Ok(mask)) if value & mask == value && value != 0 => Ok(Mark { value, mask }),
        (Ok(_), Ok(_)) => Err("the value must be in the mask, and not zero".to_owned()),
        (Err(_), Ok(_) | Err(_)) | (Ok(_), Err(_)) => {
            Err("write a value and a mask, such as 0x40/0x40".to_owned())
        }
    }
}

/// Bits of marks that stand side by side, such as `0x3f00`.
pub(super) fn bits(text: &str) -> Result<Bits, String> {
    text.parse()
}

/// A length of time, such as `30s` or `2m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write for example 30s or 2m"))
}

/// The address and port of a WireGuard endpoint that others can reach.
pub(super) fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let endpoint: SocketAddr = text.parse().map_err(|_| {
        "write an address and a port, such as 192.0.2.1:51820 or [2001:db8::1]:51820".to_owned()
    })?;
    if endpoint.ip().is_unspecified() || endpoint.ip().is_multicast() || endpoint.port() == 0 {
        return Err("it must be an address and a port that other gateways can send to".to_owned());
    }
    Ok(endpoint)
}

/// `auto`, or how many sessions with the same gateway.
pub(super) fn stripes(text: &str) -> Result<Stripes, String> {
    text.parse()
}

/// The name of a namespace.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    if text.len() <= 63 && is_label(text) {
        Ok(text.to_owned())
    } else {
        Err(
            "a namespace has 1 to 63 small letters, digits and `-`, and no `-` at its ends"
                .to_owned(),
        )
    }
}

/// Whether it is made as names of Kubernetes are between their dots.
fn is_label(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = text.starts_with('-') || text.ends_with('-');
    !text.is_empty() && text.chars().all(fine) && !ends
}

/// The name of a Secret.
pub(super) fn secret(text: &str) -> Result<String, String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err(
            "a Secret's name has 1 to 253 small letters, digits, `-` and `.`, and begins and ends with a letter or a digit"
                .to_owned(),
        )
    }
}

/// A role that a token can give.
pub(super) fn token_role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(role @ (Role::Member | Role::Gateway | Role::Agent | Role::Dns)) => Ok(role),
        Ok(Role::Admin) => Err("tokens give no admin certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// How long a token lives: at least a second, at most 7 days.
pub(super) fn token_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text)
        .map_err(|e| format!("{e}; write for example 15m, 24h or 7d"))?;
    if (Duration::from_secs(1)..=Duration::from_hours(7 * 24)).contains(&ttl) {
        Ok(ttl)
    } else {
        Err("a token lives from 1s to 7d".to_owned())
    }
}

/// A time between two probes.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    health_timing::interval(text)
}

/// An address by which other nodes reach this one.
pub(super) fn node_address(text: &str) -> Result<IpAddr, String> {
    let address = text
        .parse()
        .map_err(|_| "write an IP address, such as 10.0.0.5".to_owned())?;
    match subsea_api::member::node_address_fault(address) {
        Some(fault) => Err(fault.to_string()),
        None => Ok(address),
    }
}

/// The name of a network device.
pub(super) fn device(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=15).contains(&text.len())
        && text.chars().all(fine)
        && !text.trim_matches('.').is_empty()
    {
        Ok(text.to_owned())
    } else {
        Err("a device name has 1 to 15 letters, digits, `-`, `_` or `.`".to_owned())
    }
}

/// A routing table of our own: not those of the kernel.
pub(super) fn table(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0 | 253..=255) => Err("this table is the kernel's (0, 253 to 255)".to_owned()),
        Ok(table) => Ok(table),
        Err(_) => Err("write the number of a routing table, such as 583".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_node_names() {
        for (host, name) in [
            ("gw-1", Some("gw-1")),
            ("GW_1.Example.net", Some("gw-1.example.net")),
            ("-a-..b.", Some("a.b")),
            ("caf\u{e9}", Some("caf")),
            ("(none)", Some("none")),
            ("", None),
            ("---", None),
        ] {
            assert_eq!(node_name(host).map(String::from).as_deref(), name, "{host}");
        }
    }

    #[test]
    fn namespaces_roles_and_lives_of_tokens_make_sense() {
        assert!(namespace("subsea-broker").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(namespace(bad).is_err(), "{bad}");
        }
        assert!(secret("registry.eu-1").is_ok() && secret(&"a".repeat(253)).is_ok());
        for bad in ["", "a..b", "A", "a_b", "-a", &"a".repeat(254)] {
            assert!(secret(bad).is_err(), "{bad}");
        }
        assert_eq!(token_role("agent"), Ok(Role::Agent));
        assert!(token_role("admin").is_err());
        assert_eq!(token_ttl("7d"), Ok(Duration::from_hours(168)));
        for bad in ["", "0s", "8d", "soon"] {
            assert!(token_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn marks_have_their_value_in_their_mask() {
        assert_eq!(
            mark("0x40/0x40"),
            Ok(Mark {
                value: 0x40,
                mask: 0x40
            })
        );
        assert_eq!(
            mark("64/0xff"),
            Ok(Mark {
                value: 0x40,
                mask: 0xff
            })
        );
        assert_eq!(
            mark("0x40"),
            Ok(Mark {
                value: 0x40,
                mask: 0x40
            })
        );
        for bad in ["", "0", "0/0", "0x41/0x40", "x", "0x40/", "0x100000000"] {
            assert!(mark(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn endpoints_devices_tables_and_stripes_make_sense() {
        for bad in [
            "",
            "192.0.2.1",
            "0.0.0.0:1",
            "192.0.2.1:0",
            "224.0.0.1:1",
            "host:1",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
        assert!(endpoint("[2001:db8::1]:51820").is_ok());
        for bad in ["", ".", "..", "a b", "a/b", "sixteen-letters-"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(device("subsea0").is_ok());
        for bad in ["0", "253", "255", "-1", "main"] {
            assert!(table(bad).is_err(), "{bad}");
        }
        assert_eq!(table("583"), Ok(583));
        for bad in ["", "0", "9", "-1", "Auto", "65537"] {
            assert!(stripes(bad).is_err(), "{bad}");
        }
        assert_eq!(stripes("auto"), Ok(Stripes::Auto));
        assert_eq!(stripes("8"), Ok(Stripes::Fixed(8)));
    }
}
