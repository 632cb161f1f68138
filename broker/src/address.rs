//! By which names and addresses members find the broker. Shell.
//!
//! `--advertise` says it. Without it the host of `--listen` does. When that is unspecified (`0.0.0.0`), the URLs
//! are those of the addresses by which this host reaches the outside, then of its host name; the certificate
//! names every address of the host besides.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::url;

/// An `--advertise` is no URL of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no broker URL: write `https://HOST:PORT`, without a path")]
pub struct AdvertiseError(pub String);

/// Addresses that routers forward to the default route (RFC 5737, RFC 3849); nothing is sent to them.
const OUTSIDE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

/// The URLs for members, best first.
///
/// # Errors
/// [`AdvertiseError`] for an advertised text that is no `https://host:port`.
pub(crate) fn urls(
    listen: SocketAddr,
    advertise: &[String],
) -> Result<Vec<String>, AdvertiseError> {
    let mut found = Vec::new();
    for text in advertise {
        let (host, port) = url::split(text).ok_or_else(|| AdvertiseError(text.clone()))?;
        found.push(url::url(host, port));
    }
    if found.is_empty() {
        let ip = listen.ip();
        let hosts = if ip.is_unspecified() {
            outside_hosts(listen.is_ipv6())
        } else {
            vec![ip.to_canonical().to_string()]
        };
        found = hosts.iter().map(|h| url::url(h, listen.port())).collect();
    }
    let mut seen = Vec::new();
    found.retain(|u| {
        let new = !seen.contains(u);
        seen.push(u.clone());
        new
    });
    Ok(found)
}

/// The hosts that the server certificate names: those of the URLs, of `--listen`, and this host by itself.
pub(crate) fn certificate_hosts(listen: SocketAddr, urls: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = urls
        .iter()
        .filter_map(|u| url::host_of(u))
        .map(str::to_owned)
        .collect();
    hosts.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if listen.ip().is_unspecified() {
        hosts.extend(interface_addresses().iter().map(ToString::to_string));
    } else {
        hosts.push(listen.ip().to_canonical().to_string());
    }
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn outside_hosts(with_v6: bool) -> Vec<String> {
    let mut hosts: Vec<String> = OUTSIDE
        .iter()
        .filter(|to| with_v6 || !to.starts_with('['))
        .filter_map(|to| source_address(to))
        .map(|ip| ip.to_string())
        .collect();
    if hosts.is_empty() {
        let addresses = interface_addresses();
        hosts.extend(
            addresses
                .iter()
                .find(|ip| ip.is_ipv4() && !ip.is_loopback())
                .map(ToString::to_string),
        );
    }
    hosts.extend(host_name());
    if hosts.is_empty() {
        hosts.push("127.0.0.1".to_owned());
    }
    hosts
}

/// The source address that the kernel would choose. Connecting a UDP socket sends nothing.
fn source_address(to: &str) -> Option<IpAddr> {
    let any = if to.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// The host's name, when it can stand in a URL and is not only its name for itself.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().to_ascii_lowercase();
    let label = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    let good =
        !name.is_empty() && name.len() <= 253 && name.bytes().all(label) && name != "localhost";
    good.then_some(name)
}

/// Every address of this host, as the kernel lists them; link-local ones are good for nobody else.
fn interface_addresses() -> Vec<IpAddr> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut found = parse_fib_trie(&v4);
    found.extend(parse_if_inet6(&v6));
    found.sort_unstable();
    found.dedup();
    found
}

/// Local addresses stand as `|-- 10.0.0.1` before a line `/32 host LOCAL`.
fn parse_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in text.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse::<IpAddr>().ok();
        } else if line.trim() == "/32 host LOCAL" {
            found.extend(last.filter(|ip| matches!(ip, IpAddr::V4(a) if !a.is_link_local())));
        }
    }
    found
}

/// The first column has 32 hexadecimal digits, the fourth the scope (20 is link-local).
fn parse_if_inet6(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let address = u128::from_str_radix(columns.next()?, 16).ok()?;
            let scope = columns.nth(2)?;
            (scope != "20").then(|| IpAddr::from(address.to_be_bytes()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_counts_else_the_listen_address() {
        let listen: SocketAddr = "10.0.0.1:8443".parse().unwrap();
        assert_eq!(urls(listen, &[]).unwrap(), ["https://10.0.0.1:8443"]);
        let advertised = [
            "https://b.example:443".to_owned(),
            "https://[fd00::1]:1".to_owned(),
        ];
        assert_eq!(
            urls(listen, &advertised).unwrap(),
            ["https://b.example:443", "https://[fd00::1]:1"]
        );
        assert!(urls(listen, &["http://b".to_owned()]).is_err());
        let hosts = certificate_hosts(listen, &advertised);
        for host in ["10.0.0.1", "b.example", "localhost", "127.0.0.1"] {
            assert!(hosts.contains(&host.to_owned()), "{host}");
        }
    }

    #[test]
    fn an_unspecified_address_becomes_one_that_others_can_use() {
        let found = urls("0.0.0.0:8443".parse().unwrap(), &[]).unwrap();
        assert!(!found.is_empty());
        assert!(found.iter().all(|u| !u.contains("0.0.0.0")), "{found:?}");
    }

    #[test]
    fn the_kernels_lists_are_read() {
        let trie = "  |-- 10.0.0.0\n     /24 link UNICAST\n  |-- 10.0.0.7\n     /32 host LOCAL\n  |-- 169.254.1.1\n     /32 host LOCAL\n";
        assert_eq!(
            parse_fib_trie(trie),
            ["10.0.0.7".parse::<IpAddr>().unwrap()]
        );
        let six = "fe800000000000000000000000000001 02 40 20 80 eth0\nfd000000000000000000000000000002 02 40 00 80 eth0\n";
        assert_eq!(parse_if_inet6(six), ["fd00::2".parse::<IpAddr>().unwrap()]);
    }
}
