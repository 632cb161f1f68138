//! How long the reconciler needs for many prefixes, in a network namespace of its own. Needs root.
//!
//! `cargo bench --bench reconcile [-- PREFIXES]`, 10,000 by default.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it prints a table"
)]

use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use subsea::host::desired::desired;
use subsea::host::{Input, Mark, Reconciler, Report, Settings};
use subsea_api::{Allocation, Cidr, Kind};

const INSIDE: &str = "SUBSEA_BENCH_INSIDE";
const PASSES: usize = 9;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` runs it, too.
    if !args.iter().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(INSIDE).is_none() {
        let Ok(own) = std::env::current_exe() else {
            return ExitCode::FAILURE;
        };
        let status = Command::new("unshare")
            .arg("--net")
            .arg(own)
            .args(&args)
            .env(INSIDE, "1")
            .status();
        return if status.is_ok_and(|s| s.success()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let prefixes = args.iter().find_map(|a| a.parse().ok()).unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime
        .map_err(|e| e.to_string())
        .and_then(|r| r.block_on(measure(prefixes)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(prefixes: u32) -> Result<(), String> {
    let device = Command::new("sh")
        .args(["-ec", "ip link set lo up; ip tuntap add subsea0 mode tun"])
        .status();
    if !device.is_ok_and(|s| s.success()) {
        return Err("no TUN device: root and iproute2 are needed".into());
    }
    let started = Instant::now();
    let wanted = desired(&input(prefixes));
    let pure = started.elapsed();
    let mut reconciler = Reconciler::new(Settings::default()).map_err(|e| e.to_string())?;
    let first = reconciler
        .reconcile(&wanted)
        .await
        .map_err(|e| e.to_string())?;
    expect(&first, true)?;
    let mut quiet = Vec::new();
    for _ in 0..PASSES {
        let report = reconciler
            .reconcile(&wanted)
            .await
            .map_err(|e| e.to_string())?;
        expect(&report, false)?;
        quiet.push(report.took);
    }
    // Another table of nftables changes: our own must be listed and compared.
    let mut compared = Vec::new();
    for i in 0..PASSES {
        let _ = Command::new("nft")
            .args(["add", "table", "ip", &format!("t{i}")])
            .status();
        let report = reconciler
            .reconcile(&wanted)
            .await
            .map_err(|e| e.to_string())?;
        expect(&report, false)?;
        compared.push(report.took);
    }
    let one = Command::new("ip")
        .args(["route", "flush", "table", "583"])
        .status();
    if !one.is_ok_and(|s| s.success()) {
        return Err("could not remove the routes".into());
    }
    let healed = reconciler
        .reconcile(&wanted)
        .await
        .map_err(|e| e.to_string())?;
    expect(&healed, true)?;
    println!("{prefixes} prefixes, {} routes", wanted.routes.len());
    let rows = [
        ("desired state (pure)", pure),
        ("first convergence", first.took),
        ("pass without a change, median", median(quiet)),
        (
            "pass without a change, nftables changed elsewhere, median",
            median(compared),
        ),
        ("all IPv4 routes removed by somebody: healing", healed.took),
    ];
    for (what, took) in rows {
        println!("| {what:<57} | {:>9.1} ms |", took.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Nine IPv4 prefixes to one IPv6 prefix.
fn input(prefixes: u32) -> Input {
    let block = |i: u32| match u16::try_from(i / 10) {
        Ok(n) if i % 10 == 9 => {
            Cidr::containing(IpAddr::from([0xfd00, 0x64, n, 0, 0, 0, 0, 0]), 48)
        }
        _ => Cidr::containing(IpAddr::from((0x0a40_0000 + (i << 8)).to_be_bytes()), 24),
    };
    let allocation = |cidr: Cidr| Allocation {
        kind: Kind::Pod,
        cidr,
        exported: true,
    };
    Input {
        local: vec![allocation(Cidr::containing(
            IpAddr::from([10, 32, 0, 0]),
            16,
        ))],
        inner: vec![
            IpAddr::from([198, 19, 0, 1]),
            IpAddr::from([0xfd00, 0x19, 0, 0, 0, 0, 0, 1]),
        ],
        remote: (0..prefixes)
            .map(|n| (block(n), Some("subsea0".into())))
            .collect(),
        device: "subsea0".into(),
        devices: ["subsea0".into()].into(),
        wireguard: false,
        checks: false,
        mtu: 1420,
        mtus: std::collections::BTreeMap::new(),
        table: 583,
        rule_pref: 583,
        mark: Mark::default(),
        host_addresses: Vec::new(),
        keep: false,
    }
}

fn expect(report: &Report, changes: bool) -> Result<(), String> {
    if report.converged() && (report.changes > 0) == changes {
        Ok(())
    } else {
        Err(format!("{report:?}"))
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
