//! The reconciler against a real kernel, each test in a network namespace of its own, cross-checked by `ip` and `nft`.
//! Needs root, iproute2, nftables, conntrack and iputils-ping.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::future::Future;
use std::time::Duration;

use subsea::host::desired::desired;
use subsea::host::{Desired, Input, Mark, Reconciler, Report, Settings};
use subsea_api::{Allocation, Kind};

mod footprints;
mod forwarding;
mod healing;
mod leaving;
mod overlay;
mod replacing;
mod space;
mod spreading;

/// What a gateway with pods in `10.32.0.0/16` and `fd00:32::/48` knows of one other cluster.
fn input() -> Input {
    let allocation = |cidr: &str| Allocation {
        kind: Kind::Pod,
        cidr: cidr.parse().unwrap(),
        exported: true,
    };
    Input {
        local: vec![allocation("10.32.0.0/16"), allocation("fd00:32::/48")],
        inner: vec!["198.19.0.1".parse().unwrap(), "fd00:19::1".parse().unwrap()],
        remote: ["10.64.0.0/16", "198.19.0.2/32", "fd00:64::/48"]
            .map(|c| (c.parse().unwrap(), Some("subsea0".into())))
            .into(),
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

fn wanted() -> Desired {
    desired(&input())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn reconciler() -> Reconciler {
    Reconciler::new(Settings::default()).unwrap()
}

/// One pass that must leave the kernel as it should be.
async fn pass(reconciler: &mut Reconciler, desired: &Desired) -> Report {
    let report = reconciler.reconcile(desired).await.unwrap();
    assert!(report.converged(), "{report:?}");
    report
}

/// Passes until nothing is heard any more, as the gateway does; gives how many there were.
async fn settle(reconciler: &mut Reconciler, desired: &Desired) -> usize {
    let mut passes = 0;
    while tokio::time::timeout(Duration::from_millis(600), reconciler.changed())
        .await
        .is_ok()
    {
        passes += 1;
        assert!(passes < 5, "our own changes keep waking us");
        pass(reconciler, desired).await;
    }
    passes
}

fn make_tun() {
    space::sh("ip link set lo up; ip tuntap add subsea0 mode tun");
}
