//! How `subsea status` looks to people. PURE.

use std::collections::BTreeMap;

use subsea_api::UnixMillis;

use super::format::{age, bytes, list};
use super::heading::{Heading, certificate, network, problems};
use super::readiness::is_connected;
use super::table::{Cell, Style, Table, printable};
use crate::gateway::status::{
    ListenerStatus, MemberStatus, PathState, PathStatus, SnapshotSource, Status,
};
use crate::tunnel::{Drop, Feature};

/// The node, then every path, then why some of them are not connected.
pub(super) fn table(status: &Status, now: UnixMillis, colour: bool) -> String {
    let mut text = header(status, now, colour);
    text.push('\n');
    if status.members.is_empty() {
        text.push_str(match status.snapshot.source {
            SnapshotSource::None => "the fleet is not known yet: waiting for the broker\n",
            SnapshotSource::Broker | SnapshotSource::Disk => {
                "a fleet of one: no other cluster has joined yet\n"
            }
        });
        return text;
    }
    text.push_str(&paths(&status.members, now, colour));
    let reasons: Vec<String> = status
        .members
        .iter()
        .flat_map(|member| &member.gateways)
        .filter(|path| !is_connected(path) || !path.in_use)
        .filter_map(|path| {
            let why = path.why.as_ref()?;
            Some(format!(
                "{}/{}: {}\n",
                path.cluster,
                path.gateway,
                printable(why)
            ))
        })
        .chain(
            status
                .members
                .iter()
                .filter(|member| member.gateways.is_empty())
                .map(|member| {
                    format!(
                        "{}: it has no gateway; run `subsea gateway` there\n",
                        member.cluster
                    )
                }),
        )
        .collect();
    if !reasons.is_empty() {
        text.push('\n');
        text.push_str(&reasons.concat());
    }
    text
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
    let endpoint = status
        .endpoint
        .map_or_else(|| "not registered yet".to_owned(), |e| e.to_string());
    line("endpoint", endpoint.into());
    if status.listeners.len() > 1 {
        line(
            "listeners",
            list(status.listeners.iter().map(listener)).into(),
        );
    }
    let devices = match status.devices.as_slice() {
        [] => status.device.clone(),
        devices => devices.join(" "),
    };
    line("public key", status.public_key.to_string().into());
    line(
        "device",
        format!("{devices}, {}, MTU {}", status.driver, status.mtu).into(),
    );
    if !status.features.is_empty() {
        line("offloads", offloads(&status.features).into());
    }
    line("certificate", certificate(status.certificate_expires, now));
    if !status.drops.is_empty() {
        line(
            "drops",
            format!("{} (of no peer)", drops(&status.drops)).into(),
        );
    }
    network(&mut table, status.network.as_ref());
    problems(&mut table, &status.kernel, &status.problems);
    table.render(colour)
}

fn listener(listener: &ListenerStatus) -> String {
    let slot = listener.for_slot;
    let whom = slot.map_or_else(String::new, |slot| format!(" for slot {slot}"));
    format!("{} on UDP {}{whom}", listener.id, listener.port)
}

/// Those in use, then those that are not, and why.
fn offloads(features: &[Feature]) -> String {
    let name = |feature: &Feature| match &feature.reason {
        Some(reason) if !feature.active => format!("{} ({reason})", feature.name),
        Some(_) | None => feature.name.clone(),
    };
    let (on, off): (Vec<_>, Vec<_>) = features.iter().partition(|feature| feature.active);
    let on = (!on.is_empty()).then(|| list(on.into_iter().map(name)));
    let off = (!off.is_empty()).then(|| format!("off: {}", list(off.into_iter().map(name))));
    on.into_iter().chain(off).collect::<Vec<_>>().join("; ")
}

fn paths(members: &[MemberStatus], now: UnixMillis, colour: bool) -> String {
    let mut table = Table::new([
        "CLUSTER",
        "GATEWAY",
        "ENDPOINT",
        "STATE",
        "USE",
        "SINCE",
        "HANDSHAKE",
        "RTT",
        "LOSS",
        "MTU",
        "RX",
        "TX",
        "DROPS",
        "CIDRS",
    ]);
    for member in members {
        if member.gateways.is_empty() {
            let mut row: [Cell; 14] = std::array::from_fn(|_| "-".into());
            row[0] = member.cluster.to_string().into();
            row[3] = Cell::styled("no-gateway", Style::Warning);
            table.row(row);
        }
        for path in &member.gateways {
            table.row(row(path, now));
        }
    }
    table.render(colour)
}

fn row(path: &PathStatus, now: UnixMillis) -> [Cell; 14] {
    let style = match path.state {
        _ if is_connected(path) => Style::Good,
        PathState::Connecting | PathState::Kept | PathState::Unprobed => Style::Warning,
        PathState::Connected | PathState::OneWay | PathState::Down => Style::Bad,
    };
    // The first is as alive as the path.
    let dead = path.stripe_stats.iter().filter(|stripe| !stripe.alive);
    let stripes = match (path.stripes, dead.count()) {
        (0 | 1, _) => None,
        (all, 0) => Some(format!("{all} stripes")),
        (all, dead) => {
            let alive = usize::from(all).saturating_sub(dead);
            Some(format!("{alive} of {all} stripes"))
        }
    };
    let fragments = path.fragmented.then(|| "larger in fragments".to_owned());
    let more: Vec<String> = stripes.into_iter().chain(fragments).collect();
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(" ({})", more.join(", "))
    };
    let expired = if path.expired.is_some() {
        ", expired"
    } else {
        ""
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        path.cluster.to_string().into(),
        path.gateway.to_string().into(),
        or_dash(path.endpoint.map(|e| format!("{e}{more}"))).into(),
        Cell::styled(format!("{}{expired}", path.state.as_str()), style),
        usage(path),
        age(now.since(path.since)).into(),
        or_dash(path.latest_handshake.map(|at| age(now.since(at)))).into(),
        or_dash(path.rtt_ms.map(|ms| format!("{ms:.1} ms"))).into(),
        or_dash(
            path.echo
                .as_ref()
                .map(|echo| format!("{:.0} %", echo.loss_percent)),
        )
        .into(),
        or_dash(path.path_mtu.map(|mtu| mtu.to_string())).into(),
        bytes(path.rx_bytes).into(),
        bytes(path.tx_bytes).into(),
        drops(&path.drops).into(),
        list(&path.cidrs).into(),
    ]
}

/// Whether it carries flows, and if not, why as shortly as that can be said.
fn usage(path: &PathStatus) -> Cell {
    if path.in_use {
        return Cell::styled("yes", Style::Good);
    }
    let echo = path.echo.as_ref();
    let why = match echo {
        Some(echo) if echo.draining => "drains",
        Some(echo) if echo.inward_dead => "inward-dead",
        Some(echo) if echo.held_for_ms.is_some() => "held",
        Some(_) | None => "no",
    };
    Cell::styled(why, Style::Warning)
}

fn drops(drops: &BTreeMap<Drop, u64>) -> String {
    list(
        drops
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(reason, n)| format!("{} {n}", reason.as_str())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture::example;
    use crate::gateway::status::EchoStatus;
    use crate::tunnel::StripeStats;

    #[test]
    fn a_status_as_people_see_it() {
        let mut status = example();
        status.members.push(MemberStatus {
            cluster: "north".parse().unwrap(),
            allocations: Vec::new(),
            gateways: Vec::new(),
        });
        insta::assert_snapshot!(table(&status, UnixMillis(63_000), false));
    }

    #[test]
    fn listeners_stripes_and_offloads_are_shown_where_they_say_something() {
        let mut status = example();
        let listener = |n: u16, for_slot| ListenerStatus {
            id: n.to_string(),
            public_key: status.public_key,
            port: 51820 + n,
            endpoint: status.endpoint,
            stripe: n,
            for_slot,
        };
        let feature = |name: &str, active, reason: Option<&str>| Feature {
            name: name.to_owned(),
            active,
            reason: reason.map(str::to_owned),
        };
        let one = vec![listener(0, None)];
        let two = vec![listener(0, None), listener(1, Some(1))];
        status.listeners = one;
        assert!(!table(&status, UnixMillis(63_000), false).contains("listeners"));
        status.listeners = two;
        status.features = vec![
            feature("tun-gso", true, None),
            feature("tun-uso", false, Some("the kernel refused it")),
            feature("udp-gro", true, None),
        ];
        status.members[0].gateways[0].stripes = 2;
        status.members[0].gateways[0].path_mtu = Some(1300);
        insta::assert_snapshot!(table(&status, UnixMillis(63_000), false));
        let stripe = |stripe, alive| StripeStats {
            stripe,
            endpoint: None,
            alive,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let path = &mut status.members[0].gateways[0];
        path.stripes = 3;
        path.stripe_stats = vec![stripe(1, false), stripe(2, true)];
        assert!(table(&status, UnixMillis(63_000), false).contains(":51820 (2 of 3 stripes) "));
        status.features.remove(1);
        assert!(
            table(&status, UnixMillis(63_000), false).contains("offloads     tun-gso, udp-gro\n")
        );
        status.features = vec![feature("udp-gro", false, None)];
        assert!(table(&status, UnixMillis(63_000), false).contains("offloads     off: udp-gro\n"));
    }

    #[test]
    fn what_keeps_a_gateway_out_of_use_and_an_expired_lease_stand_by_its_state() {
        let mut status = example();
        let path = &mut status.members[0].gateways[0];
        path.expired = Some(UnixMillis(3_000));
        path.echo = Some(EchoStatus {
            reason: "answered".to_owned(),
            rtt_smoothed_ms: None,
            rtt_min_ms: None,
            rtt_max_ms: None,
            rtt_deviation_ms: None,
            loss_percent: 0.0,
            interval_ms: 250.0,
            bound_ms: 695.0,
            held_for_ms: Some(2_100.0),
            draining: true,
            inward_dead: false,
            carrying: true,
        });
        let text = table(&status, UnixMillis(63_000), false);
        assert!(text.contains(" one-way, expired  drains "), "{text}");
        let path = &mut status.members[0].gateways[0];
        if let Some(echo) = &mut path.echo {
            echo.draining = false;
        }
        let text = table(&status, UnixMillis(63_000), false);
        assert!(text.contains(" one-way, expired  held "), "{text}");
    }

    #[test]
    fn what_stands_in_the_way_in_the_network_plugin_is_shown_with_what_to_do() {
        let mut status = example();
        let network = serde_json::json!({
            "looked": 1, "plugins": [{"name": "Calico (eBPF)", "from": "API server"}],
            "proxy": {"name": "replaced by Calico", "from": "bpfEnabled"},
            "findings": [
                {"severity": "blocks", "id": "proxy-mark", "found": "bit 5", "why": "it is ours", "instead": "set 14"},
                {"severity": "warns", "id": "calico-mark", "found": "a mask", "why": "it meets ours"},
            ],
        });
        status.network = Some(serde_json::from_value(network).unwrap());
        let text = table(&status, UnixMillis(63_000), false);
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.trim_start_matches(name).trim().to_owned()
        };
        let detected = "Calico (eBPF) (API server); replaced by Calico (bpfEnabled)";
        assert_eq!(row("network"), detected);
        let line = "proxy-mark: bit 5: it is ours; instead: set 14";
        assert_eq!(row("in the way"), line);
        assert_eq!(row("warning"), "calico-mark: a mask: it meets ours");
    }

    #[test]
    fn a_fleet_of_one_says_so() {
        let mut status = example();
        status.members.clear();
        let text = table(&status, UnixMillis(63_000), false);
        assert!(
            text.ends_with("\na fleet of one: no other cluster has joined yet\n"),
            "{text}"
        );
        status.snapshot.source = SnapshotSource::None;
        assert!(table(&status, UnixMillis(63_000), false).contains("not known yet"));
    }
}
