//! Steers traffic between this host and the tunnel. This file wires: it reads the kernel, lets [`plan`] decide,
//! and applies. Start with [`Reconciler`].
//!
//! The kernel is compared with what is [`desired`] and never with memory, so that what others remove comes back and
//! what they add stays theirs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod cleanup;
pub mod desired;
mod ebpf;
mod footprints;
pub mod plan;
mod settings;
mod swap;

pub use crate::net::netlink::Mark;
use crate::net::netlink::watch::{Interest, Watch};
use crate::net::netlink::{Change, Netlink, NetlinkError, Observed};
use crate::net::sysctl::{Keeper, Persist, Saved, SysctlError};
use crate::net::tool::ToolError;
use crate::net::wireguard::{Names, WireguardError};
use crate::net::{conntrack, iptables, nft};
pub use cleanup::cleanup;
pub use desired::{Desired, Input, Parameter};
pub use footprints::{Footprints, footprints};
pub use settings::{Part, Settings};
pub use swap::{Steering, Swap};

/// One change brings others: wait for the rest of them.
const SETTLE: Duration = Duration::from_millis(100);
/// How many times its own length a pass that found nothing to do is left to rest, and for how long at most: others'
/// noise shall not keep a core busy.
const REST: u32 = 5;
const MAX_REST: Duration = Duration::from_secs(1);
/// More failures than these are only counted.
const MAX_SHOWN: usize = 10;

/// The kernel could not be brought to what it should hold.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Names or numbers that cannot be ours.
    #[error("{reason}")]
    Settings {
        /// Why not.
        reason: String,
    },
    /// Links, addresses, routes or rules.
    #[error(transparent)]
    Netlink(NetlinkError),
    /// WireGuard devices.
    #[error(transparent)]
    Wireguard(WireguardError),
    /// Filters, translations or flows.
    #[error(transparent)]
    Tool(ToolError),
    /// Kernel parameters.
    #[error(transparent)]
    Sysctl(SysctlError),
}

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many changes the kernel took. None when all was as it should be.
    pub changes: usize,
    /// How many changes failed or could not be tried: nonzero means that the kernel is not yet as it should be.
    pub failed: usize,
    /// What an operator should know, in words: failures, and things of others that stand in the way.
    pub problems: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether the kernel is as it should be.
    pub fn converged(&self) -> bool {
        self.failed == 0
    }

    fn fail(&mut self, problem: impl std::fmt::Display) {
        self.failed += 1;
        if self.failed <= MAX_SHOWN {
            self.problems.push(problem.to_string());
        }
    }
}

/// Keeps the kernel as it should be.
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    netlink: Netlink,
    swap: Swap,
    watch: Watch,
    nftables: nft::Table,
    sysctls: Keeper,
    /// Obstacles found in a generation of the rules of nftables.
    obstacles: Option<(u32, Vec<String>)>,
    pause: Duration,
    /// Whether flows were looked at since this process started: our table may have been away before.
    flows_seen: bool,
}

impl Reconciler {
    /// Opens the kernel's doors in the network namespace of this thread; inside a tokio runtime. Changes nothing.
    ///
    /// # Errors
    /// When the settings cannot be ours, or no netlink socket can be opened.
    pub fn new(settings: Settings) -> Result<Self, HostError> {
        settings
            .check()
            .map_err(|reason| HostError::Settings { reason })?;
        let interest = Interest {
            devices: settings.device.as_deref().map(Names::new),
            tables: settings.all_tables(),
            next_hops: settings.part.next_hop_ids(),
            nft_table: settings.part.nft_table(),
            others: BTreeSet::new(),
            neighbours_of: None,
        };
        let netlink = Netlink::open().map_err(HostError::Netlink)?;
        Ok(Self {
            swap: Swap::new(Arc::clone(netlink.fast())),
            netlink,
            watch: Watch::open(interest).map_err(HostError::Netlink)?,
            nftables: nft::Table::new(settings.part.nft_table()),
            sysctls: Keeper::new(Saved::new(), Box::new(|_| Ok(()))),
            obstacles: None,
            pause: Duration::ZERO,
            flows_seen: false,
            settings,
        })
    }

    /// Goes on from the kernel parameters that an earlier run saved; `persist` is called before each change of a
    /// further one, with all of them. A parameter that cannot be saved is not changed.
    #[must_use]
    pub fn with_saved_sysctls(mut self, saved: Saved, persist: Persist) -> Self {
        self.sysctls = Keeper::new(saved, persist);
        self
    }

    /// The kernel parameters that were changed, for [`cleanup()`].
    pub fn saved_sysctls(&self) -> &Saved {
        self.sysctls.saved()
    }

    /// The fast way to move flows, for other threads.
    pub fn swap(&self) -> Swap {
        self.swap.clone()
    }

    /// The addresses of this host that others may reach, for [`Input::host_addresses`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>, HostError> {
        self.netlink
            .host_addresses()
            .await
            .map_err(HostError::Netlink)
    }

    /// Resolves a moment (about 100 ms) after something of ours, or an address of this host, may have changed: time
    /// to call [`Self::reconcile`]. Our own changes, too, resolve it once; the pass after them finds nothing to do.
    /// Safe to cancel.
    pub async fn changed(&mut self) {
        self.watch.changed(SETTLE + self.pause).await;
    }

    /// One pass: reads the kernel, and changes what differs from `desired`. Goes on after a failed change, so that one
    /// bad route does not keep the others out.
    ///
    /// # Errors
    /// When the kernel cannot be read. What it refused is in the [`Report`].
    pub async fn reconcile(&mut self, desired: &Desired) -> Result<Report, HostError> {
        let started = Instant::now();
        let mut report = Report::default();
        let mut desired = self.swap.over(desired.clone());
        desired.tables.extend(&self.settings.all_tables());
        desired.from = self.settings.from().map(|(d, pref)| (d.to_owned(), pref));
        // What was heard until now is covered by the reading that follows.
        self.watch.drain();
        let mut observed = self.observe(&desired).await?;
        let foreign = desired.foreign(&observed.links);
        for device in &foreign {
            report.fail(format!(
                "device {device} was not made by subsea and is left alone: traffic to the clusters that it would lead to is refused"
            ));
        }
        let desired = &desired.without(&foreign);
        self.follow(desired);
        // The exemption comes first: no flow shall begin with a wrong translation.
        let table = self.nftables(desired, &mut report).await;
        let unchecked = table.is_none() && desired.ruleset.checks();
        if self.device(desired, &observed, &mut report).await {
            observed = self.observe(desired).await?;
        }
        self.watch_neighbours(desired, &observed, &mut report);
        let mut ops = plan::plan(desired, &observed);
        let stale = self.settings.vxlan.as_deref();
        ops.extend(plan::overlay::unwanted(stale, desired, &observed));
        if unchecked {
            report.fail("no tunnel is opened while nothing checks what comes out of it");
            ops.retain(|op| !plan::opens_a_tunnel(op));
            // What an earlier pass or process opened must not go on unchecked. Counters belong to the checks.
            let name = self.settings.part.nft_table();
            if nft::counters::read_of(name).is_ok_and(|counters| counters.is_empty()) {
                plan::close(desired, &observed, &mut ops);
            }
        }
        self.apply(&ops, desired.steering, &mut report).await;
        for device in &desired.devices {
            if observed.link(device).is_none() {
                report.fail(format!(
                    "device {device} is missing: traffic to the clusters behind it is refused until it is back"
                ));
            }
        }
        for text in plan::blocked(desired, &observed) {
            report.fail(text);
        }
        let parameters = desired::parameters(desired, &observed.links);
        self.parameters(&parameters, &mut report);
        let healed = table == Some(nft::Outcome::Healed);
        self.forget_flows(desired, &observed, &ops, healed, &mut report)
            .await;
        report
            .problems
            .extend(self.obstacles(&desired.forwarding_devices()).await);
        let links = observed.links.iter().map(|link| link.name.as_str());
        report.problems.extend(ebpf::masquerade(links));
        if report.failed > MAX_SHOWN {
            report
                .problems
                .push(format!("{} more failed", report.failed - MAX_SHOWN));
        }
        report.took = started.elapsed();
        self.pause = if report.changes == 0 {
            (report.took * REST).min(MAX_REST)
        } else {
            Duration::ZERO
        };
        if report.changes > 0 || report.failed > 0 {
            tracing::info!(changes = report.changes, failed = report.failed, took = ?report.took, "kernel reconciled");
        }
        Ok(report)
    }

    /// What was done to the table of nftables; none when it may not be as it should.
    async fn nftables(&mut self, desired: &Desired, report: &mut Report) -> Option<nft::Outcome> {
        let done = if desired.keep {
            self.nftables.keep(&desired.ruleset).await
        } else {
            self.nftables.ensure(&desired.ruleset).await
        };
        match done {
            Ok(nft::Outcome::Unchanged) => Some(nft::Outcome::Unchanged),
            Ok(outcome) => {
                if outcome == nft::Outcome::Healed {
                    tracing::warn!(
                        "table inet {} was changed by somebody else: put back",
                        self.settings.part.nft_table()
                    );
                }
                report.changes += 1;
                Some(outcome)
            }
            Err(error) => {
                report.fail(format!(
                    "source addresses may be translated and TCP may stall: {error}"
                ));
                None
            }
        }
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, HostError> {
        let ids = self.settings.part.next_hop_ids();
        let wanted = desired.vxlan.as_ref().map(|vxlan| vxlan.name.as_str());
        let vxlan = wanted.or(self.settings.vxlan.as_deref());
        self.netlink
            .observe_all(&desired.all_tables(), &ids, vxlan)
            .await
            .map_err(HostError::Netlink)
    }

    /// Makes the VXLAN device, beneath backstops; whether anything was done, so that the kernel must be read again.
    async fn device(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        report: &mut Report,
    ) -> bool {
        let ops = plan::overlay::device(desired, observed);
        if !ops.is_empty() {
            let mut all = plan::backstops(desired, observed);
            all.extend(ops.iter().cloned());
            self.apply(&all, desired.steering, report).await;
        }
        self.parameters(&desired::device_parameters(desired), report);
        !ops.is_empty()
    }

    /// Listens for the devices that next hops and routes lead by, too.
    fn follow(&mut self, desired: &Desired) {
        let hops = desired.next_hops.iter().map(|hop| hop.device.clone());
        let routes = desired.routes.iter().flat_map(|route| &route.hops);
        let routes = routes.filter_map(|hop| hop.device.clone());
        let vxlan = desired.vxlan.iter().map(|vxlan| vxlan.name.clone());
        self.watch.interest().others = hops.chain(routes).chain(vxlan).collect();
    }

    fn watch_neighbours(&mut self, desired: &Desired, observed: &Observed, report: &mut Report) {
        let vxlan = desired.vxlan.as_ref();
        let index = vxlan.and_then(|v| observed.link(&v.name)).map(|l| l.index);
        if let Err(error) = self.watch.neighbours_of(index) {
            report.fail(format!("changes of neighbours are not heard: {error}"));
        }
    }

    async fn apply(&self, changes: &[Change], steering: u64, report: &mut Report) {
        for change in changes {
            tracing::debug!(%change, "kernel");
        }
        if changes.is_empty() {
            return;
        }
        let swap = &self.swap;
        let errors = self
            .netlink
            .apply_under(changes, &|change, make| swap.make(steering, change, make))
            .await;
        report.changes += changes.len().saturating_sub(errors.len());
        for error in errors {
            report.fail(error);
        }
    }

    fn parameters(&mut self, parameters: &[Parameter], report: &mut Report) {
        for wanted in parameters {
            let applies = match wanted.replaces {
                None => Ok(true),
                Some(only) => {
                    crate::net::sysctl::read(&wanted.key).map(|now| now.as_deref() == Some(only))
                }
            };
            let ensured = applies
                .and_then(|applies| Ok(applies && self.sysctls.ensure(&wanted.key, wanted.value)?));
            match ensured {
                Ok(changed) => report.changes += usize::from(changed),
                Err(error) => report.fail(error),
            }
        }
    }

    /// A flow from before its block was routed may have a translation that nothing else ends.
    async fn forget_flows(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        ops: &[Change],
        all: bool,
        report: &mut Report,
    ) {
        let remote: Vec<_> = if all || !self.flows_seen {
            desired.ruleset.remote.iter().copied().collect()
        } else {
            plan::newly_routed(ops, observed).into_iter().collect()
        };
        if remote.is_empty() {
            return;
        }
        self.flows_seen = true;
        let local: Vec<_> = desired.ruleset.local.iter().copied().collect();
        match conntrack::forget(&local, &remote).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "forgot flows with a wrong translation"),
            Err(error) => report.problems.push(format!(
                "flows that were open before their cluster was connected may keep a wrong source address until they end: {error}"
            )),
        }
    }

    /// Rules of others that stand in the way: named, for they cannot be overridden.
    async fn obstacles(&mut self, devices: &BTreeSet<String>) -> Vec<String> {
        let generation = nft::generation();
        let mut problems = match &self.obstacles {
            Some((seen, problems)) if generation == Some(*seen) => problems.clone(),
            Some(_) | None => {
                // Without `nft` the pass has said so already.
                let problems = nft::foreign_obstacles(devices).await.unwrap_or_default();
                self.obstacles = generation.map(|g| (g, problems.clone()));
                problems
            }
        };
        for device in devices {
            problems.extend(iptables::legacy_obstacles(device).await);
        }
        problems
    }
}
