//! The hosts and ports of `https://host:port`. PURE.

/// The default port of a broker URL without one.
const HTTPS_PORT: u16 = 443;

/// The host of an `https` URL without path, brackets of an IPv6 address taken off; `None` for anything else.
pub(crate) fn host_of(url: &str) -> Option<&str> {
    split(url).map(|(host, _)| host)
}

/// Host and port of an `https` URL without path, query or user.
pub(crate) fn split(url: &str) -> Option<(&str, u16)> {
    let authority = url.strip_prefix("https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, rest) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None if rest.is_empty() => HTTPS_PORT,
        None => return None,
    };
    let v6 = authority.starts_with('[');
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-') || (v6 && b == b':');
    let good = !host.is_empty() && host.bytes().all(allowed) && port != 0;
    (good && (!v6 || host.parse::<std::net::Ipv6Addr>().is_ok())).then_some((host, port))
}

/// The URL of a host and port; an IPv6 address gets its brackets.
pub(crate) fn url(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_found() {
        assert_eq!(split("https://b.example:8443"), Some(("b.example", 8443)));
        assert_eq!(split("https://10.0.0.1/"), Some(("10.0.0.1", 443)));
        assert_eq!(split("https://[fd00::1]:7443"), Some(("fd00::1", 7443)));
        assert_eq!(url("fd00::1", 1), "https://[fd00::1]:1");
        assert_eq!(url("b", 1), "https://b:1");
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "http://b:1",
            "https://",
            "https://b:0",
            "https://b:x",
            "https://b/path",
            "https://u@b:1",
            "https://[b]:1",
            "https://[fd00::1]x",
            "https://fd00::1:1",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
