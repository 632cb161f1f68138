//! How `subsea status` of an agent looks to people. PURE.

use subsea_api::UnixMillis;

use super::format::{age, list};
use super::heading::{Heading, certificate, network, problems};
use super::table::{Cell, Style, Table, printable};
use crate::agent::status::{GatewayState, Status};
use crate::gateway::status::SnapshotSource;

/// The node, its gateways, who carries what, and why some do not.
pub(super) fn table(status: &Status, now: UnixMillis, colour: bool) -> String {
    let mut text = header(status, now, colour);
    let mut table = Table::new([
        "GATEWAY", "ADDRESS", "STATE", "SINCE", "RTT", "LOSS", "REACHES",
    ]);
    for gateway in &status.gateways {
        let style = match gateway.state {
            GatewayState::Connected => Style::Good,
            GatewayState::Connecting | GatewayState::Draining | GatewayState::Held => {
                Style::Warning
            }
            GatewayState::Dead
            | GatewayState::OffLink
            | GatewayState::NotRunning
            | GatewayState::InwardDead => Style::Bad,
        };
        let or_dash = |text: Option<String>| Cell::from(text.unwrap_or_else(|| "-".to_owned()));
        let here = if gateway.own { " (this node)" } else { "" };
        table.row([
            Cell::from(format!("{}{here}", gateway.node)),
            or_dash(gateway.address.map(|address| address.to_string())),
            Cell::styled(gateway.state.as_str(), style),
            or_dash(gateway.since.map(|since| age(now.since(since)))),
            or_dash(gateway.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            or_dash(gateway.loss_percent.map(|loss| format!("{loss:.0} %"))),
            or_dash((!gateway.reaches.is_empty()).then(|| list(gateway.reaches.iter()))),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(colour));
    if !status.clusters.is_empty() {
        let mut table = Table::new(["CLUSTER", "BY", "REACHED", "MTU"]);
        for cluster in &status.clusters {
            let reached = if cluster.reached {
                Cell::styled("yes", Style::Good)
            } else {
                Cell::styled("no", Style::Bad)
            };
            table.row([
                Cell::from(cluster.cluster.to_string()),
                Cell::from(list(cluster.gateways.iter())),
                reached,
                Cell::from(
                    cluster
                        .mtu
                        .map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
                ),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(colour));
    }
    if !status.nodes.is_empty() {
        let mut table = Table::new(["NODE", "ADDRESS", "STATE", "PODS"]);
        for node in &status.nodes {
            let state = if node.alive {
                Cell::styled("alive", Style::Good)
            } else {
                Cell::styled("silent", Style::Warning)
            };
            table.row([
                Cell::from(node.node.to_string()),
                Cell::from(node.address.to_string()),
                state,
                Cell::from(list(node.prefixes.iter())),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(colour));
    }
    let whys = status.gateways.iter().filter_map(|gateway| {
        let why = gateway.why.as_ref()?;
        Some(format!("{}: {}\n", gateway.node, printable(why)))
    });
    let whys: String = whys.collect();
    if !whys.is_empty() {
        text.push('\n');
        text.push_str(&whys);
    }
    text
}

/// What is missing until every other cluster is reached.
pub(super) fn missing(status: &Status) -> Vec<String> {
    if status.snapshot.source == SnapshotSource::None {
        return vec!["the fleet is not known yet: no snapshot from broker or disk".to_owned()];
    }
    if !status.kernel.converged {
        return vec!["the kernel is not as wanted yet".to_owned()];
    }
    let unreached = status.clusters.iter().filter(|cluster| !cluster.reached);
    let mut missing: Vec<String> = unreached
        .map(|cluster| {
            format!(
                "no gateway says that it reaches cluster {}",
                cluster.cluster
            )
        })
        .collect();
    let whys = status.gateways.iter().filter_map(|gateway| {
        let why = gateway.why.as_ref()?;
        Some(format!("gateway {}: {why}", gateway.node))
    });
    missing.extend(whys);
    missing
}

fn header(status: &Status, now: UnixMillis, colour: bool) -> String {
    let heading = Heading {
        fleet: &status.fleet,
        revision: status.revision,
        source: status.snapshot.source,
        cluster: &status.cluster,
        node: &status.node,
        role: &status.role,
        pid: status.pid,
        started: status.started,
        broker: &status.broker,
    };
    let mut table = heading.table(now);
    let mut line = |name: &str, value: Cell| table.row([Cell::from(name), value]);
    let address = status
        .address
        .map_or_else(|| "not known yet".to_owned(), |address| address.to_string());
    line("address", address.into());
    line("pods", list(status.prefixes.iter()).into());
    line(
        "device",
        format!(
            "{}, encap {}, MTU {}",
            status.device, status.encap, status.mtu
        )
        .into(),
    );
    line("certificate", certificate(status.certificate_expires, now));
    network(&mut table, status.network.as_ref());
    problems(&mut table, &status.kernel, &status.problems);
    table.render(colour)
}
