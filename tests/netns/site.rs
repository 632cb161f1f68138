//! A cluster as a test sees it: a gateway host and a pod behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::namespace::{Namespace, Ran, run};
use crate::traffic::{HttpServer, fetch, ping};
use crate::wait::until;
use crate::world::connect;

/// Which addresses a cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    /// IPv4 and IPv6.
    Dual,
}

/// A cluster: `u0` is the gateway's underlay, `cni0` leads to the pod, whose web server tells who asked.
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) index: u8,
    pub(crate) family: Family,
    /// The gateway daemon, while it should run.
    pub(crate) gateway: Option<Daemon>,
    pub(crate) state: PathBuf,
    log: PathBuf,
    _http: HttpServer,
    pub(crate) pod: Namespace,
    pub(crate) host: Namespace,
}

impl Site {
    /// Builds its namespaces.
    pub(crate) fn build(
        prefix: &str,
        dir: &Path,
        internet: &Namespace,
        name: &str,
        index: u8,
        family: Family,
    ) -> Self {
        let host = Namespace::create(format!("{prefix}-{name}-gw"));
        let pod = Namespace::create(format!("{prefix}-{name}-pod"));
        let v6 = if family == Family::Dual {
            format!("2001:db8::{index}:1/64")
        } else {
            String::new()
        };
        connect(internet, &host, &format!("192.0.2.{}/24", 100 + index), &v6);
        let mut link = Command::new("ip");
        link.args(["link", "add", "cni0", "netns", host.name(), "type", "veth"]);
        run(link.args(["peer", "name", "eth0", "netns", pod.name()])).ok();
        for (space, device, last) in [(&host, "cni0", 1_u8), (&pod, "eth0", 10)] {
            space.ip(&format!(
                "address add 10.{}.0.{last}/24 dev {device}",
                10 + index
            ));
            if family == Family::Dual {
                space.ip(&format!(
                    "address add fd00:1:{index}::{last:x}/64 dev {device} nodad"
                ));
            }
            space.ip(&format!("link set {device} up"));
        }
        pod.ip(&format!("route add default via 10.{}.0.1", 10 + index));
        if family == Family::Dual {
            pod.ip(&format!("-6 route add default via fd00:1:{index}::1"));
        }
        Self {
            name: name.to_owned(),
            index,
            family,
            gateway: None,
            state: dir.join(format!("state-{name}")),
            log: dir.join(format!("gateway-{name}.log")),
            _http: HttpServer::start(&pod, name),
            pod,
            host,
        }
    }

    /// Its pod's address.
    pub(crate) fn pod4(&self) -> IpAddr {
        Ipv4Addr::new(10, 10 + self.index, 0, 10).into()
    }

    /// Its pod's IPv6 address.
    pub(crate) fn pod6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd00, 1, u16::from(self.index), 0, 0, 0, 0, 0xa).into()
    }

    /// Its gateway's underlay address.
    pub(crate) fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 100 + self.index)
    }

    /// Its pod block.
    pub(crate) fn pod_cidr(&self) -> String {
        format!("10.{}.0.0/16", 10 + self.index)
    }

    /// Its service block.
    pub(crate) fn service_cidr(&self) -> String {
        format!("10.{}.0.0/20", 90 + self.index)
    }

    /// The flags of its `join`.
    pub(crate) fn join_flags(&self) -> String {
        let Self { name, index, .. } = self;
        let mut flags = format!(
            "--cluster {name} --pod-cidr {} --service-cidr {}",
            self.pod_cidr(),
            self.service_cidr()
        );
        if self.family == Family::Dual {
            let blocks = [
                ("--pod-cidr", format!("fd00:1:{index}::/48")),
                ("--service-cidr", format!("fd00:2:{index}::/108")),
            ];
            for (flag, block) in blocks {
                flags.extend([" ", flag, " ", &block]);
            }
        }
        flags
    }

    /// Runs `subsea` on the gateway host, with the state directory.
    pub(crate) fn subsea(&self, line: &str) -> Ran {
        let program = env!("CARGO_BIN_EXE_subsea");
        self.host.run(&format!(
            "{program} {line} --state-dir {}",
            self.state.display()
        ))
    }

    /// Starts the gateway daemon with further flags.
    pub(crate) fn start_gateway(&mut self, flags: &str) {
        self.gateway = Some(self.spawn_gateway(flags));
    }

    /// Starts a gateway daemon that the caller owns.
    pub(crate) fn spawn_gateway(&self, flags: &str) -> Daemon {
        let mut command = self.host.command(env!("CARGO_BIN_EXE_subsea"));
        command.arg("gateway").arg("--state-dir").arg(&self.state);
        // These tests are of our own data plane, also on a host whose kernel has WireGuard; scripts/test-kernel has the
        // kernel's.
        if !flags.contains("--driver") {
            command.args(["--driver", "userspace"]);
        }
        command.args(flags.split_whitespace());
        Daemon::start(command, &self.log)
    }

    /// What the gateway daemon said.
    pub(crate) fn gateway_output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// kill -9 of the gateway daemon.
    pub(crate) fn kill_gateway(&mut self) {
        self.gateway.take().expect("the gateway runs").kill();
    }

    /// Stops the gateway daemon as a service manager does.
    pub(crate) fn stop_gateway(&mut self) {
        let status = self.gateway.take().expect("the gateway runs").stop();
        assert!(
            status.success(),
            "the gateway of {} ended with {status}",
            self.name
        );
    }

    /// The gateway's status; none while it does not answer.
    pub(crate) fn status(&self) -> Option<Value> {
        let ran = self.subsea("status -o json");
        (ran.code == Some(0)).then(|| serde_json::from_str(&ran.stdout).expect("JSON"))
    }

    /// The path to the first gateway of another cluster, as `status` has it.
    pub(crate) fn path_to(&self, cluster: &str) -> Option<Value> {
        let status = self.status()?;
        let members = status["members"].as_array().expect("members");
        let member = members.iter().find(|m| m["cluster"] == cluster)?;
        member["gateways"].get(0).cloned()
    }

    /// The state of that path; none without one.
    pub(crate) fn path_state(&self, cluster: &str) -> Option<String> {
        self.path_to(cluster)?["state"].as_str().map(str::to_owned)
    }

    /// A counter of drops: of the path to a cluster, or of the device as a whole.
    pub(crate) fn drops(&self, cluster: Option<&str>, reason: &str) -> u64 {
        let place = match cluster {
            Some(cluster) => self.path_to(cluster),
            None => self.status(),
        };
        place.and_then(|p| p["drops"][reason].as_u64()).unwrap_or(0)
    }

    /// How the broker is, as the gateway sees it.
    pub(crate) fn broker_state(&self) -> Option<String> {
        self.status()?["broker"]["state"]
            .as_str()
            .map(str::to_owned)
    }

    /// Asserts that its pod reaches the other's by ICMP and HTTP, by its own address.
    pub(crate) fn reaches(&self, other: &Self) {
        let mut pairs = vec![(self.pod4(), other.pod4())];
        if self.family == Family::Dual && other.family == Family::Dual {
            pairs.push((self.pod6(), other.pod6()));
        }
        for (ours, theirs) in pairs {
            self.pings(theirs, Duration::from_secs(5));
            let answer = fetch(&self.pod, theirs, Duration::from_secs(5));
            let text = answer.unwrap_or_else(|e| panic!("{} to {theirs}: {e}", self.name));
            assert_eq!(text, format!("pod of {} saw {ours}\n", other.name));
        }
    }

    /// Waits until its pod has an answer from `address`; says how long that took.
    pub(crate) fn pings(&self, address: IpAddr, limit: Duration) -> Duration {
        let what = format!("a ping from {} to {address}", self.name);
        until(&what, limit, || ping(&self.pod, address))
    }

    /// Whether its pod gets no answer from `address`.
    pub(crate) fn is_cut_from(&self, address: IpAddr) -> bool {
        !ping(&self.pod, address)
    }
}
