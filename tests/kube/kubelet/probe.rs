//! The readiness probe of a container.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use super::Place;
use crate::namespace::run;

/// Asks the readiness probe, from within the node.
pub(super) fn is_ready(spec: &Value, place: &Place) -> bool {
    let probe = &spec["readinessProbe"];
    if probe.is_null() {
        return true;
    }
    let asked = if probe["httpGet"].is_object() {
        &probe["httpGet"]
    } else {
        &probe["tcpSocket"]
    };
    let port = &asked["port"];
    let ports = spec["ports"].as_array();
    let named = ports.and_then(|all| all.iter().find(|p| p["name"] == *port));
    let number = port
        .as_u64()
        .or(named.and_then(|p| p["containerPort"].as_u64()));
    let number = number.and_then(|n| u16::try_from(n).ok()).expect("a port");
    let address = SocketAddr::new(place.address, number);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &place.namespace]);
    if let Some(path) = asked["path"].as_str() {
        let scheme = asked["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        // A kubelet does not look at the certificate either.
        command.args([
            "curl",
            "-ksf",
            "--noproxy",
            "*",
            "--max-time",
            "1",
            "-o",
            "/dev/null",
        ]);
        command.arg(format!("{scheme}://{address}{path}"));
    } else {
        let connect = format!("exec 3<>/dev/tcp/{}/{number}", place.address);
        command.args(["timeout", "1", "bash", "-c", &connect]);
    }
    run(&mut command).code == Some(0)
}
