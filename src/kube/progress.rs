//! Whether a cluster that has joined is connected, and what is not. PURE.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::resources::{Connection, Gateway, READY};
use super::rollout::Rollout;

/// What the cluster shows.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Our DaemonSets.
    pub daemons: Vec<Rollout>,
    /// Nodes that are ready.
    pub ready: BTreeSet<String>,
    /// What its gateways say.
    pub gateways: Vec<Gateway>,
    /// What they say of each path.
    pub connections: Vec<Connection>,
}

/// What is not as it should be, a line for each; none: it is connected. `nodes` are those of gateways; of those that are not
/// ready nothing is expected, but one must be.
pub fn missing(seen: &Seen, nodes: &BTreeSet<String>) -> Vec<String> {
    let mut lines = Vec::new();
    if seen.daemons.is_empty() {
        lines.push("the daemons are not there yet".to_owned());
    }
    lines.extend(seen.daemons.iter().filter_map(Rollout::missing));
    let ready: BTreeSet<&String> = nodes.intersection(&seen.ready).collect();
    if ready.is_empty() {
        let all: Vec<&str> = nodes.iter().map(String::as_str).collect();
        lines.push(format!(
            "none of the gateways' nodes is ready: {}",
            all.join(", ")
        ));
    }
    for node in &ready {
        let node = *node;
        let Some(gateway) = seen.gateways.iter().find(|g| g.name_any() == *node) else {
            lines.push(format!("gateway {node}: it has not said anything yet"));
            continue;
        };
        let status = gateway.status.as_ref();
        let conditions = status.map_or(&[][..], |status| &status.conditions);
        if let Some(why) = unmet(conditions) {
            lines.push(format!("gateway {node}: {why}"));
        }
        let own = |c: &&Connection| c.spec.gateway == *node;
        let shown = seen.connections.iter().filter(own).count();
        let wanted = status.map_or(0, |status| status.connections.total);
        if usize::try_from(wanted).is_ok_and(|wanted| shown < wanted) {
            lines.push(format!(
                "gateway {node}: shows {shown} of {wanted} connections"
            ));
        }
    }
    let ours: Vec<&Connection> = seen
        .connections
        .iter()
        .filter(|c| ready.contains(&c.spec.gateway))
        .collect();
    // One way from each gateway to each cluster will do: a dead gateway of somebody else must not keep us from joining.
    for connection in &ours {
        let pair = |c: &Connection| (c.spec.gateway.clone(), c.spec.cluster.clone());
        let same = |c: &&&Connection| pair(c) == pair(connection);
        if ours.iter().filter(same).all(|c| trouble(c).is_some()) {
            lines.extend(trouble(connection));
        }
    }
    lines
}

/// Why a connection is not ready; none: it is.
fn trouble(connection: &Connection) -> Option<String> {
    let status = connection.status.as_ref();
    let why = unmet(status.map_or(&[][..], |status| &status.conditions))?;
    let spec = &connection.spec;
    let (from, to) = (&spec.gateway, &spec.remote_gateway);
    Some(format!("{from} to {}/{to}: {why}", spec.cluster))
}

/// What is not as it should be and holds nobody up, a line for each: connections that are not ready although their cluster is
/// reached, and nodes that are down.
pub fn warnings(seen: &Seen) -> Vec<String> {
    let down = seen.daemons.iter().flat_map(behind);
    unready(seen).chain(down).collect()
}

fn unready(seen: &Seen) -> impl Iterator<Item = String> {
    seen.connections.iter().filter_map(trouble)
}

/// Nodes that are down, and so do not have a DaemonSet's pod as it is now.
pub fn behind(rollout: &Rollout) -> Vec<String> {
    let line = |(node, why): (&String, &String)| {
        format!(
            "{} is not of this version on node {node}, which is not ready ({why}): it will be when the node is back",
            rollout.name
        )
    };
    rollout.behind.iter().map(line).collect()
}

/// How many connections there are between how many clusters, for who wants to read that all is well.
pub fn summary(seen: &Seen) -> String {
    let clusters: BTreeSet<&str> = seen
        .connections
        .iter()
        .map(|c| c.spec.cluster.as_str())
        .collect();
    match (seen.connections.len(), clusters.len()) {
        (0, _) => "there is no other cluster with a gateway yet".to_owned(),
        (connections, clusters) => {
            let ready = connections - unready(seen).count();
            let ready = if ready == connections {
                "all ready".to_owned()
            } else {
                format!("{ready} of them ready")
            };
            let plural = if clusters == 1 { "" } else { "s" };
            format!("{connections} connections to {clusters} other cluster{plural}, {ready}")
        }
    }
}

fn unmet(conditions: &[Condition]) -> Option<String> {
    let Some(ready) = conditions.iter().find(|c| c.type_ == READY) else {
        return Some("it does not say whether it is ready".to_owned());
    };
    if ready.status == "True" {
        return None;
    }
    Some(if ready.message.is_empty() {
        ready.reason.clone()
    } else {
        ready.message.clone()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(ready: bool, gateway: &str, connection: &str) -> Seen {
        let condition = |status: &str| {
            json!([{"type": "Ready", "status": status, "reason": "Dead", "message": "no echo for 4 s",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let read = |value| serde_json::from_value(value).unwrap();
        Seen {
            daemons: vec![Rollout::of("subsea-gateway", ready)],
            ready: ["a", "c"].map(str::to_owned).into(),
            gateways: vec![serde_json::from_value(json!({
                "apiVersion": "subsea.dev/v1alpha1", "kind": "Gateway", "metadata": {"name": "a"}, "spec": {},
                "status": {"node": "a", "cluster": "east", "connections": {"total": 1, "ready": 1},
                           "conditions": condition(gateway)},
            }))
            .unwrap()],
            connections: vec![read(json!({
                "apiVersion": "subsea.dev/v1alpha1", "kind": "Connection", "metadata": {"name": "a.west.b"},
                "spec": {"gateway": "a", "cluster": "west", "remoteGateway": "b"},
                "status": {"state": "down", "inUse": false, "conditions": condition(connection)},
            }))],
        }
    }

    #[test]
    fn all_is_well_when_everybody_says_so() {
        let nodes = BTreeSet::from(["a".to_owned()]);
        let seen = seen(true, "True", "True");
        assert!(missing(&seen, &nodes).is_empty());
        assert_eq!(
            summary(&seen),
            "1 connections to 1 other cluster, all ready"
        );
    }

    #[test]
    fn what_is_not_is_named_with_its_reason() {
        let nodes = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        assert_eq!(
            missing(&seen(false, "False", "False"), &nodes),
            [
                "subsea-gateway: ready on 0 of 1 nodes",
                "gateway a: no echo for 4 s",
                "gateway c: it has not said anything yet",
                "a to west/b: no echo for 4 s",
            ]
        );
        let mut seen = seen(true, "True", "True");
        seen.connections.clear();
        assert_eq!(
            missing(&seen, &BTreeSet::from(["a".to_owned()])),
            ["gateway a: shows 0 of 1 connections"]
        );
    }

    #[test]
    fn a_gateway_whose_node_is_down_is_not_waited_for_unless_all_are() {
        let nodes = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        let mut seen = seen(true, "True", "True");
        seen.ready.remove("c");
        let down = [("c".to_owned(), "no word".to_owned())];
        seen.daemons[0].behind.extend(down);
        assert!(missing(&seen, &nodes).is_empty());
        assert_eq!(
            warnings(&seen),
            [
                "subsea-gateway is not of this version on node c, which is not ready (no word): it will be when the node is back"
            ]
        );
        seen.ready.clear();
        assert_eq!(
            missing(&seen, &nodes),
            ["none of the gateways' nodes is ready: a, c"]
        );
    }
}
