//! The daemons' settings in the `ConfigMap` `subsea-config`, key `config.yaml`. PURE.
//!
//! Every key may be left out; a key that is not known is an error that names it. Flags of the command line win.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::discover::prefixes::PrefixSource;
use crate::agent::encap::Encap;
use crate::gateway::health_timing;
use crate::gateway::options::{Bits, Driver, Stripes};

/// The longest text.
pub const MAX: usize = 64 * 1024;

/// What `config.yaml` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// What is in the log, as `SUBSEA_LOG` says it: `info`, or `info,subsea::gateway=debug`.
    pub log_level: Option<String>,
    /// Of `subsea gateway`.
    pub gateway: Gateway,
    /// Of `subsea agent`.
    pub agent: Agent,
}

/// Settings of `subsea gateway`, as its flags explain them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// `--driver`.
    pub driver: Option<Driver>,
    /// `--listen-port`.
    #[serde(deserialize_with = "port")]
    pub listen_port: Option<u16>,
    /// `--stripes`.
    #[serde(deserialize_with = "text_or_number")]
    pub stripes: Option<Stripes>,
    /// `--mtu`.
    #[serde(deserialize_with = "mtu")]
    pub mtu: Option<u32>,
    /// `--probe-interval`.
    #[serde(deserialize_with = "interval")]
    pub probe_interval: Option<Duration>,
    /// `--inward-probe`.
    pub inward_probes: Vec<IpAddr>,
    /// `--road-mask`.
    #[serde(deserialize_with = "text_or_number")]
    pub road_mask: Option<Bits>,
}

/// Settings of `subsea agent`, as its flags explain them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Agent {
    /// `--encap`.
    #[serde(deserialize_with = "encap")]
    pub encap: Option<Encap>,
    /// Who gives a node the blocks of its pods: auto, node, calico, cilium, ovn-kubernetes or none. It has no flag.
    pub pod_prefixes: PrefixSource,
    /// `--vni`.
    #[serde(deserialize_with = "vni")]
    pub vni: Option<u32>,
    /// `--vxlan-port`.
    #[serde(deserialize_with = "port")]
    pub vxlan_port: Option<u16>,
    /// `--session-port`.
    #[serde(deserialize_with = "port")]
    pub session_port: Option<u16>,
    /// `--probe-interval`.
    #[serde(deserialize_with = "interval")]
    pub probe_interval: Option<Duration>,
}

/// The text is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; what was good before holds on")]
pub struct SettingsError(pub String);

impl Settings {
    /// Reads the YAML form. An empty text says nothing.
    ///
    /// # Errors
    /// [`SettingsError`], which names the key.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        if text.len() > MAX {
            return Err(SettingsError(format!("it is longer than {MAX} bytes")));
        }
        let empty = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if text.lines().all(empty) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let text = error.to_string();
            // Below the first line the parser shows a piece of the text.
            let line = text.lines().next().unwrap_or_default();
            SettingsError(line.trim_start_matches("error: ").to_owned())
        })
    }
}

/// The text of a configuration that was good, as it is kept for a start with one that is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// It.
    pub yaml: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Number(u32),
    Text(String),
}

/// A value that may look like a number.
fn text_or_number<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = match Option::<TextOrNumber>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(TextOrNumber::Number(number)) => number.to_string(),
        Some(TextOrNumber::Text(text)) => text,
    };
    text.parse().map(Some).map_err(D::Error::custom)
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let parse = |text: String| health_timing::interval(&text).map_err(D::Error::custom);
    text.map(parse).transpose()
}

fn encap<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Encap>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None => Ok(None),
        Some("auto" | "vxlan") => Ok(Some(Encap::Vxlan)),
        Some("none") => Ok(Some(Encap::None)),
        Some(_) => Err(D::Error::custom("write auto, vxlan or none")),
    }
}

/// A number within these bounds.
fn within<'de, D: Deserializer<'de>>(
    deserializer: D,
    bounds: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(deserializer)? {
        Some(number) if !bounds.contains(&number) => Err(D::Error::custom(format!(
            "write a number from {} to {}",
            bounds.start(),
            bounds.end()
        ))),
        number => Ok(number),
    }
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let port = within(deserializer, 1..=u32::from(u16::MAX))?;
    Ok(port.and_then(|port| u16::try_from(port).ok()))
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    within(deserializer, 1280..=65455)
}

fn vni<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    within(deserializer, 1..=(1 << 24) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_understood() {
        let text = "
logLevel: info,subsea::gateway=debug
gateway:
  driver: userspace
  listenPort: 51900
  stripes: 4
  mtu: 1380
  probeInterval: 100ms
  inwardProbes: [10.0.0.5, 'fd00::5']
  roadMask: 0x3000
agent:
  encap: none
  podPrefixes: calico
  vni: 600
  vxlanPort: 4900
  sessionPort: 4901
  probeInterval: 1s
";
        let settings = Settings::parse(text).unwrap();
        assert_eq!(settings.gateway.driver, Some(Driver::Userspace));
        assert_eq!(settings.gateway.listen_port, Some(51900));
        assert_eq!(settings.gateway.stripes, Some(Stripes::Fixed(4)));
        assert_eq!(
            settings.gateway.probe_interval,
            Some(Duration::from_millis(100))
        );
        assert_eq!(settings.gateway.inward_probes.len(), 2);
        assert_eq!(settings.gateway.road_mask.unwrap().mask(), 0x3000);
        assert_eq!(settings.agent.encap, Some(Encap::None));
        assert_eq!(settings.agent.session_port, Some(4901));
        assert_eq!(settings.agent.vni, Some(600));
        assert_eq!(settings.agent.pod_prefixes, PrefixSource::Calico);
        let few = Settings::parse("gateway: {stripes: auto, roadMask: '0x3f00'}\n").unwrap();
        assert_eq!(few.gateway.stripes, Some(Stripes::Auto));
        assert_eq!(few.agent, Agent::default());
        for nothing in ["", "\n", "# nothing yet\n\n", "gateway: {}\n"] {
            assert_eq!(
                Settings::parse(nothing).unwrap(),
                Settings::default(),
                "{nothing:?}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("gateway:\n  listenport: 1\n", "listenport"),
            ("colour: blue\n", "colour"),
            ("agent: {mtu: 1400}\n", "mtu"),
            ("gateway: {driver: magic}\n", "magic"),
            ("gateway: {listenPort: 0}\n", "from 1 to 65535"),
            ("gateway: {listenPort: 70000}\n", "from 1 to 65535"),
            ("gateway: {mtu: 100}\n", "from 1280"),
            ("gateway: {stripes: 9}\n", "from 1 to 8"),
            ("gateway: {probeInterval: 1h}\n", "20ms to 10s"),
            ("gateway: {roadMask: 0x5}\n", "side by side"),
            ("agent: {encap: geneve}\n", "vxlan or none"),
            ("agent: {podPrefixes: magic}\n", "magic"),
            ("agent: {vni: 0}\n", "from 1 to 16777215"),
            ("- a\n- b\n", ""),
            ("gateway: [\n", ""),
        ] {
            let error = Settings::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(Settings::parse(&"# a\n".repeat(20_000)).is_err());
    }
}
