//! A node of a cluster, its daemons, and the pod behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::namespace::{Namespace, Ran, run};
use crate::traffic::{HttpServer, fetch};
use crate::wait::{LONG, until};

/// A node and the pod behind it.
pub(crate) struct Node {
    pub(crate) cluster: String,
    pub(crate) name: String,
    /// The I of its cluster.
    pub(crate) index: u8,
    /// Its K.
    pub(crate) number: u8,
    /// The daemons, while they should run.
    pub(crate) gateway: Option<Daemon>,
    pub(crate) agent: Option<Daemon>,
    dir: PathBuf,
    _http: HttpServer,
    pub(crate) pod: Namespace,
    pub(crate) space: Namespace,
}

impl Node {
    /// A node whose namespaces are there; nothing runs on it but the web server of its pod.
    pub(crate) fn new(
        (cluster, name): (&str, &str),
        (index, number): (u8, u8),
        dir: PathBuf,
        (space, pod): (Namespace, Namespace),
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            index,
            number,
            gateway: None,
            agent: None,
            dir,
            _http: HttpServer::start(&pod, &format!("{cluster}/{name}")),
            pod,
            space,
        }
    }

    /// Whether it is to have a gateway.
    pub(crate) fn is_gateway(&self) -> bool {
        self.name.starts_with("gw-")
    }

    /// Its pod's address.
    pub(crate) fn pod4(&self) -> IpAddr {
        Ipv4Addr::new(10, self.index, self.number, 10).into()
    }

    /// Its pod's IPv6 address.
    pub(crate) fn pod6(&self) -> IpAddr {
        let [index, number] = [self.index, self.number].map(u16::from);
        // The same digits as in IPv4.
        let number = if number > 9 { number + 6 } else { number };
        Ipv6Addr::new(0xfd00, 1, index, number, 0, 0, 0, 0x10).into()
    }

    /// Its address in the LAN.
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 20, self.index, self.number)
    }

    /// Its address on the internet, where it is a gateway.
    pub(crate) fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.index * 10 + self.number)
    }

    /// The blocks of its pods.
    pub(crate) fn prefixes(&self) -> [String; 2] {
        let Self { index, number, .. } = self;
        [
            format!("10.{index}.{number}.0/24"),
            format!("fd00:1:{index}:{number}::/64"),
        ]
    }

    /// The state directory of a role.
    pub(crate) fn state(&self, role: &str) -> PathBuf {
        self.dir
            .join(format!("{role}-{}-{}", self.cluster, self.name))
    }

    fn log(&self, role: &str) -> PathBuf {
        self.state(role).with_extension("log")
    }

    /// What a daemon of it said.
    pub(crate) fn output(&self, role: &str) -> String {
        std::fs::read_to_string(self.log(role)).unwrap_or_default()
    }

    /// Runs `subsea` on it, with the state directory of a role.
    pub(crate) fn subsea(&self, role: &str, line: &str) -> Ran {
        let program = env!("CARGO_BIN_EXE_subsea");
        let state = self.state(role);
        self.space
            .run(&format!("{program} {line} --state-dir {}", state.display()))
    }

    /// Starts its gateway.
    pub(crate) fn start_gateway(&mut self, flags: &str) {
        let mut command = self.space.command(env!("CARGO_BIN_EXE_subsea"));
        command
            .arg("gateway")
            .arg("--state-dir")
            .arg(self.state("gateway"));
        command.args(["--driver", "userspace", "--endpoint"]);
        command.arg(format!("{}:51820", self.underlay()));
        command.args(["--node-address", &self.address().to_string()]);
        command.args(flags.split_whitespace());
        self.gateway = Some(Daemon::start(command, &self.log("gateway")));
    }

    /// Starts its agent.
    pub(crate) fn start_agent(&mut self) {
        let prefixes = self.prefixes();
        self.start_agent_for(&prefixes);
    }

    /// Starts its agent, which says that it has these prefixes.
    pub(crate) fn start_agent_for(&mut self, prefixes: &[String]) {
        let mut command = self.space.command(env!("CARGO_BIN_EXE_subsea"));
        command
            .arg("agent")
            .arg("--state-dir")
            .arg(self.state("agent"));
        command.args(["--node", &self.name]);
        for prefix in prefixes {
            command.args(["--pod-cidr", prefix]);
        }
        if self.is_gateway() {
            command
                .arg("--gateway-state-dir")
                .arg(self.state("gateway"));
        }
        self.agent = Some(Daemon::start(command, &self.log("agent")));
    }

    /// kill -9 of its gateway.
    pub(crate) fn kill_gateway(&mut self) {
        self.gateway.take().expect("the gateway runs").kill();
    }

    /// kill -9 of its agent.
    pub(crate) fn kill_agent(&mut self) {
        self.agent.take().expect("the agent runs").kill();
    }

    /// Has its agent stand still, as one that is given no processor, or go on.
    pub(crate) fn freeze_agent(&self, still: bool) {
        let agent = self.agent.as_ref().expect("the agent runs");
        agent.signal(if still { Signal::STOP } else { Signal::CONT });
    }

    /// Its agent ends by a signal.
    pub(crate) fn end_agent(&mut self, signal: Signal) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.signal(signal);
        agent.wait(LONG);
    }

    /// Waits until its gateway has ended in good order.
    pub(crate) fn gateway_ends(&mut self, limit: Duration) {
        let status = self.gateway.take().expect("it runs").wait(limit);
        assert!(status.success(), "{}/{}: {status}", self.cluster, self.name);
    }

    /// The status of a daemon; none while it does not answer.
    pub(crate) fn status(&self, role: &str) -> Option<Value> {
        let ran = self.subsea(role, "status -o json");
        (ran.code == Some(0)).then(|| serde_json::from_str(&ran.stdout).expect("JSON"))
    }

    /// What its gateway says of the path to another.
    pub(crate) fn path(&self, to: &Self) -> Option<Value> {
        let status = self.status("gateway")?;
        let members = status["members"].as_array()?;
        let member = members
            .iter()
            .find(|m| m["cluster"] == to.cluster.as_str())?;
        let paths = member["gateways"].as_array()?;
        let path = paths.iter().find(|p| p["gateway"] == to.name.as_str());
        path.cloned()
    }

    /// The gateways by which its agent sends what is for a cluster.
    pub(crate) fn sends_by(&self, cluster: &str) -> BTreeSet<String> {
        let status = self.status("agent").unwrap_or_default();
        let clusters = status["clusters"].as_array().cloned().unwrap_or_default();
        let found = clusters.iter().find(|c| c["cluster"] == cluster);
        let gateways = found.and_then(|c| c["gateways"].as_array().cloned());
        let names = gateways.unwrap_or_default().into_iter();
        names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until its agent sends what is for `cluster` by just these gateways; gives how long that took.
    pub(crate) fn sends_only_by(&self, cluster: &str, by: &[&str], limit: Duration) -> Duration {
        let by: BTreeSet<String> = by.iter().map(|name| (*name).to_owned()).collect();
        let what = format!("{}/{} sends by {by:?}", self.cluster, self.name);
        until(&what, limit, || self.sends_by(cluster) == by)
    }

    /// Asserts that its pod reaches the other's, and is seen there by its own address.
    pub(crate) fn reaches(&self, other: &Self) {
        for (ours, theirs) in [(self.pod4(), other.pod4()), (self.pod6(), other.pod6())] {
            let seen = fetched(&self.pod, theirs, other);
            assert_eq!(seen, ours, "{}/{}", self.cluster, self.name);
        }
    }

    /// Asserts that its host reaches the other's pod, and gives by which addresses it was seen there.
    pub(crate) fn host_reaches(&self, other: &Self) -> [IpAddr; 2] {
        [other.pod4(), other.pod6()].map(|theirs| fetched(&self.space, theirs, other))
    }

    /// The counters of a table.
    pub(crate) fn counters(&self, table: &str) -> BTreeMap<String, u64> {
        let text = self
            .space
            .run(&format!("nft -j list counters table {table}"))
            .ok();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let items = all["nftables"].as_array().expect("a list").iter();
        let counters = items.filter_map(|item| {
            let counter = item.get("counter")?;
            let name = counter["name"].as_str()?.to_owned();
            Some((name, counter["packets"].as_u64()?))
        });
        counters.collect()
    }

    /// What is seen of the kernel's state that somebody could leave behind.
    pub(crate) fn kernel_state(&self) -> String {
        const SHOWN: &str = "ip -o link show | sed 's/ state .*//'; ip -o address show | sed 's/valid_lft.*//';
            for f in -4 -6; do ip $f rule show; ip $f route show table all | sed 's/ expires .*//' | sort; done;
            ip nexthop show; nft list ruleset | grep -v 'counter packets\\|packets .* bytes';
            sysctl -a 2>/dev/null | grep -E '^net.ipv[46].*(forward|rp_filter|accept_ra)' | sort";
        let mut command = self.space.command("sh");
        run(command.args(["-c", SHOWN])).ok()
    }
}

fn fetched(from: &Namespace, to: IpAddr, other: &Node) -> IpAddr {
    let answer = fetch(from, to, Duration::from_secs(5));
    let text = answer.unwrap_or_else(|e| panic!("{} to {to}: {e}", from.name()));
    let prefix = format!("pod of {}/{} saw ", other.cluster, other.name);
    let seen = text.trim().strip_prefix(&prefix);
    let seen = seen.unwrap_or_else(|| panic!("another answered: {text}"));
    seen.parse().expect("an address")
}
