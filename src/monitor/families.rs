//! The status of a daemon as Prometheus has it: families of metrics in the text format of `OpenMetrics`. PURE.
//!
//! Base units (seconds, bytes, ratio), `_total` on what only grows, `_info` on what is text. Labels are few: a path is its
//! `cluster` and `gateway`, and a drop has a `reason`.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use subsea_api::UnixMillis;

use crate::agent::status::{GatewayState, Status as AgentStatus};
use crate::control::around::KubernetesStatus;
use crate::control::network::{NetworkStatus, Severity};
use crate::gateway::status::{BrokerState, KernelStatus, PathStatus, Status as GatewayStatus};
use crate::membership::standing::BrokerStatus;

/// What the text is, for whoever asked for it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A status that has metrics.
pub trait Measured: fmt::Debug {
    /// Writes them.
    ///
    /// # Errors
    /// When the encoder fails.
    fn measure(&self, families: &mut Families<'_>) -> fmt::Result;
}

/// All metrics of a daemon; of one that does not run, that it does not.
///
/// # Errors
/// When the encoder fails.
pub fn text<S: Measured + Send + Sync + 'static>(status: Option<S>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Shown(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Shown<S>(Option<S>);

impl<S: Measured + Send + Sync + 'static> Collector for Shown<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families { encoder };
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        families.info("subsea_build", "The program.", &build)?;
        let up = f64::from(u8::from(self.0.is_some()));
        families.one(
            "subsea_up",
            "Whether the daemon runs: it has an identity and was started.",
            None,
            up,
        )?;
        match &self.0 {
            Some(status) => status.measure(&mut families),
            None => Ok(()),
        }
    }
}

/// The labels of a series.
type Labels = Vec<(&'static str, String)>;

/// Writes families.
#[derive(Debug)]
pub struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Families<'_> {
    /// What is text.
    fn info(&mut self, name: &str, help: &str, labels: &Labels) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Info)?
            .encode_info(labels)
    }

    /// A value that goes up and down, once for each set of labels.
    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            if labels.is_empty() {
                encoder.encode_gauge(&value)?;
            } else {
                encoder.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A value that goes up and down.
    fn one(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        self.gauges(name, help, unit, [(Labels::new(), value)])
    }

    /// A point in time, if there is one.
    fn time(&mut self, name: &str, help: &str, at: Option<UnixMillis>) -> fmt::Result {
        let series = at.map(|at| (Labels::new(), seconds(at)));
        self.gauges(name, help, Some(&Unit::Seconds), series)
    }

    /// A value that only grows, once for each set of labels.
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in series {
            encoder
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    /// What every daemon has.
    fn common(&mut self, common: &Common<'_>) -> fmt::Result {
        self.time(
            "subsea_start_time",
            "When the daemon started, since the epoch.",
            Some(common.started),
        )?;
        let connected = common.broker.state == BrokerState::Connected;
        self.one(
            "subsea_broker_connected",
            "Whether the broker's watch is open. Traffic does not depend on it.",
            None,
            flag(connected),
        )?;
        self.gauges(
            "subsea_snapshot_revision",
            "The revision of the fleet that is acted on.",
            None,
            common
                .revision
                .map(|revision| (Labels::new(), count(revision))),
        )?;
        self.time(
            "subsea_certificate_expiry_timestamp",
            "When the node's certificate expires, since the epoch.",
            common.certificate_expires,
        )?;
        self.one(
            "subsea_kernel_converged",
            "Whether the last pass over the kernel left nothing undone.",
            None,
            flag(common.kernel.converged),
        )?;
        self.time(
            "subsea_kernel_last_pass_timestamp",
            "When the last pass over the kernel ended, since the epoch.",
            common.kernel.last_reconcile,
        )?;
        self.one(
            "subsea_problems",
            "How many things need attention; `subsea status` names them.",
            None,
            count(common.kernel.problems.len().saturating_add(common.problems)),
        )
    }

    fn network(&mut self, network: Option<&NetworkStatus>) -> fmt::Result {
        let Some(network) = network else {
            return Ok(());
        };
        let of = |severity: Severity| {
            let labels = vec![("severity", severity.as_str().to_owned())];
            (labels, count(network.count(severity)))
        };
        self.gauges(
            "subsea_network_findings",
            "How many settings of the network plugin or service proxy stand in the way, or may; `subsea status` names them.",
            None,
            [Severity::Blocks, Severity::Warns].into_iter().map(of),
        )
    }

    fn kubernetes(&mut self, kubernetes: Option<&KubernetesStatus>) -> fmt::Result {
        let Some(kubernetes) = kubernetes else {
            return Ok(());
        };
        self.one(
            "subsea_kubernetes_writable",
            "Whether what kubectl shows of this daemon can be written.",
            None,
            flag(kubernetes.problem.is_none()),
        )?;
        self.time(
            "subsea_kubernetes_last_write_timestamp",
            "When something was written to the API server last, since the epoch.",
            kubernetes.last_write,
        )
    }
}

/// What every daemon has.
struct Common<'a> {
    started: UnixMillis,
    broker: &'a BrokerStatus,
    revision: Option<u64>,
    certificate_expires: Option<UnixMillis>,
    kernel: &'a KernelStatus,
    problems: usize,
}

impl Measured for GatewayStatus {
    fn measure(&self, families: &mut Families<'_>) -> fmt::Result {
        let who = vec![
            ("fleet", self.fleet.to_string()),
            ("cluster", self.cluster.to_string()),
            ("node", self.node.to_string()),
            ("driver", self.driver.clone()),
            ("device", self.device.clone()),
        ];
        families.info("subsea_gateway", "The gateway of this node.", &who)?;
        families.common(&Common {
            started: self.started,
            broker: &self.broker,
            revision: self.revision,
            certificate_expires: self.certificate_expires,
            kernel: &self.kernel,
            problems: self.problems.len(),
        })?;
        families.kubernetes(self.kubernetes.as_ref())?;
        families.network(self.network.as_ref())?;
        families.one(
            "subsea_gateway_draining",
            "Whether the gateway hands its traffic over to the others of its cluster.",
            None,
            flag(self.draining),
        )?;
        families.one(
            "subsea_gateway_inward_dead",
            "Whether the gateway does not reach its own cluster, and has itself left out.",
            None,
            flag(self.inward_dead),
        )?;
        families.one(
            "subsea_gateway_mtu",
            "The MTU of the tunnel device.",
            Some(&Unit::Bytes),
            self.mtu.into(),
        )?;
        families.one(
            "subsea_clusters",
            "How many other clusters are in the fleet.",
            None,
            count(self.members.len()),
        )?;
        let drops = self.drops.iter();
        families.counters(
            "subsea_dropped_packets",
            "Packets of no path that were dropped, by reason.",
            None,
            drops.map(|(reason, packets)| (vec![("reason", reason.as_str().to_owned())], *packets)),
        )?;
        paths(self, families)
    }
}

/// What is measured on each path.
fn paths(status: &GatewayStatus, families: &mut Families<'_>) -> fmt::Result {
    let all = || status.members.iter().flat_map(|member| &member.gateways);
    let gauge = |value: fn(&PathStatus) -> Option<f64>| {
        all().filter_map(move |path| Some((labels(path), value(path)?)))
    };
    families.gauges(
        "subsea_path_up",
        "Whether packets go both ways on the path to a remote gateway.",
        None,
        gauge(|path| Some(flag(path.two_way))),
    )?;
    families.gauges(
        "subsea_path_in_use",
        "Whether the path carries flows of its cluster.",
        None,
        gauge(|path| Some(flag(path.in_use))),
    )?;
    families.gauges(
        "subsea_path_state_since_timestamp",
        "Since when the path is in its state, since the epoch.",
        Some(&Unit::Seconds),
        gauge(|path| Some(seconds(path.since))),
    )?;
    families.gauges(
        "subsea_path_latest_handshake_timestamp",
        "When the last handshake was completed, since the epoch.",
        Some(&Unit::Seconds),
        gauge(|path| path.latest_handshake.map(seconds)),
    )?;
    families.gauges(
        "subsea_path_rtt",
        "The round trip through the tunnel, smoothed.",
        Some(&Unit::Seconds),
        gauge(|path| {
            let smoothed = path.echo.as_ref().and_then(|echo| echo.rtt_smoothed_ms);
            smoothed.or(path.rtt_ms).map(|ms| ms / 1e3)
        }),
    )?;
    families.gauges(
        "subsea_path_loss",
        "The share of the last probes that was lost.",
        Some(&Unit::Other("ratio".to_owned())),
        gauge(|path| path.echo.as_ref().map(|echo| echo.loss_percent / 1e2)),
    )?;
    families.gauges(
        "subsea_path_mtu",
        "The largest packet that the underlay takes on the way.",
        Some(&Unit::Bytes),
        gauge(|path| path.path_mtu.map(f64::from)),
    )?;
    families.counters(
        "subsea_path_received",
        "Inner bytes received.",
        Some(&Unit::Bytes),
        all().map(|path| (labels(path), path.rx_bytes)),
    )?;
    families.counters(
        "subsea_path_sent",
        "Inner bytes sent.",
        Some(&Unit::Bytes),
        all().map(|path| (labels(path), path.tx_bytes)),
    )?;
    let drops = all().flat_map(|path| {
        path.drops.iter().map(|(reason, packets)| {
            let mut labels = labels(path);
            labels.push(("reason", reason.as_str().to_owned()));
            (labels, *packets)
        })
    });
    families.counters(
        "subsea_path_dropped_packets",
        "Packets of the path that were dropped, by reason.",
        None,
        drops,
    )
}

fn labels(path: &PathStatus) -> Labels {
    vec![
        ("cluster", path.cluster.to_string()),
        ("gateway", path.gateway.to_string()),
    ]
}

impl Measured for AgentStatus {
    fn measure(&self, families: &mut Families<'_>) -> fmt::Result {
        let who = vec![
            ("fleet", self.fleet.to_string()),
            ("cluster", self.cluster.to_string()),
            ("node", self.node.to_string()),
            ("encap", self.encap.to_string()),
            ("device", self.device.clone()),
        ];
        families.info("subsea_agent", "The agent of this node.", &who)?;
        families.common(&Common {
            started: self.started,
            broker: &self.broker,
            revision: self.revision,
            certificate_expires: self.certificate_expires,
            kernel: &self.kernel,
            problems: self.problems.len(),
        })?;
        families.network(self.network.as_ref())?;
        families.one(
            "subsea_agent_mtu",
            "The MTU of the device towards other nodes.",
            Some(&Unit::Bytes),
            self.mtu.into(),
        )?;
        families.one(
            "subsea_agent_pod_prefixes",
            "How many blocks of pods this node has.",
            None,
            count(self.prefixes.len()),
        )?;
        let gateways = || {
            self.gateways
                .iter()
                .map(|gateway| (vec![("gateway", gateway.node.to_string())], gateway))
        };
        families.gauges(
            "subsea_agent_gateway_up",
            "Whether a gateway of the own cluster is used for traffic of this node.",
            None,
            gateways().map(|(labels, gateway)| {
                let used = [GatewayState::Connected, GatewayState::Held];
                (labels, flag(used.contains(&gateway.state)))
            }),
        )?;
        families.gauges(
            "subsea_agent_gateway_rtt",
            "The last round trip to the node of a gateway.",
            Some(&Unit::Seconds),
            gateways().filter_map(|(labels, gateway)| Some((labels, gateway.rtt_ms? / 1e3))),
        )?;
        families.gauges(
            "subsea_agent_gateway_loss",
            "The share of the last probes of the node of a gateway that was lost.",
            Some(&Unit::Other("ratio".to_owned())),
            gateways().filter_map(|(labels, gateway)| Some((labels, gateway.loss_percent? / 1e2))),
        )?;
        let clusters = || {
            self.clusters
                .iter()
                .map(|cluster| (vec![("cluster", cluster.cluster.to_string())], cluster))
        };
        families.gauges(
            "subsea_agent_cluster_reached",
            "Whether a gateway says that it reaches the other cluster.",
            None,
            clusters().map(|(labels, cluster)| (labels, flag(cluster.reached))),
        )?;
        families.gauges(
            "subsea_agent_cluster_mtu",
            "The largest packet that gets to the other cluster whole.",
            Some(&Unit::Bytes),
            clusters().filter_map(|(labels, cluster)| Some((labels, cluster.mtu?.into()))),
        )?;
        let nodes = [("alive", true), ("silent", false)];
        families.gauges(
            "subsea_agent_nodes",
            "The nodes behind the gateway of this node, by state.",
            None,
            nodes.map(|(state, alive)| {
                let of = self.nodes.iter().filter(|node| node.alive == alive);
                (vec![("state", state.to_owned())], count(of.count()))
            }),
        )
    }
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// A number of things. Nobody has so many that it would not be exact.
fn count(value: impl TryInto<u64>) -> f64 {
    let value = value.try_into().unwrap_or(u64::MAX);
    let high = u32::try_from(value >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

fn seconds(at: UnixMillis) -> f64 {
    Duration::from_millis(at.0).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_of_a_gateway() {
        let mut status = crate::gateway::status::tests::example();
        status.kernel.last_reconcile = Some(UnixMillis(5_500));
        status.kubernetes = Some(KubernetesStatus {
            last_write: Some(UnixMillis(6_000)),
            problem: None,
        });
        status.network = Some(NetworkStatus::default());
        let text = text(Some(status)).unwrap();
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&version));
        insta::assert_snapshot!(text.replace(&version, "version=\"X\""));
    }

    #[test]
    fn the_metrics_of_an_agent() {
        let status: AgentStatus = serde_json::from_value(serde_json::json!({
            "fleet": "harbour", "cluster": "east", "node": "n-1", "role": "agent", "pid": 42, "started": 1_000,
            "epoch": "e1", "revision": 7,
            "broker": {"state": "connected", "since": 2_000, "url": "https://192.0.2.9:7443"},
            "certificate_expires": null, "snapshot": {"source": "broker"}, "address": "192.0.2.3",
            "prefixes": ["10.32.1.0/24"], "device": "subsea.vx", "mtu": 1370,
            "gateways": [{"node": "gw-1", "own": false, "address": "192.0.2.1", "state": "dead", "since": 3_000,
                "rtt_ms": 1.5, "loss_percent": 20.0, "reaches": ["west"], "why": "no echo"}],
            "clusters": [{"cluster": "west", "gateways": ["gw-1"], "reached": true, "mtu": 1300}],
            "nodes": [{"node": "n-2", "address": "192.0.2.4", "prefixes": [], "alive": true}],
            "kernel": {"converged": true, "last_reconcile": 5_000, "problems": ["x"]},
            "problems": ["y"],
        }))
        .unwrap();
        let text = text(Some(status)).unwrap();
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        insta::assert_snapshot!(text.replace(&version, "version=\"X\""));
    }

    #[test]
    fn a_daemon_that_does_not_run_says_so() {
        let text = text::<GatewayStatus>(None).unwrap();
        assert!(
            text.contains("\nsubsea_up 0.0\n") && text.ends_with("# EOF\n"),
            "{text}"
        );
    }

    #[test]
    fn large_numbers_stay_exact() {
        assert!((count(9_007_199_254_740_991_u64) - 9_007_199_254_740_991.0).abs() < 0.5);
        assert!((count(7_usize) - 7.0).abs() < f64::EPSILON);
    }
}
