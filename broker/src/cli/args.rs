//! Values of flags that are no type of `api`. PURE.

use std::time::Duration;

use subsea_api::admin::Pool;
use subsea_api::{Kind, Role};

/// A role that a token can give.
pub(crate) fn token_role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(role @ (Role::Member | Role::Gateway | Role::Agent | Role::Dns)) => Ok(role),
        Ok(Role::Admin) => Err("tokens give no admin certificate, use `admin reissue`".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// A kind that can be reserved.
pub(crate) fn reservable_kind(text: &str) -> Result<Kind, String> {
    match text.parse() {
        Ok(kind @ (Kind::Pod | Kind::Service | Kind::Node | Kind::Global)) => Ok(kind),
        Ok(Kind::Infra) => Err("the broker gives infra addresses by itself".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// `kind=cidr`.
pub(crate) fn pool(text: &str) -> Result<Pool, String> {
    let (kind, cidr) = text
        .split_once('=')
        .ok_or("write a kind and a block, such as pod=10.32.0.0/11")?;
    let kind = match kind.parse().map_err(|e| format!("{e}"))? {
        kind @ (Kind::Pod | Kind::Service | Kind::Infra | Kind::Global) => kind,
        Kind::Node => return Err("node addresses are never taken from a pool".into()),
    };
    let cidr = cidr.parse().map_err(|e| format!("{e}"))?;
    Ok(Pool { kind, cidr })
}

/// A length of time, such as `15m` or `1h 30m`, of at least a second.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.as_secs() > 0 => Ok(duration),
        Ok(_) => Err("it must be at least 1s".into()),
        Err(error) => Err(format!("{error}; write for example 15m, 24h or 7d")),
    }
}

/// How long a token lives: at most 7 days.
pub(crate) fn token_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    if ttl > Duration::from_hours(7 * 24) {
        return Err("a token lives at most 7d".into());
    }
    Ok(ttl)
}

/// The id of a token: 8 hexadecimal digits.
pub(crate) fn token_id(text: &str) -> Result<String, String> {
    if text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        // Somebody may paste the whole token: do not repeat it.
        Err("the id of a token is 8 hexadecimal digits, as `token list` shows them".into())
    }
}

/// A URL of the broker as members reach it: `https://host[:port]`, made to `https://host:port`.
pub(crate) fn broker_url(text: &str) -> Result<String, String> {
    let shape = || "write https://HOST:PORT, such as https://broker.example.net:7443".to_owned();
    let uri: hyper::Uri = text.parse().map_err(|_| shape())?;
    let authority = uri.authority().ok_or_else(shape)?;
    let plain = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@');
    if uri.scheme_str() != Some("https") || authority.host().is_empty() || !plain {
        return Err(shape());
    }
    let port = match authority.port_u16() {
        Some(port) if port > 0 => port,
        None if authority.as_str() == authority.host() => 443,
        Some(_) | None => return Err(shape()),
    };
    Ok(format!("https://{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls_are_brought_to_one_form() {
        for (given, canonical) in [
            (
                "https://broker.example.net",
                "https://broker.example.net:443",
            ),
            ("https://10.0.0.1:7443/", "https://10.0.0.1:7443"),
            ("https://[fd00::1]:7443", "https://[fd00::1]:7443"),
        ] {
            assert_eq!(broker_url(given).as_deref(), Ok(canonical), "{given}");
        }
        for bad in [
            "",
            "broker:7443",
            "http://a:1",
            "https://",
            "https://:1",
            "https://a:0",
            "https://a:",
            "https://a:99999",
            "https://a:1/v1",
            "https://a:1?x",
            "https://u@a:1",
        ] {
            assert!(broker_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_whole_seconds_or_more() {
        assert_eq!(duration("15m"), Ok(Duration::from_mins(15)));
        assert_eq!(token_ttl("7d"), Ok(Duration::from_hours(7 * 24)));
        for bad in ["", "0s", "10ms", "15", "-1m", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(token_ttl("8d").is_err());
    }

    #[test]
    fn pools_name_a_kind_and_a_canonical_block() {
        assert_eq!(pool("pod=10.32.0.0/11").map(|p| p.kind), Ok(Kind::Pod));
        assert!(
            pool("pod=10.100.0.0/12")
                .unwrap_err()
                .contains("10.96.0.0/12")
        );
        for bad in [
            "10.32.0.0/11",
            "pods=10.32.0.0/11",
            "node=10.0.0.0/8",
            "pod=",
        ] {
            assert!(pool(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pasted_token_is_not_repeated() {
        let error = token_id("0123abcd.c2VjcmV0").unwrap_err();
        assert!(!error.contains("c2VjcmV0"));
        assert_eq!(token_id("0123ABCD").as_deref(), Ok("0123abcd"));
    }
}
