//! What the status of every daemon begins and ends its heading with, as people see it. PURE.

use std::fmt::Display;

use subsea_api::{ClusterId, FleetName, NodeName, UnixMillis};

use super::format::{age, time};
use super::table::{Cell, Style, Table};
use crate::control::network::{NetworkStatus, Severity};
use crate::gateway::status::KernelStatus;
use crate::membership::standing::{BrokerState, BrokerStatus, SnapshotSource};

/// Which daemon it is, and how it stands with its fleet.
pub(super) struct Heading<'a> {
    pub(super) fleet: &'a FleetName,
    pub(super) revision: Option<u64>,
    pub(super) source: SnapshotSource,
    pub(super) cluster: &'a ClusterId,
    pub(super) node: &'a NodeName,
    pub(super) role: &'a dyn Display,
    pub(super) pid: u32,
    pub(super) started: UnixMillis,
    pub(super) broker: &'a BrokerStatus,
}

impl Heading<'_> {
    /// A table that begins with it.
    pub(super) fn table(&self, now: UnixMillis) -> Table<2> {
        let mut table = Table::headless();
        let revision = self
            .revision
            .map_or_else(String::new, |r| format!(", revision {r}"));
        let source = match self.source {
            SnapshotSource::Broker => "",
            SnapshotSource::Disk => ", as saved on disk",
            SnapshotSource::None => ", not known yet",
        };
        let fleet = format!("{}{revision}{source}", self.fleet);
        table.row(["fleet".into(), fleet.into()]);
        table.row(["cluster".into(), self.cluster.to_string().into()]);
        let up = age(now.since(self.started));
        let node = format!("{} ({}), pid {}, up {up}", self.node, self.role, self.pid);
        table.row(["node".into(), node.into()]);
        table.row(["broker".into(), broker(self.broker, now)]);
        table
    }
}

fn broker(broker: &BrokerStatus, now: UnixMillis) -> Cell {
    let style = match broker.state {
        BrokerState::Connected => Style::Good,
        BrokerState::Away => Style::Warning,
        BrokerState::Revoked | BrokerState::NotMember => Style::Bad,
    };
    let error = broker
        .last_error
        .as_ref()
        .map_or_else(String::new, |e| format!(": {e}"));
    let since = age(now.since(broker.since));
    Cell::styled(
        format!(
            "{} for {since}, {}{error}",
            broker.state.as_str(),
            broker.url
        ),
        style,
    )
}

/// Until when the certificate is valid.
pub(super) fn certificate(expires: Option<UnixMillis>, now: UnixMillis) -> Cell {
    match expires {
        None => Cell::styled("cannot be read", Style::Bad),
        Some(at) if at <= now => Cell::styled(format!("expired {}", time(at)), Style::Bad),
        Some(at) => format!("until {} (for {})", time(at), age(at.since(now))).into(),
    }
}

/// Adds which network plugin and service proxy there are, and what of them stands in the way.
pub(super) fn network(table: &mut Table<2>, network: Option<&NetworkStatus>) {
    let Some(network) = network else {
        return;
    };
    let found = network.plugins.iter().chain(&network.proxy);
    let found: Vec<String> = found.map(|d| format!("{} ({})", d.name, d.from)).collect();
    let found = if found.is_empty() {
        "nothing known was seen".to_owned()
    } else {
        found.join("; ")
    };
    table.row(["network".into(), found.into()]);
    for finding in &network.findings {
        let (name, style) = match finding.severity {
            Severity::Blocks => ("in the way", Style::Bad),
            Severity::Warns => ("warning", Style::Warning),
        };
        table.row([name.into(), Cell::styled(finding.text(), style)]);
    }
}

/// Adds what needs attention.
pub(super) fn problems(table: &mut Table<2>, kernel: &KernelStatus, others: &[String]) {
    if !kernel.converged {
        let cell = Cell::styled("not as wanted yet", Style::Warning);
        table.row(["kernel".into(), cell]);
    }
    for problem in kernel.problems.iter().chain(others) {
        table.row(["problem".into(), Cell::styled(problem, Style::Bad)]);
    }
}
