//! By which URLs a Service is reached from outside. PURE.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Service};

/// Nodes that are named: one of them is enough, and the others are for when it is away.
const NODES: usize = 3;

/// What the load balancer of a Service gave it; empty until it has.
pub(super) fn of_load_balancer(service: &Service) -> Vec<String> {
    let Some(port) = port(service).map(|p| p.port) else {
        return Vec::new();
    };
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let ingress = status
        .and_then(|s| s.ingress.as_deref())
        .unwrap_or_default();
    let mut urls = Vec::new();
    for place in ingress {
        // A name stays when addresses change.
        if let Some(host) = place.hostname.as_ref().or(place.ip.as_ref()) {
            urls.push(url(host, port));
        }
    }
    urls
}

/// The port of a Service on some of the nodes.
pub(super) fn of_nodes(service: &Service, nodes: &[Node]) -> Result<Vec<String>, String> {
    let port = port(service)
        .and_then(|p| p.node_port)
        .ok_or("the Service has got no port on the nodes")?;
    let usable = || nodes.iter().filter(|n| is_usable(n));
    for kind in ["ExternalIP", "InternalIP"] {
        let found: Vec<String> = usable()
            .filter_map(|node| address(node, kind))
            .take(NODES)
            .map(|host| url(host, port))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(format!(
        "none of {} nodes is ready and has an address",
        nodes.len()
    ))
}

fn port(service: &Service) -> Option<&k8s_openapi::api::core::v1::ServicePort> {
    service.spec.as_ref()?.ports.as_ref()?.first()
}

fn is_usable(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let closed = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    ready && !closed
}

fn address<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let addresses = node.status.as_ref()?.addresses.as_deref()?;
    let found = addresses.iter().find(|a| a.type_ == kind)?;
    Some(&found.address)
}

fn url(host: &str, port: i32) -> String {
    match host.parse() {
        Ok(IpAddr::V6(ip)) => format!("https://[{ip}]:{port}"),
        Ok(IpAddr::V4(_)) | Err(_) => format!("https://{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(status: &serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "spec": {"ports": [{"port": 8443, "nodePort": 30123}]}, "status": status
        }))
        .unwrap()
    }

    fn node(name: &str, ready: &str, addresses: &serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": addresses}
        }))
        .unwrap()
    }

    #[test]
    fn a_load_balancer_has_names_and_addresses_or_nothing_yet() {
        assert!(of_load_balancer(&service(&json!({"loadBalancer": {}}))).is_empty());
        let given = json!({"loadBalancer": {"ingress": [
            {"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}, {"hostname": "b.example.net", "ip": "192.0.2.2"}
        ]}});
        assert_eq!(
            of_load_balancer(&service(&given)),
            [
                "https://192.0.2.1:8443",
                "https://[2001:db8::1]:8443",
                "https://b.example.net:8443"
            ]
        );
    }

    #[test]
    fn nodes_are_named_by_their_outer_addresses_if_they_have_any() {
        let inner = json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
        let both = json!([
            {"type": "InternalIP", "address": "10.0.0.2"}, {"type": "ExternalIP", "address": "192.0.2.2"}
        ]);
        let port = service(&json!({}));
        let nodes = [node("a", "True", &inner), node("b", "False", &both)];
        assert_eq!(of_nodes(&port, &nodes).unwrap(), ["https://10.0.0.1:30123"]);
        let nodes = [node("a", "True", &inner), node("b", "True", &both)];
        assert_eq!(
            of_nodes(&port, &nodes).unwrap(),
            ["https://192.0.2.2:30123"]
        );
        assert!(of_nodes(&port, &[]).unwrap_err().contains("0 nodes"));
        let mut closed = nodes[0].clone();
        closed.spec = Some(serde_json::from_value(json!({"unschedulable": true})).unwrap());
        assert!(of_nodes(&port, &[closed]).is_err());
    }
}
