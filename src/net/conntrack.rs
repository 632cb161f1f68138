//! Forgets flows whose source the kernel began to translate before our exemption was there. Shell, but for
//! [`stale`].
//!
//! A flow keeps the translation of its first packet for as long as it lives, whatever the rules say now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use subsea_api::{Cidr, Family};

use crate::net::tool::{Tool, ToolError};

const CONNTRACK: Tool = Tool {
    name: "conntrack",
    package: "conntrack",
};
/// How many entries are deleted at once. What is left over expires by itself.
const MAX_DELETED: usize = 10_000;

/// Deletes the entries between `local` and `remote` blocks that have their source translated; gives their number.
///
/// # Errors
/// When `conntrack` is missing or refuses.
pub async fn forget(local: &[Cidr], remote: &[Cidr]) -> Result<usize, ToolError> {
    let mut commands = String::new();
    let mut count = 0;
    for (family, flag) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        if !remote.iter().any(|r| r.family() == family) {
            continue;
        }
        let listing = CONNTRACK.run(&["-L", "-f", flag, "--src-nat"], "").await?;
        for entry in stale(&listing, local, remote).take(MAX_DELETED - count) {
            let _ = writeln!(commands, "-D -f {flag} {entry}");
            count += 1;
        }
    }
    if count > 0 {
        CONNTRACK.run(&["--load-file", "-"], &commands).await?;
    }
    Ok(count)
}

/// The entries of a listing (`conntrack -L`) that must go, as arguments of `conntrack -D`. PURE.
///
/// An entry counts when it runs between one of our own and one of the remote blocks, in either direction, by
/// its real ends, and its replies go elsewhere than to where it came from.
pub fn stale<'a>(
    listing: &'a str,
    local: &[Cidr],
    remote: &[Cidr],
) -> impl Iterator<Item = String> + use<'a> {
    let (local, remote) = (Blocks::new(local), Blocks::new(remote));
    listing.lines().filter_map(move |line| {
        let entry = Entry::parse(line)?;
        let between = (local.contains(entry.src) && remote.contains(entry.reply_src))
            || (remote.contains(entry.src) && local.contains(entry.reply_src));
        (between && entry.reply_dst != entry.src).then(|| entry.arguments())
    })
}

/// Disjoint blocks by their first address.
struct Blocks(BTreeMap<IpAddr, Cidr>);

impl Blocks {
    fn new(blocks: &[Cidr]) -> Self {
        let mut sorted = blocks.to_vec();
        sorted.sort_unstable();
        // In their order a block stands directly before those inside it.
        sorted.dedup_by(|inner, outer| outer.covers(*inner));
        Self(sorted.into_iter().map(|b| (b.first(), b)).collect())
    }

    fn contains(&self, addr: IpAddr) -> bool {
        self.0
            .range(..=addr)
            .next_back()
            .is_some_and(|(_, block)| block.contains(addr))
    }
}

struct Entry<'a> {
    protocol: &'a str,
    src: IpAddr,
    dst: IpAddr,
    /// Ports, or the kind and number of an echo, as flags of `conntrack`.
    more: Vec<(&'static str, &'a str)>,
    reply_src: IpAddr,
    reply_dst: IpAddr,
}

impl<'a> Entry<'a> {
    /// Reads `udp 17 29 src=.. dst=.. sport=.. dport=.. [UNREPLIED] src=.. dst=.. sport=.. dport=.. mark=0 use=1`.
    fn parse(line: &'a str) -> Option<Self> {
        let protocol = line.split_whitespace().next()?;
        let icmp = protocol.starts_with("icmp");
        let mut sources = Vec::new();
        let mut destinations = Vec::new();
        let mut more = Vec::new();
        for (key, value) in line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            let flag = match key {
                "src" => {
                    sources.push(value.parse().ok()?);
                    continue;
                }
                "dst" => {
                    destinations.push(value.parse().ok()?);
                    continue;
                }
                "sport" => "--sport",
                "dport" => "--dport",
                "type" if icmp => "--icmp-type",
                "code" if icmp => "--icmp-code",
                "id" if icmp => "--icmp-id",
                _ => continue,
            };
            // Those of the reply come after its addresses.
            if sources.len() == 1 && value.bytes().all(|b| b.is_ascii_digit()) {
                more.push((flag, value));
            }
        }
        let ([src, reply_src], [dst, reply_dst]) = (sources.as_slice(), destinations.as_slice())
        else {
            return None;
        };
        // The tool takes numbers as well as names; a name with anything else in it is not one.
        if !protocol
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return None;
        }
        Some(Self {
            protocol,
            src: *src,
            dst: *dst,
            more,
            reply_src: *reply_src,
            reply_dst: *reply_dst,
        })
    }

    fn arguments(&self) -> String {
        let mut text = format!("-p {} -s {} -d {}", self.protocol, self.src, self.dst);
        for (flag, value) in &self.more {
            let _ = write!(text, " {flag} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_translated_flows_between_our_blocks_and_remote_ones_go() {
        let listing = "\
udp      17 299 src=10.32.0.2 dst=10.64.0.3 sport=5 dport=7 [UNREPLIED] src=10.64.0.3 dst=192.0.2.1 sport=7 dport=1025 mark=0 use=1
udp      17 299 src=10.32.0.2 dst=10.64.0.3 sport=6 dport=7 [UNREPLIED] src=10.64.0.3 dst=10.32.0.2 sport=7 dport=6 mark=0 use=1
icmp     1 29 src=10.64.0.3 dst=10.32.0.2 type=8 code=0 id=77 src=10.32.0.2 dst=10.32.0.1 type=0 code=0 id=77 mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.32.0.2 dst=1.1.1.1 sport=40000 dport=443 src=1.1.1.1 dst=192.0.2.1 sport=443 dport=40000 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.32.0.2 dst=10.96.0.10 sport=40000 dport=80 src=10.64.9.9 dst=192.0.2.1 sport=8080 dport=40000 [ASSURED] mark=0 use=1
garbage
";
        let local = [
            "10.32.0.0/16".parse().unwrap(),
            "10.96.0.0/16".parse().unwrap(),
        ];
        let remote = [
            "10.64.0.0/16".parse().unwrap(),
            "10.64.9.0/24".parse().unwrap(),
        ];
        let found: Vec<String> = stale(listing, &local, &remote).collect();
        assert_eq!(
            found,
            [
                "-p udp -s 10.32.0.2 -d 10.64.0.3 --sport 5 --dport 7",
                "-p icmp -s 10.64.0.3 -d 10.32.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77",
                "-p tcp -s 10.32.0.2 -d 10.96.0.10 --sport 40000 --dport 80",
            ]
        );
    }
}
