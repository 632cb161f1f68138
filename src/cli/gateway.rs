//! `subsea gateway`. Shell.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{self, StateArg};
use super::failure::Failure;
use crate::control::around::Around;
use crate::gateway::options::{Bits, Driver, Mark, Options, Stripes};
use crate::gateway::spread::road_tables;
use crate::net::offload::Offloads;
use crate::net::wireguard::Names;

/// Runs the gateway of this node
///
/// Registers it with the broker, keeps a tunnel to every gateway of every other cluster, and keeps this host's routes,
/// rules and nftables table as the fleet needs them. Ends with SIGTERM or SIGINT; routes stay, so that nothing leaves
/// in clear meanwhile, until `subsea leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// Where other gateways reach this one; by default this host's address towards the broker and the listen port
    #[arg(long, value_name = "IP:PORT", value_parser = args::endpoint)]
    endpoint: Option<SocketAddr>,

    /// This node's address on its own cluster's network, where the agents of other nodes reach it; may be given for IPv4 and
    /// IPv6. By default this host's address towards the broker
    #[arg(long = "node-address", value_name = "IP", value_parser = args::node_address)]
    node_addresses: Vec<IpAddr>,

    /// The UDP port of the tunnels; the kernel driver takes one more for each further gateway that a cluster has, upwards
    #[arg(long, value_name = "PORT", default_value = "51820", value_parser = clap::value_parser!(u16).range(1..))]
    listen_port: u16,

    /// How many WireGuard sessions with the same gateway, 1 to 8; the further ones on the ports after the first one's.
    /// Used are as many as both sides have. With auto, one until there is use for more
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = args::stripes)]
    stripes: Stripes,

    /// The WireGuard data plane
    #[arg(long, value_name = "DRIVER", default_value = "auto")]
    driver: DriverArg,

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
    #[arg(long, value_name = "MASK", default_value = "0x3f00", value_parser = args::bits)]
    road_mask: Bits,

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
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = args::interval)]
    probe_interval: Duration,

    /// An address in our own cluster that answers ping, for example of another node; may be given several times. When all of
    /// them are silent for a second, this gateway has itself left out
    #[arg(long = "inward-probe", value_name = "IP")]
    inward_probes: Vec<IpAddr>,

    /// For tests: renew every session that is so old, where `WireGuard` itself waits for 120 s
    #[arg(long, value_name = "SECONDS", hide = true, value_parser = clap::value_parser!(u64).range(2..=120))]
    rekey_after: Option<u64>,
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

/// The longest name of a device (`IFNAMSIZ`).
const NAME: usize = 15;

/// Runs until a signal.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let last = match args.stripes {
        Stripes::Fixed(stripes) => stripes.saturating_sub(1),
        Stripes::Auto => 0,
    };
    let first = [Some(args.listen_port), args.endpoint.map(|e| e.port())];
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
    let last = Names::new(&args.device).of_last_slot();
    if !matches!(args.driver, DriverArg::Userspace) && last.len() > NAME {
        return Err(Failure::usage(format!(
            "the kernel driver's devices would be named up to `{last}`, and a name has at most {NAME} characters: \
             choose a shorter --device, or use `--driver userspace`"
        )));
    }
    if road_tables(args.road_table).contains(&args.table) {
        return Err(Failure::usage(format!(
            "--table {} is among the 16 tables from --road-table {} on: choose another one",
            args.table, args.road_table
        )));
    }
    if args.road_mask.mask() & args.mark.mask != 0 {
        return Err(Failure::usage(format!(
            "--road-mask {:#x} and --mark {} have bits in common: choose other ones",
            args.road_mask.mask(),
            args.mark
        )));
    }
    let options = Options {
        node_addresses: args.node_addresses,
        state_dir: args.state.state_dir,
        endpoint: args.endpoint,
        listen_port: args.listen_port,
        stripes: args.stripes,
        driver: match args.driver {
            DriverArg::Auto => Driver::Auto,
            DriverArg::Kernel => Driver::Kernel,
            DriverArg::Userspace => Driver::Userspace,
        },
        device: args.device,
        table: args.table,
        rule_pref: args.rule_pref,
        road_table: args.road_table,
        road_bits: args.road_mask,
        mark: args.mark,
        mtu: args.mtu,
        offloads: args.offloads,
        probe_interval: args.probe_interval,
        inward_probes: args.inward_probes,
        rekey_after: args.rekey_after.map(Duration::from_secs),
    };
    let shutdown = signals()?;
    crate::gateway::run(options, Around::default(), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// Resolves with SIGTERM or SIGINT.
pub(super) fn signals() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |e| Failure::failed(format!("signals cannot be received: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
