//! From what was read and what is in the kernel to what stands in the way. PURE.

use subsea_api::UnixMillis;

use crate::control::network::{Detected, NetworkStatus, Obstacle, Severity};
use crate::kube::cni::{self, Finding, Proxy, ProxyMode, Surroundings, Traces};
use crate::kube::discover::facts::Facts;

/// kube-proxy's mark, where nothing says another one.
const MASQUERADE_BIT: u32 = 14;

/// What is to be said. `facts` are what the API server answered; without them, on nodes that do not ask it, the kernel alone
/// counts.
pub(super) fn status(
    facts: Option<&Facts>,
    traces: &Traces,
    around: Surroundings<'_>,
    looked: UnixMillis,
) -> NetworkStatus {
    let (mut plugins, mut proxy) = match facts {
        Some(facts) => cni::detect(facts),
        None => (Vec::new(), unknown()),
    };
    // A static pod's configuration is in a file that the API server does not show.
    if proxy.mode == ProxyMode::Unknown
        && let Some((mode, by)) = traces.proxy_mode()
    {
        proxy.mode = mode;
        proxy.from = Some(in_kernel(by));
    }
    plugins.dedup();
    let mut findings = cni::findings(&plugins, &proxy, around);
    if facts.is_none() {
        // What was not asked for is no finding.
        findings.retain(|f| !["plugin-not-found", "proxy-unknown"].contains(&f.id));
    }
    findings.extend(traces.findings(around.marks));
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    findings.dedup();
    let named: Vec<String> = plugins.iter().map(ToString::to_string).collect();
    let mut detected: Vec<Detected> = named
        .iter()
        .map(|name| Detected {
            name: name.clone(),
            from: "API server".to_owned(),
        })
        .collect();
    for (plugin, device) in traces.plugins() {
        if !named.iter().any(|name| name.starts_with(plugin)) {
            detected.push(Detected {
                name: plugin.to_owned(),
                from: in_kernel(&format!("device {device}")),
            });
        }
    }
    let known = proxy.mode != ProxyMode::Unknown;
    NetworkStatus {
        looked,
        plugins: detected,
        proxy: known.then(|| Detected {
            name: proxy.mode.to_string(),
            from: proxy.from.unwrap_or_default(),
        }),
        findings: findings.into_iter().filter_map(obstacle).collect(),
        unread: facts.map(unread).unwrap_or_default(),
    }
}

fn unknown() -> Proxy {
    Proxy {
        mode: ProxyMode::Unknown,
        from: None,
        masquerade_bit: MASQUERADE_BIT,
    }
}

fn in_kernel(by: &str) -> String {
    format!("kernel: {by}")
}

fn unread(facts: &Facts) -> Vec<String> {
    let failures = facts.failures();
    failures
        .map(|(query, why)| format!("{query}: {why}"))
        .collect()
}

fn obstacle(finding: Finding) -> Option<Obstacle> {
    let severity = match finding.severity {
        cni::Severity::Fine => return None,
        cni::Severity::Warns => Severity::Warns,
        cni::Severity::Blocks => Severity::Blocks,
    };
    Some(Obstacle {
        severity,
        id: finding.id.to_owned(),
        found: finding.found,
        why: finding.why,
        instead: finding.instead,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::cni::{Device, Marks, ProxyTrace};
    use crate::kube::discover::facts::Reading;
    use crate::kube::discover::facts::fixture::facts;
    use crate::kube::discover::query::Query;

    fn traces(device: &str) -> Traces {
        Traces {
            devices: vec![Device {
                name: device.to_owned(),
                kind: Some("veth".to_owned()),
            }],
            proxy: vec![ProxyTrace::Canary],
            ..Traces::default()
        }
    }

    fn seen(facts: Option<&Facts>, traces: &Traces) -> NetworkStatus {
        let around = Surroundings {
            marks: Marks {
                gateway: 0x3000,
                ..Marks::default()
            },
            ..Surroundings::default()
        };
        status(facts, traces, around, UnixMillis(7))
    }

    fn ids(status: &NetworkStatus) -> Vec<(&str, Severity)> {
        let findings = status.findings.iter();
        findings.map(|f| (f.id.as_str(), f.severity)).collect()
    }

    const CILIUM: &str = r#"{"metadata": {"name": "cilium-config"}, "data": {"kube-proxy-replacement": "false",
        "enable-bpf-masquerade": "true"}}"#;

    #[test]
    fn a_setting_that_blocks_comes_first_and_what_is_fine_is_left_out() {
        let blocked = CILIUM.replace(
            "\"enable-bpf",
            "\"install-no-conntrack-iptables-rules\": \"true\", \"enable-bpf",
        );
        let sets = r#"{"metadata": {"name": "cilium"}}"#;
        let facts = facts(&[(Query::Cilium, &blocked), (Query::DaemonSets, sets)]);
        let status = seen(Some(&facts), &traces("cilium_host"));
        assert_eq!(
            ids(&status),
            [
                ("cilium-no-conntrack", Severity::Blocks),
                ("cilium-masquerade", Severity::Warns),
            ]
        );
        assert_eq!(status.plugins.len(), 1, "{:?}", status.plugins);
        assert!(status.plugins[0].name.starts_with("Cilium ("));
        assert_eq!(status.plugins[0].from, "API server");
        let proxy = status.proxy.unwrap();
        assert_eq!(
            (proxy.name.as_str(), proxy.from.as_str()),
            (
                "kube-proxy, iptables",
                "kernel: iptables' chain KUBE-PROXY-CANARY"
            )
        );
    }

    #[test]
    fn a_node_that_does_not_ask_goes_by_its_kernel_and_misses_nothing() {
        let status = seen(None, &traces("cali12ab"));
        assert_eq!(ids(&status), []);
        assert_eq!(status.plugins[0].name, "Calico");
        assert_eq!(status.plugins[0].from, "kernel: device cali12ab");
        assert_eq!(seen(None, &Traces::default()).proxy, None);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let mut facts = facts(&[(Query::DaemonSets, r#"{"metadata": {"name": "cilium"}}"#)]);
        let denied = Reading::Failed("cannot get resource (403)".to_owned());
        facts.insert(Query::Cilium, denied);
        let status = seen(Some(&facts), &traces("cilium_host"));
        assert_eq!(
            status.unread,
            ["ConfigMap kube-system/cilium-config: cannot get resource (403)"]
        );
        // Its devices are here all the same.
        assert_eq!(status.plugins[0].from, "kernel: device cilium_host");
        assert_eq!(ids(&status), [("plugin-not-found", Severity::Warns)]);
    }
}
