//! `subsea agent`. Shell.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use subsea_api::{Cidr, NodeName};
use tokio::sync::watch;

use super::args::{self, StateArg};
use super::failure::Failure;
use super::kubernetes::{self, DaemonArgs};
use crate::agent::status::Status;
use crate::agent::{AgentError, Options, encap};
use crate::control::around::{Around, Notebook};
use crate::gateway::options::Bits;
use crate::kube::cni::Marks;
use crate::kube::daemon::{Given, Room};
use crate::kube::discover::prefixes::PrefixSource;
use crate::kube::network::{self, Viewpoint};
use crate::kube::prefixes;
use crate::kube::settings::Agent as Settings;
use crate::membership::standing::BrokerStatus;
use crate::net::netlink::Mark;
use crate::state::StateDir;
use crate::task::Task;

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

    /// Instead of it: what that `subsea gateway` was given as its `--socket-dir`
    #[arg(long, value_name = "DIR", conflicts_with = "gateway_state_dir")]
    gateway_socket_dir: Option<PathBuf>,

    /// The name that this node enrolled with; another one is refused
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,

    /// A block of this node's pods, within those of the cluster; once for each. Without it the way back is the CNI's
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<Cidr>,

    /// This node's address on the nodes' network; by default the one that leads to the nodes of gateways
    #[arg(long, value_name = "IP", value_parser = args::node_address)]
    node_address: Option<IpAddr>,

    /// How packets get from node to node; the same on all nodes of a cluster [default: auto]
    #[arg(long, value_name = "HOW")]
    encap: Option<Encap>,

    /// The VXLAN device
    #[arg(long, value_name = "NAME", default_value = "subsea.vx", value_parser = args::device)]
    vxlan_device: String,

    /// The number of the VXLAN network [default: 583]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vni: Option<u32>,

    /// The UDP port of the VXLAN, the same on all nodes [default: 4851]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: Option<u16>,

    /// The TCP port of the sessions between agents, with `--encap none` also the UDP port of their echo; the same on all nodes
    /// [default: 4852]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    session_port: Option<u16>,

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

    /// Between two probes of a gateway's node [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = args::interval)]
    probe_interval: Option<Duration>,

    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Of health and metrics, in Kubernetes.
const PORT: u16 = 4854;

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
    let (around, stage) = (Around::default(), watch::Sender::default());
    let _server = args.daemon.serve(PORT, &around, &stage).await?;
    let stop = kubernetes::stop()?;
    if !args.daemon.kubernetes {
        let options = options(&args, &Settings::default());
        let mut stop = stop;
        let shutdown = async move {
            // The sender gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        // On a bare host nobody knows of further ones.
        let prefixes = watch::Sender::default().subscribe();
        crate::agent::run(options, around, prefixes, shutdown).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let (state_dir, daemon) = (args.state.state_dir.clone(), args.daemon.clone());
    Box::pin(daemon.run(Agent(args), &state_dir, around, stage, stop)).await?;
    Ok(ExitCode::SUCCESS)
}

/// How the agent is to run: as the flags say, else as the settings do.
fn options(args: &Args, settings: &Settings) -> Options {
    let defaults = Options::new(args.state.state_dir.clone());
    let encap = args.encap.map(|encap| match encap {
        // A network that drops addresses it does not know, as clouds do, says so to nobody.
        Encap::Auto | Encap::Vxlan => encap::Encap::Vxlan,
        Encap::None => encap::Encap::None,
    });
    Options {
        gateway_socket_dir: args
            .gateway_socket_dir
            .clone()
            .or_else(|| args.gateway_state_dir.clone()),
        node: args.node.clone(),
        pod_cidrs: args.pod_cidrs.clone(),
        node_address: args.node_address,
        encap: encap.or(settings.encap).unwrap_or_default(),
        vxlan: args.vxlan_device.clone(),
        vni: args.vni.or(settings.vni).unwrap_or(defaults.vni),
        vxlan_port: args
            .vxlan_port
            .or(settings.vxlan_port)
            .unwrap_or(defaults.vxlan_port),
        session_port: args
            .session_port
            .or(settings.session_port)
            .unwrap_or(defaults.session_port),
        tunnel: args.tunnel_device.clone(),
        gateway_table: args.gateway_table,
        table: args.table,
        rule_pref: args.rule_pref,
        mark: args.mark,
        interval: args
            .probe_interval
            .or(settings.probe_interval)
            .unwrap_or(defaults.interval),
        ..defaults
    }
}

/// The agent of a node of Kubernetes.
struct Agent(Args);

/// How it is to run, and who says which blocks the node's pods have.
#[derive(Debug, Clone, PartialEq)]
struct InCluster {
    options: Options,
    node: NodeName,
    source: PrefixSource,
    /// The marks of this node's gateway, if it has one.
    road_mask: u32,
}

impl Room for Agent {
    type Status = Status;
    type Options = InCluster;
    type Error = AgentError;

    fn options(&self, given: &Given, _notes: &Notebook) -> Result<InCluster, String> {
        let settings = &given.settings.agent;
        let mut options = options(&self.0, settings);
        let node = given.environment.node.clone();
        options.node = options.node.or(Some(node.clone()));
        options.node_address = options
            .node_address
            .or_else(|| given.node_addresses().first().copied());
        Ok(InCluster {
            options,
            node,
            source: settings.pod_prefixes,
            road_mask: given
                .settings
                .gateway
                .road_mask
                .map_or(Marks::default().gateway, Bits::mask),
        })
    }

    async fn run(
        &self,
        state: StateDir,
        how: InCluster,
        around: Around<Status>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let blocks = watch::Sender::new(prefixes::known(&state, &around.notes));
        let receiver = blocks.subscribe();
        let (node, notes) = (how.node.to_string(), around.notes.clone());
        let feeding = prefixes::feed(node, how.source, state.clone(), notes, blocks);
        let _feeding = Task::spawn("pod-prefixes", feeding);
        let viewpoint = Viewpoint {
            marks: Marks {
                own: how.options.mark.mask,
                gateway: how.road_mask,
                ..Marks::default()
            },
            asks: None,
            every: network::LOOK,
        };
        let looking = network::follow(viewpoint, Vec::new, around.notes.clone());
        let _network = Task::spawn("network", looking);
        crate::agent::run_in(state, how.options, around, receiver, shutdown).await
    }

    fn broker(status: &Status) -> &BrokerStatus {
        &status.broker
    }

    const READS_NODE: bool = false;
}
