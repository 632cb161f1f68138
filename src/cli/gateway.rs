//! `subsea gateway`. Shell.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use subsea_api::Cidr;
use tokio::sync::watch;

use super::args::{self, StateArg};
use super::failure::Failure;
use super::kubernetes::{self, DaemonArgs};
use crate::control::around::{Around, Notebook};
use crate::gateway::GatewayError;
use crate::gateway::options::{Bits, Driver, Mark, Options, Stripes};
use crate::gateway::spread::road_tables;
use crate::gateway::status::{BrokerStatus, Status};
use crate::kube::cni::Marks;
use crate::kube::daemon::{Given, Room};
use crate::kube::network::{self, Viewpoint};
use crate::kube::settings::Gateway as Settings;
use crate::kube::{clearing, keys, publish};
use crate::net::offload::Offloads;
use crate::net::wireguard::Names;
use crate::state::StateDir;
use crate::task::Task;

/// Runs the gateway of this node
///
/// Registers it with the broker, keeps a tunnel to every gateway of every other cluster, and keeps this host's routes,
/// rules and nftables table as the fleet needs them. Ends with SIGTERM or SIGINT; routes stay, so that nothing leaves
/// in clear meanwhile, until `subsea leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// Where the control socket is, for an agent that is to see no key; by default in the state directory, which otherwise leads
    /// there
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,

    /// Where other gateways reach this one; by default this host's address towards the broker and the listen port
    #[arg(long, value_name = "IP:PORT", value_parser = args::endpoint)]
    endpoint: Option<SocketAddr>,

    /// This node's address on its own cluster's network, where the agents of other nodes reach it; may be given for IPv4 and
    /// IPv6. By default this host's address towards the broker
    #[arg(long = "node-address", value_name = "IP", value_parser = args::node_address)]
    node_addresses: Vec<IpAddr>,

    /// The UDP port of the tunnels; the kernel driver takes one more for each further gateway that a cluster has, upwards
    /// [default: 51820]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    listen_port: Option<u16>,

    /// How many WireGuard sessions with the same gateway, 1 to 8; the further ones on the ports after the first one's.
    /// Used are as many as both sides have. With auto, one until there is use for more [default: auto]
    #[arg(long, value_name = "auto|N", value_parser = args::stripes)]
    stripes: Option<Stripes>,

    /// The WireGuard data plane [default: auto]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<DriverArg>,

    /// The tunnel device; the kernel driver numbers further ones from it: `subsea1`
    #[arg(long, value_name = "NAME", default_value = "subsea0", value_parser = args::device)]
    device: String,

    /// The routing table of the remote blocks
    #[arg(long, value_name = "NUMBER", default_value = "583", value_parser = args::table)]
    table: u32,

    /// The preference of the rule that leads to the table
    #[arg(long, value_name = "NUMBER", default_value = "583", value_parser = clap::value_parser!(u32).range(1..=32765))]
    rule_pref: u32,

    /// The first of 16 routing tables by which replies keep the road of their flow with the kernel driver; their rules come
    /// 4 before that of the table
    #[arg(long, value_name = "NUMBER", default_value = "660", value_parser = args::table)]
    road_table: u32,

    /// The bits of marks that tell the kernel driver which road that is. With Cilium, which uses 0xf00, take 0x3000
    /// [default: 0x3f00]
    #[arg(long, value_name = "MASK", value_parser = args::bits)]
    road_mask: Option<Bits>,

    /// The mark, and its bits, by which our own packets pass the rule
    #[arg(long, value_name = "VALUE/MASK", default_value = "0x40/0x40", value_parser = args::mark)]
    mark: Mark,

    /// The MTU of the tunnel device; by default 1420, or 80 less than the underlay's where that is smaller
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65455))]
    mtu: Option<u32>,

    /// What the kernel may do for the userspace data plane: `auto`, `off`, or a list of tun-tso, tun-uso, udp-gso, udp-gro
    #[arg(long, value_name = "LIST", default_value = "auto")]
    offloads: Offloads,

    /// Between two probes of a path that carries traffic: a dead path is found in about 0.7 s with 250ms, 0.5 s with 50ms
    /// [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = args::interval)]
    probe_interval: Option<Duration>,

    /// An address in our own cluster that answers ping, for example of another node; may be given several times. When all of
    /// them are silent for a second, this gateway has itself left out
    #[arg(long = "inward-probe", value_name = "IP")]
    inward_probes: Vec<IpAddr>,

    /// For tests: renew every session that is so old, where `WireGuard` itself waits for 120 s
    #[arg(long, value_name = "SECONDS", hide = true, value_parser = clap::value_parser!(u64).range(2..=120))]
    rekey_after: Option<u64>,

    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverArg {
    /// The kernel's where it has WireGuard, else userspace
    Auto,
    /// The kernel's WireGuard
    Kernel,
    /// In this process, on a TUN device
    Userspace,
}

/// Of health and metrics, in Kubernetes.
const PORT: u16 = 4853;

/// The longest name of a device (`IFNAMSIZ`).
const NAME: usize = 15;

/// Runs until a signal.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let (around, stage) = (Around::default(), watch::Sender::default());
    // What makes no sense without any settings makes none with them.
    let options = options(&args, &Settings::default())?;
    let _server = args.daemon.serve(PORT, &around, &stage).await?;
    let stop = kubernetes::stop()?;
    if !args.daemon.kubernetes {
        let mut stop = stop;
        let shutdown = async move {
            // The sender gone means the same.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        crate::gateway::run(options, around, shutdown).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let (ended, over) = watch::channel(false);
    let publishing = Task::spawn("kubernetes", publish::run(around.clone(), over));
    let state_dir = args.state.state_dir.clone();
    let daemon = args.daemon.clone();
    let run = Box::pin(daemon.run(Gateway(args), &state_dir, around, stage, stop)).await;
    ended.send_replace(true);
    kubernetes::last_words(publishing).await;
    run.map(|()| ExitCode::SUCCESS)
}

/// How the gateway is to run: as the flags say, else as the settings do.
fn options(args: &Args, settings: &Settings) -> Result<Options, Failure> {
    let defaults = Options::new(args.state.state_dir.clone());
    let driver = args.driver.map(|driver| match driver {
        DriverArg::Auto => Driver::Auto,
        DriverArg::Kernel => Driver::Kernel,
        DriverArg::Userspace => Driver::Userspace,
    });
    let inward_probes = if args.inward_probes.is_empty() {
        settings.inward_probes.clone()
    } else {
        args.inward_probes.clone()
    };
    let options = Options {
        socket_dir: args.socket_dir.clone(),
        node_addresses: args.node_addresses.clone(),
        endpoint: args.endpoint,
        listen_port: args
            .listen_port
            .or(settings.listen_port)
            .unwrap_or(defaults.listen_port),
        stripes: args.stripes.or(settings.stripes).unwrap_or_default(),
        driver: driver.or(settings.driver).unwrap_or_default(),
        device: args.device.clone(),
        table: args.table,
        rule_pref: args.rule_pref,
        road_table: args.road_table,
        road_bits: args
            .road_mask
            .or(settings.road_mask)
            .unwrap_or(defaults.road_bits),
        mark: args.mark,
        mtu: args.mtu.or(settings.mtu),
        offloads: args.offloads,
        probe_interval: args
            .probe_interval
            .or(settings.probe_interval)
            .unwrap_or(defaults.probe_interval),
        inward_probes,
        rekey_after: args.rekey_after.map(Duration::from_secs),
        ..defaults
    };
    check(&options)?;
    Ok(options)
}

/// Whether the options go together.
fn check(options: &Options) -> Result<(), Failure> {
    let last = match options.stripes {
        Stripes::Fixed(stripes) => stripes.saturating_sub(1),
        Stripes::Auto => 0,
    };
    let first = [
        Some(options.listen_port),
        options.endpoint.map(|e| e.port()),
    ];
    if let Some(port) = first
        .into_iter()
        .flatten()
        .find(|port| port.checked_add(last).is_none())
    {
        return Err(Failure::usage(format!(
            "{} stripes need a UDP port each, and there are not so many from {port} on",
            last + 1
        )));
    }
    let last = Names::new(&options.device).of_last_slot();
    if options.driver != Driver::Userspace && last.len() > NAME {
        return Err(Failure::usage(format!(
            "the kernel driver's devices would be named up to `{last}`, and a name has at most {NAME} characters: \
             choose a shorter --device, or use `--driver userspace`"
        )));
    }
    if road_tables(options.road_table).contains(&options.table) {
        return Err(Failure::usage(format!(
            "--table {} is among the 16 tables from --road-table {} on: choose another one",
            options.table, options.road_table
        )));
    }
    if options.road_bits.mask() & options.mark.mask != 0 {
        return Err(Failure::usage(format!(
            "--road-mask {:#x} and --mark {} have bits in common: choose other ones",
            options.road_bits.mask(),
            options.mark
        )));
    }
    Ok(())
}

/// The gateway of a node of Kubernetes.
struct Gateway(Args);

/// The blocks of the other clusters, as they are known on disk.
fn remote(state: StateDir) -> impl Fn() -> Vec<Cidr> {
    move || {
        let own = state.membership().ok().flatten().map(|m| m.cluster);
        let snapshot = state.snapshot().ok().flatten();
        let members = snapshot.iter().flat_map(|snapshot| &snapshot.clusters);
        let others = members.filter(|(id, _)| Some(*id) != own.as_ref());
        let blocks = others.flat_map(|(_, member)| &member.allocations);
        blocks.map(|allocation| allocation.cidr).collect()
    }
}

impl Room for Gateway {
    type Status = Status;
    type Options = Options;
    type Error = GatewayError;

    fn options(&self, given: &Given, notes: &Notebook) -> Result<Options, String> {
        let options = options(&self.0, &given.settings.gateway);
        let mut options = options.map_err(|failure| failure.message().to_owned())?;
        if options.node_addresses.is_empty() {
            options.node_addresses = given.node_addresses();
        }
        options.endpoint = options
            .endpoint
            .or_else(|| given.endpoint(options.listen_port, notes));
        let fine = check(&options);
        fine.map_err(|failure| failure.message().to_owned())?;
        Ok(options)
    }

    async fn run(
        &self,
        state: StateDir,
        options: Options,
        around: Around<Status>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), GatewayError> {
        let mark = options.mark.value & options.mark.mask;
        let following = keys::follow(state.clone(), mark, around.notes.clone());
        let _keys = Task::spawn("service-account-keys", following);
        let clearing = clearing::follow(state.clone(), mark, around.clone());
        let _clearing = Task::spawn("gone-gateways", clearing);
        let viewpoint = Viewpoint {
            marks: Marks {
                own: options.mark.mask,
                gateway: options.road_bits.mask(),
                ..Marks::default()
            },
            asks: state
                .membership()
                .ok()
                .flatten()
                .map(|m| m.node.to_string()),
            every: network::LOOK,
        };
        let looking = network::follow(viewpoint, remote(state.clone()), around.notes.clone());
        let _network = Task::spawn("network", looking);
        crate::gateway::run_in(state, options, around, shutdown).await
    }

    fn broker(status: &Status) -> &BrokerStatus {
        &status.broker
    }

    const READS_NODE: bool = true;
}
