//! `subsea agent`. Shell.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use subsea_api::{Cidr, NodeName};

use super::args::{self, StateArg};
use super::failure::Failure;
use super::gateway::signals;
use crate::agent::{Options, encap};
use crate::control::around::Around;
use crate::net::netlink::Mark;

/// Runs the agent of this node
///
/// Sends this node's traffic for other clusters to healthy gateways of its own cluster, over VXLAN or directly, and leads
/// what comes from there back the same way. Belongs on every node, also on those with a gateway. Needs a state directory of its own,
/// which `subsea join` makes with a join file of role `agent`. Ends with SIGTERM or SIGINT; routes stay, until `subsea leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// The state directory of `subsea gateway` on this node; without it the agent of a gateway's node uses other gateways only
    #[arg(long, value_name = "DIR")]
    gateway_state_dir: Option<PathBuf>,

    /// The name that this node enrolled with; another one is refused
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,

    /// A block of this node's pods, within those of the cluster; once for each. Without it the way back is the CNI's
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<Cidr>,

    /// This node's address on the nodes' network; by default the one that leads to the nodes of gateways
    #[arg(long, value_name = "IP", value_parser = args::node_address)]
    node_address: Option<IpAddr>,

    /// How packets get from node to node; the same on all nodes of a cluster
    #[arg(long, value_name = "HOW", default_value = "auto")]
    encap: Encap,

    /// The VXLAN device
    #[arg(long, value_name = "NAME", default_value = "subsea.vx", value_parser = args::device)]
    vxlan_device: String,

    /// The number of the VXLAN network
    #[arg(long, value_name = "NUMBER", default_value = "583", value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vni: u32,

    /// The UDP port of the VXLAN, the same on all nodes
    #[arg(long, value_name = "PORT", default_value = "4851", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,

    /// The TCP port of the sessions between agents, with `--encap none` also the UDP port of their echo; the same on all nodes
    #[arg(long, value_name = "PORT", default_value = "4852", value_parser = clap::value_parser!(u16).range(1..))]
    session_port: u16,

    /// The tunnel device of this node's gateway
    #[arg(long, value_name = "NAME", default_value = "subsea0", value_parser = args::device)]
    tunnel_device: String,

    /// The routing table of this node's gateway
    #[arg(long, value_name = "NUMBER", default_value = "583", value_parser = args::table)]
    gateway_table: u32,

    /// The first routing table of this agent; the 64 after it are its own, too
    #[arg(long, value_name = "NUMBER", default_value = "584", value_parser = args::table)]
    table: u32,

    /// The preference of this agent's main rule; its others have the two before it and the second after it
    #[arg(long, value_name = "NUMBER", default_value = "582", value_parser = clap::value_parser!(u32).range(3..=32763))]
    rule_pref: u32,

    /// The mark, and its bits, by which our own packets pass the rule
    #[arg(long, value_name = "VALUE/MASK", default_value = "0x40/0x40", value_parser = args::mark)]
    mark: Mark,

    /// Between two probes of a gateway's node
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = args::interval)]
    probe_interval: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Encap {
    /// What works on every network: VXLAN
    Auto,
    /// In VXLAN, so that the network sees addresses of nodes only
    Vxlan,
    /// As they are, with pod addresses; gateways that are not on a link with this node are not used
    None,
}

/// Runs until a signal.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = Options {
        state_dir: args.state.state_dir,
        gateway_state_dir: args.gateway_state_dir,
        node: args.node,
        pod_cidrs: args.pod_cidrs,
        node_address: args.node_address,
        encap: match args.encap {
            // A network that drops addresses it does not know, as clouds do, says so to nobody.
            Encap::Auto | Encap::Vxlan => encap::Encap::Vxlan,
            Encap::None => encap::Encap::None,
        },
        vxlan: args.vxlan_device,
        vni: args.vni,
        vxlan_port: args.vxlan_port,
        session_port: args.session_port,
        tunnel: args.tunnel_device,
        gateway_table: args.gateway_table,
        table: args.table,
        rule_pref: args.rule_pref,
        mark: args.mark,
        interval: args.probe_interval,
    };
    let prefixes = tokio::sync::watch::Sender::default();
    let shutdown = signals()?;
    crate::agent::run(options, Around::default(), prefixes.subscribe(), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}
