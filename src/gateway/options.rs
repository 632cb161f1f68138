//! How a gateway daemon is to run. PURE.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listeners::MAX_STRIPES;
pub use crate::host::Mark;
pub use crate::net::nft::ruleset::Bits;
use crate::net::offload::Offloads;
use crate::tunnel::userspace::stripes::{Plan, most};

/// The routing table of the first road.
const ROAD_TABLE: u32 = 660;

/// Which data plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The best that the host has.
    #[default]
    Auto,
    /// The kernel's WireGuard.
    Kernel,
    /// WireGuard in this process, on a TUN device.
    Userspace,
}

/// How many sessions with the same gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stripes {
    /// One, until the data plane is full with that.
    #[default]
    Auto,
    /// So many, from 1.
    Fixed(u16),
}

impl FromStr for Stripes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(stripes @ 1..=MAX_STRIPES) => Ok(Self::Fixed(stripes)),
            Err(_) if text == "auto" => Ok(Self::Auto),
            Ok(_) | Err(_) => Err(format!("write auto, or a number from 1 to {MAX_STRIPES}")),
        }
    }
}

/// How a gateway daemon is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where its keys, certificate and snapshot are.
    pub state_dir: PathBuf,
    /// Where its control socket is; by default in the state directory, which else leads there.
    pub socket_dir: Option<PathBuf>,
    /// Where other gateways find it; by default the source address towards the broker and `listen_port`. Further
    /// listeners have the ports after its own.
    pub endpoint: Option<SocketAddr>,
    /// The addresses of this node on the network of its own cluster, where the agents of that cluster reach it; by
    /// default the source address towards the broker.
    pub node_addresses: Vec<IpAddr>,
    /// The UDP port of the tunnels; further listeners, for stripes or for slots, have the ports after it.
    pub listen_port: u16,
    /// How many sessions with the same gateway.
    pub stripes: Stripes,
    /// Which data plane.
    pub driver: Driver,
    /// The tunnel device; with the kernel driver, that of slot 0, after which those of further slots are named.
    pub device: String,
    /// The routing table.
    pub table: u32,
    /// The preference of the rule that leads to it.
    pub rule_pref: u32,
    /// The first of the routing tables by which replies keep the road of their flow; the kernel driver has one for each slot.
    pub road_table: u32,
    /// The bits of marks that tell it which road that is.
    pub road_bits: Bits,
    /// The mark of our own packets.
    pub mark: Mark,
    /// The MTU of the tunnel device; by default 1420, or 80 less than the underlay's where that is smaller.
    pub mtu: Option<u32>,
    /// What the kernel may be asked to do for the userspace data plane.
    pub offloads: Offloads,
    /// Between two probes of a path that carries traffic.
    pub probe_interval: Duration,
    /// Addresses in our own cluster that answer ping: when all of them are silent, the gateway takes no flows.
    pub inward_probes: Vec<IpAddr>,
    /// For tests: the age at which the side that leads renews a session.
    pub rekey_after: Option<Duration>,
}

impl Options {
    /// How many lanes the userspace data plane is to have on a machine of so many cores.
    pub fn lanes(&self, cores: usize) -> Plan {
        match self.stripes {
            Stripes::Fixed(count) => Plan::Fixed(count),
            Stripes::Auto => Plan::Auto { most: most(cores) },
        }
    }

    /// The defaults on a state directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            socket_dir: None,
            endpoint: None,
            node_addresses: Vec::new(),
            listen_port: 51820,
            stripes: Stripes::Auto,
            driver: Driver::Auto,
            device: "subsea0".to_owned(),
            table: 583,
            rule_pref: 583,
            road_table: ROAD_TABLE,
            road_bits: Bits::GATEWAY,
            mark: Mark::default(),
            mtu: None,
            offloads: Offloads::AUTO,
            probe_interval: Duration::from_millis(250),
            inward_probes: Vec::new(),
            rekey_after: None,
        }
    }
}

/// What a gateway put its name on in the kernel, kept for `subsea leave` in `gateway.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The tunnel device.
    pub device: String,
    /// The routing table.
    pub table: u32,
    /// The first routing table of roads.
    #[serde(default = "road_table")]
    pub road_table: u32,
    /// The preference of the rule.
    pub rule_pref: u32,
    /// The mark of our own packets.
    pub mark: Mark,
    /// The UDP port of the tunnels.
    pub listen_port: u16,
}

/// Before it could be chosen.
fn road_table() -> u32 {
    ROAD_TABLE
}

impl From<&Options> for LastRun {
    fn from(options: &Options) -> Self {
        Self {
            device: options.device.clone(),
            table: options.table,
            road_table: options.road_table,
            rule_pref: options.rule_pref,
            mark: options.mark,
            listen_port: options.listen_port,
        }
    }
}
