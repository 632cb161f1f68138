//! How an agent is to run. PURE.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, NodeName};

use super::encap::Encap;
use crate::host::{Part, Settings};
use crate::net::netlink::types::{Mark, TABLE};

/// The most gateways of a cluster that replies can be led back to: so many numbers fit into the mark.
pub const MAX_ROADS: u16 = 62;

/// The table of the routes to gateways; those of the nodes behind a gateway and of single gateways come after it.
pub const AGENT_TABLE: u32 = 584;
/// The preference of the rule that leads to it; those for what comes in by a tunnel or from another node come before it.
pub const AGENT_RULE_PREF: u32 = 582;

/// How an agent is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where its key, certificate and snapshot are.
    pub state_dir: PathBuf,
    /// Where the gateway on this node has its control socket, if one may run here.
    pub gateway_socket_dir: Option<PathBuf>,
    /// The name that this node must have enrolled with.
    pub node: Option<NodeName>,
    /// The blocks of this node's pods.
    pub pod_cidrs: Vec<Cidr>,
    /// Our address on the nodes' network; by default the one that leads to the gateways' nodes.
    pub node_address: Option<IpAddr>,
    /// How packets get to the gateways' nodes.
    pub encap: Encap,
    /// The VXLAN device.
    pub vxlan: String,
    /// The number of the VXLAN network.
    pub vni: u32,
    /// The UDP port of the VXLAN.
    pub vxlan_port: u16,
    /// The TCP port of the sessions between agents; without VXLAN also the UDP port of the echo between them.
    pub session_port: u16,
    /// The tunnel device of the gateway on this node.
    pub tunnel: String,
    /// The routing table of the gateway on this node.
    pub gateway_table: u32,
    /// Our first routing table.
    pub table: u32,
    /// The preference of our main rule; the two before it are ours, and on a gateway's node the second after it.
    pub rule_pref: u32,
    /// The mark of our own packets.
    pub mark: Mark,
    /// Between probes of a gateway's node.
    pub interval: Duration,
}

impl Options {
    /// The defaults on a state directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            gateway_socket_dir: None,
            node: None,
            pod_cidrs: Vec::new(),
            node_address: None,
            encap: Encap::default(),
            vxlan: "subsea.vx".to_owned(),
            vni: 583,
            vxlan_port: 4851,
            session_port: 4852,
            tunnel: "subsea0".to_owned(),
            gateway_table: TABLE,
            table: AGENT_TABLE,
            rule_pref: AGENT_RULE_PREF,
            mark: Mark::default(),
            interval: Duration::from_millis(250),
        }
    }

    /// The blocks of this node's pods: those that we were told at the start, and those that are `known` now.
    pub fn prefixes(&self, known: &[Cidr]) -> Vec<Cidr> {
        let mut all: Vec<Cidr> = self.pod_cidrs.iter().chain(known).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The table of what comes out of a tunnel for the nodes.
    pub fn nodes_table(&self) -> u32 {
        nodes_table(self.table)
    }

    /// The table of what refuses, on a gateway's node.
    pub fn backstop_table(&self) -> u32 {
        backstop_table(self.table)
    }

    /// The table of the road back to the gateway of a slot.
    pub fn road_table(&self, slot: u16) -> u32 {
        road_table(self.table, slot)
    }
}

fn nodes_table(first: u32) -> u32 {
    first + 1
}

fn road_table(first: u32, slot: u16) -> u32 {
    first + 2 + u32::from(slot)
}

fn backstop_table(first: u32) -> u32 {
    road_table(first, MAX_ROADS)
}

/// What an agent put its name on in the kernel, kept for `subsea leave` in `agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The VXLAN device.
    pub vxlan: String,
    /// The first routing table.
    pub table: u32,
    /// The preference of the last rule.
    pub rule_pref: u32,
    /// The mark of our own packets.
    pub mark: Mark,
}

impl From<&Options> for LastRun {
    fn from(options: &Options) -> Self {
        Self {
            vxlan: options.vxlan.clone(),
            table: options.table,
            rule_pref: options.rule_pref,
            mark: options.mark,
        }
    }
}

impl LastRun {
    /// What of the kernel is the agent's: the tables of all roads that there may be are among it, since something may have
    /// been left in one of them.
    pub fn settings(&self) -> Settings {
        let roads = (0..MAX_ROADS).map(|slot| road_table(self.table, slot));
        Settings {
            part: Part::Agent,
            device: None,
            vxlan: Some(self.vxlan.clone()),
            table: self.table,
            tables: roads
                .chain([nodes_table(self.table), backstop_table(self.table)])
                .collect(),
            rule_pref: self.rule_pref,
            mark: self.mark,
        }
    }
}
