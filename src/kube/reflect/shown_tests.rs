//! What a gateway shows, in full.

use subsea_api::{Allocation as Block, UnixMillis};

use super::super::object::{Writer, main_patch, status_patch};
use super::*;
use crate::gateway::status::ClusterGateway;

const NOW: UnixMillis = UnixMillis(100_000);

fn status() -> Status {
    let mut status = crate::gateway::status::tests::example();
    status.kernel.converged = true;
    status.kernel.last_reconcile = Some(UnixMillis(5_000));
    status.members[0].allocations = vec![Block {
        kind: BlockKind::Pod,
        cidr: "10.32.0.0/16".parse().unwrap(),
        exported: true,
    }];
    status
}

fn ready(change: impl Fn(&mut PathStatus)) -> (String, String) {
    let mut status = status();
    let path = &mut status.members[0].gateways[0];
    path.state = PathState::Connected;
    path.why = None;
    change(path);
    let shown = shown(&status, NOW);
    let body = &shown.objects[&Key {
        kind: Kind::Connection,
        name: "gw-1.west.gw-1".to_owned(),
    }];
    let condition = body.condition(READY).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn echo(change: impl Fn(&mut EchoStatus)) -> (String, String) {
    ready(|path| change(path.echo.as_mut().unwrap()))
}

#[test]
fn the_objects_of_a_gateway() {
    let shown = shown(&status(), NOW);
    let writer = Writer {
        node: shown.node.clone(),
        owner: None,
    };
    let objects: Vec<_> = shown
        .objects
        .iter()
        .map(|(key, body)| {
            let mut object = main_patch(key, body, &writer);
            object["status"] = status_patch(key, body)["status"].clone();
            object
        })
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    let text = serde_json::to_string_pretty(&objects).unwrap();
    insta::assert_snapshot!(text.replace(version, "X"));
}

#[test]
fn a_connection_is_ready_when_packets_pass_and_says_why_not() {
    let reason = |(status, reason): (String, String)| format!("{status} {reason}");
    assert_eq!(reason(ready(|_| {})), "True Connected");
    assert_eq!(reason(echo(|e| e.draining = true)), "False Draining");
    assert_eq!(reason(echo(|e| e.inward_dead = true)), "False InwardDead");
    assert_eq!(
        reason(echo(|e| e.held_for_ms = Some(2_000.0))),
        "False HeldDown"
    );
    let of = |state, two_way, handshake: Option<u64>| {
        reason(ready(|path| {
            path.state = state;
            path.two_way = two_way;
            path.latest_handshake = handshake.map(UnixMillis);
        }))
    };
    assert_eq!(of(PathState::OneWay, false, Some(1)), "False OneWay");
    assert_eq!(of(PathState::Down, false, Some(1)), "False Dead");
    assert_eq!(of(PathState::Connecting, false, None), "False NoHandshake");
    assert_eq!(of(PathState::Connecting, false, Some(1)), "False NoEcho");
    assert_eq!(of(PathState::Kept, true, Some(1)), "True Kept");
    assert_eq!(of(PathState::Kept, false, Some(1)), "False KeptSilent");
    assert_eq!(of(PathState::Unprobed, true, Some(1)), "True Unprobed");
    assert_eq!(of(PathState::Unprobed, false, None), "False Silent");
    let nowhere = ready(|path| {
        path.state = PathState::Connecting;
        path.endpoint = None;
    });
    assert_eq!(reason(nowhere), "False NoEndpoint");
}

#[test]
fn a_gateway_says_why_it_is_not_ready() {
    let reason = |change: &dyn Fn(&mut Status)| {
        let mut status = status();
        change(&mut status);
        let verdict = gateway_ready(&status);
        (verdict.holds, verdict.reason)
    };
    assert_eq!(reason(&|_| {}), (Some(true), "Running".to_owned()));
    let no = |reason: &str| (Some(false), reason.to_owned());
    assert_eq!(reason(&|s| s.draining = true), no("Draining"));
    assert_eq!(reason(&|s| s.inward_dead = true), no("InwardDead"));
    assert_eq!(reason(&|s| s.kernel.last_reconcile = None), no("Starting"));
    assert_eq!(
        reason(&|s| s.kernel.converged = false),
        no("KernelNotConverged")
    );
    assert_eq!(reason(&|s| s.endpoint = None), no("NotRegistered"));
}

#[test]
fn a_gateway_says_what_of_the_network_plugin_stands_in_the_way() {
    let finding = |severity| Obstacle {
        severity,
        id: "proxy-mark".to_owned(),
        found: "bit 5".to_owned(),
        why: "it is ours".to_owned(),
        instead: Some("set 14".to_owned()),
    };
    let told = |findings: &[Severity], unread: &[&str]| {
        let status = NetworkStatus {
            findings: findings.iter().map(|s| finding(*s)).collect(),
            unread: unread.iter().map(ToString::to_string).collect(),
            ..NetworkStatus::default()
        };
        let verdict = network(Some(&status));
        (verdict.holds, verdict.reason, verdict.message)
    };
    let line = "proxy-mark: bit 5: it is ours; instead: set 14";
    let is = |told: (Option<bool>, String, String), holds, reason: &str, message: &str| {
        assert_eq!(told, (holds, reason.to_owned(), message.to_owned()));
    };
    is(told(&[], &[]), Some(true), "NothingInTheWay", "");
    is(
        told(&[Severity::Warns], &[]),
        Some(true),
        "SettingWarns",
        line,
    );
    let both = [Severity::Blocks, Severity::Warns];
    is(told(&both, &["x"]), Some(false), "SettingBlocks", line);
    let unread = "not all settings can be read: x";
    is(told(&[Severity::Warns], &["x"]), None, "Unreadable", unread);
    assert_eq!(network(None).reason, "NotLooked");
}

#[test]
fn the_first_live_gateway_leads() {
    let named = |node: &str, expired: Option<u64>| ClusterGateway {
        node: node.parse().unwrap(),
        expired: expired.map(UnixMillis),
    };
    let leads = |gateways: Vec<ClusterGateway>| {
        let mut status = status();
        status.cluster_gateways = gateways;
        shown(&status, NOW)
    };
    assert!(leads(vec![named("gw-1", None), named("gw-2", None)]).leads);
    assert!(!leads(vec![named("gw-0", None), named("gw-1", None)]).leads);
    let over = leads(vec![named("gw-0", Some(7)), named("gw-1", None)]);
    assert!(over.leads);
    assert_eq!(over.lost, [("gw-0".to_owned(), UnixMillis(7))].into());
    assert_eq!(over.others, ["gw-0".to_owned()].into());
    // The broker has not registered us: somebody else may lead.
    let none = leads(vec![]);
    assert!(!none.leads && none.objects.len() == 2);
    let mut unknown = status();
    unknown.snapshot.source = SnapshotSource::None;
    let shown = shown(&unknown, NOW);
    assert!(!shown.leads && !shown.known);
}

#[test]
fn of_a_cluster_that_is_not_reached_every_reason_is_said() {
    let mut status = status();
    let mut second = status.members[0].gateways[0].clone();
    second.gateway = "gw-2".parse().unwrap();
    second.state = PathState::Down;
    second.why = Some("silent".to_owned());
    status.members[0].gateways.push(second);
    let of = |status: &Status| cluster(&status.members[0], None, NOW).conditions.remove(0);
    let condition = of(&status);
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("False", "OneWay")
    );
    assert_eq!(
        condition.message,
        "gw-1: we hear it, it does not hear us; gw-2: silent"
    );
    status.members[0].gateways[1].state = PathState::Connected;
    assert_eq!(of(&status).status, "True");
    status.members[0].gateways.clear();
    assert_eq!(of(&status).reason, "NoGateway");
}

#[test]
fn what_a_gateway_that_ends_leaves_is_not_known_any_more() {
    let shown = shown(&status(), NOW);
    let after = stopped(&shown, NOW);
    assert_eq!(after.len(), 2, "members belong to no gateway");
    for body in after.values() {
        let all = body.conditions().iter();
        assert!(
            all.clone()
                .all(|c| c.status == "Unknown" && c.reason == "Stopped")
        );
        if let Body::Connection(_, status) = body {
            assert_eq!(status.state, ConnectionState::Unknown);
            assert_eq!((status.rtt_milliseconds, status.in_use), (None, false));
        }
    }
}
