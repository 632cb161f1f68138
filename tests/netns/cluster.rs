//! Clusters of several nodes: gateways and plain nodes, an agent on each, a pod behind each.
//!
//! ```text
//! internet            br0, 192.0.2.0/24; the broker is on it
//! CLUSTER-lan         lan0, 172.20.I.0/24, and the router between it and the internet: how plain nodes reach the broker
//! CLUSTER-gw-N        eth0 in the LAN, u0 on the internet
//! CLUSTER-n-N         eth0 in the LAN only
//! CLUSTER-NODE-pod    10.I.K.10 and fd00:1:I:K::10
//! ```
//!
//! Nodes have what nodes of a cluster have: routes of a CNI without an overlay, its masquerade for what leaves the cluster,
//! and the `ct state invalid drop` of kube-proxy. Internet and routers count and drop what is for pods.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::namespace::{Namespace, run};
use crate::node::Node;
use crate::world::{World, connect};

/// The nodes of a whole cluster.
pub(crate) const ALL: &[&str] = &["gw-1", "gw-2", "n-1", "n-2"];
/// As many daemons start at once as a slow machine has to bear.
const SETTLE: Duration = Duration::from_secs(90);

/// A connection as a gateway sees it: source, port, destination, port.
pub(crate) type Tuple = (String, u16, String, u16);

/// Clusters of several nodes on an internet with a broker.
pub(crate) struct Lab {
    nodes: BTreeMap<String, Node>,
    lans: BTreeMap<String, Namespace>,
    pub(crate) world: World,
}

impl Lab {
    /// Builds them; nothing runs but the broker.
    pub(crate) fn build(clusters: &[(&str, &[&str])]) -> Self {
        let mut world = World::new();
        bridge_only(&world.internet);
        world.internet.nft(
            "table bridge lab {
                counter leaked { }
                chain watch {
                    type filter hook prerouting priority -300; policy accept;
                    ip saddr 10.0.0.0/8 counter name leaked drop
                    ip daddr 10.0.0.0/8 counter name leaked drop
                    ip6 daddr fd00:1::/32 counter name leaked drop
                }
                chain fault { type filter hook forward priority 0; policy accept; }
            }",
        );
        world.broker.start();
        let mut lab = Self {
            nodes: BTreeMap::new(),
            lans: BTreeMap::new(),
            world,
        };
        for (index, (name, nodes)) in (1..).zip(clusters) {
            lab.build_cluster(name, index, nodes);
        }
        lab
    }

    /// Clusters whose gateways and agents run, and are connected with all of the others.
    pub(crate) fn start(clusters: &[(&str, &[&str])]) -> Self {
        let mut lab = Self::build(clusters);
        lab.enrol_all("");
        lab.settle();
        lab
    }

    /// Two clusters, the second without its last node.
    pub(crate) fn pair() -> Self {
        Self::start(&[("east", ALL), ("west", &ALL[..3])])
    }

    fn build_cluster(&mut self, name: &str, index: u8, nodes: &[&str]) {
        let prefix = self.world.prefix();
        let lan = Namespace::create(format!("{prefix}-{name}-lan"));
        bridge_only(&lan);
        lan.ip("link add lan0 type bridge");
        lan.ip(&format!("address add 172.20.{index}.254/24 dev lan0"));
        lan.ip("link set lan0 up");
        let router = format!("192.0.2.{}", 200 + index);
        connect(&self.world.internet, &lan, &format!("{router}/24"), "");
        lan.sysctl("net.ipv4.ip_forward=1");
        lan.nft(
            "table inet lab {
                counter leaked { }
                chain watch {
                    type filter hook prerouting priority -300; policy accept;
                    ip saddr 10.0.0.0/8 counter name leaked drop
                    ip daddr 10.0.0.0/8 counter name leaked drop
                    ip6 daddr fd00:1::/32 counter name leaked drop
                }
            }",
        );
        self.world
            .broker
            .space
            .ip(&format!("route add 172.20.{index}.0/24 via {router}"));
        for node in nodes {
            let built = self.build_node(&lan, name, index, node);
            self.nodes.insert(format!("{name}/{node}"), built);
        }
        // Pods of the cluster reach each other by routes between the nodes.
        let own: Vec<&Node> = self.nodes.values().filter(|n| n.cluster == name).collect();
        for (node, other) in own.iter().flat_map(|a| own.iter().map(move |b| (a, b))) {
            if node.number == other.number {
                continue;
            }
            let [v4, v6] = other.prefixes();
            node.space
                .ip(&format!("route add {v4} via {}", other.address()));
            let via = format!("fd00:20:{index}::{}", other.number);
            node.space.ip(&format!("-6 route add {v6} via {via}"));
        }
        self.lans.insert(name.to_owned(), lan);
    }

    fn build_node(&self, lan: &Namespace, cluster: &str, i: u8, name: &str) -> Node {
        let (kind, last) = name.split_once('-').expect("KIND-NUMBER");
        let last: u8 = last.parse().expect("a number");
        let k = if kind == "gw" { last } else { 10 + last };
        let prefix = self.world.prefix();
        let space = Namespace::create(format!("{prefix}-{cluster}-{name}"));
        let pod = Namespace::create(format!("{prefix}-{cluster}-{name}-pod"));
        cable((lan, name), (&space, "eth0"));
        lan.ip(&format!("link set {name} master lan0"));
        space.ip(&format!("address add 172.20.{i}.{k}/24 dev eth0"));
        space.ip(&format!("address add fd00:20:{i}::{k}/64 dev eth0 nodad"));
        space.sysctl("net.ipv4.ip_forward=1");
        space.sysctl("net.ipv6.conf.all.forwarding=1");
        if kind == "gw" {
            let u0 = format!("192.0.2.{}/24", i * 10 + k);
            connect(&self.world.internet, &space, &u0, "");
            // Packets cross the internet as a network card puts them on the wire, and not as one large piece.
            space
                .run("ethtool -K u0 tso off gso off tx-udp-segmentation off")
                .ok();
            space.nft(WATCH);
        } else {
            space.ip(&format!("route add default via 172.20.{i}.254"));
        }
        cable((&space, "cni0"), (&pod, "eth0"));
        for (place, device, last) in [(&space, "cni0", "1"), (&pod, "eth0", "10")] {
            place.ip(&format!("address add 10.{i}.{k}.{last}/24 dev {device}"));
            let v6 = format!("fd00:1:{i}:{k}::{last}/64");
            place.ip(&format!("address add {v6} dev {device} nodad"));
        }
        pod.ip(&format!("route add default via 10.{i}.{k}.1"));
        pod.ip(&format!("-6 route add default via fd00:1:{i}:{k}::1"));
        space.nft(&format!(
            "table inet cni {{
                chain leaves {{
                    type nat hook postrouting priority 100; policy accept;
                    ip saddr 10.{i}.0.0/16 ip daddr != 10.{i}.0.0/16 masquerade
                    ip6 saddr fd00:1:{i}::/48 ip6 daddr != fd00:1:{i}::/48 masquerade
                }}
            }}
            table inet kube-proxy {{
                chain forward {{
                    type filter hook forward priority 0; policy accept;
                    ct state invalid drop
                }}
            }}"
        ));
        let dir = self.world.path("");
        Node::new((cluster, name), (i, k), dir, (space, pod))
    }

    /// The node CLUSTER/NODE.
    pub(crate) fn node(&self, name: &str) -> &Node {
        &self.nodes[name]
    }

    /// The node CLUSTER/NODE, to start and stop things on it.
    pub(crate) fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("such a node")
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The names of all nodes.
    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The network of a cluster's nodes.
    pub(crate) fn lan(&self, cluster: &str) -> &Namespace {
        &self.lans[cluster]
    }

    /// Enrols and starts the daemons of all nodes; gateways are given `flags`.
    pub(crate) fn enrol_all(&mut self, flags: &str) {
        for name in self.names() {
            self.enrol(&name, flags);
        }
    }

    /// Enrols and starts the daemons of a node.
    pub(crate) fn enrol(&mut self, name: &str, flags: &str) {
        if self.node(name).is_gateway() {
            self.join(name, "gateway");
            self.node_mut(name).start_gateway(flags);
        }
        self.join(name, "agent");
        self.node_mut(name).start_agent();
    }

    /// Enrols a daemon of a node.
    pub(crate) fn join(&self, name: &str, what: &str) {
        let node = self.node(name);
        let first = node.name == "gw-1" && what == "gateway";
        let role = if first { "member" } else { what };
        let file = self
            .world
            .path(&format!("{what}-{}-{}.join", node.cluster, node.name));
        let token = format!(
            "token create --cluster {} --role {role} -o {}",
            node.cluster,
            file.display()
        );
        self.world.broker.admin(&token).ok();
        let i = node.index;
        let blocks = if first {
            format!(
                "--pod-cidr 10.{i}.0.0/16 --pod-cidr fd00:1:{i}::/48 --service-cidr 10.{}.0.0/20",
                90 + i
            )
        } else {
            String::new()
        };
        let line = format!("join {} --node {} {blocks}", file.display(), node.name);
        node.subsea(what, &line).ok();
    }

    /// Waits until all that runs is connected with all that runs.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        loop {
            let Some(trouble) = self.nodes().find_map(|node| self.trouble(node)) else {
                return;
            };
            assert!(start.elapsed() < SETTLE, "not within {SETTLE:?}: {trouble}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What is missing at a node.
    fn trouble(&self, node: &Node) -> Option<String> {
        let name = format!("{}/{}", node.cluster, node.name);
        let gateways = |own: bool| {
            let wanted = move |n: &&Node| (n.cluster == node.cluster) == own;
            self.nodes().filter(wanted).filter(|n| n.gateway.is_some())
        };
        if node.gateway.is_some() {
            let Some(status) = node.status("gateway") else {
                return Some(format!("the gateway of {name} does not answer"));
            };
            if status["kernel"]["converged"] != true {
                return Some(format!("{name}: kernel: {}", status["kernel"]));
            }
            for other in gateways(false) {
                let path = node.path(other).unwrap_or_default();
                if path["state"] != "connected" || path["in_use"] != true {
                    return Some(format!("{name} to {}: {path}", other.name));
                }
            }
        }
        node.agent.as_ref()?;
        let Some(status) = node.status("agent") else {
            return Some(format!("the agent of {name} does not answer"));
        };
        if status["kernel"]["converged"] != true {
            return Some(format!("{name}: agent: kernel: {}", status["kernel"]));
        }
        let wanted: BTreeSet<String> = gateways(true).map(|n| n.name.clone()).collect();
        let others: BTreeSet<&String> = gateways(false).map(|n| &n.cluster).collect();
        let missing = others
            .into_iter()
            .find(|cluster| node.sends_by(cluster) != wanted)?;
        Some(format!(
            "the agent of {name} sends to {missing} by {:?}: {}",
            node.sends_by(missing),
            status["gateways"]
        ))
    }

    /// Starts to note anew which connections go by which gateway.
    pub(crate) fn watch(&self) {
        for node in self.nodes().filter(|n| n.is_gateway()) {
            for set in ["from_tunnel", "into_tunnel"] {
                node.space
                    .run(&format!("nft flush set inet lab {set}"))
                    .ok();
            }
        }
    }

    /// By which of its gateways a cluster's connections have gone into the tunnels since [`Lab::watch`].
    pub(crate) fn out_of_cluster(&self, cluster: &str) -> BTreeMap<Tuple, BTreeSet<String>> {
        self.tunnels(cluster, "into_tunnel")
    }

    /// By which of its gateways connections have come to a cluster since [`Lab::watch`].
    pub(crate) fn to_cluster(&self, cluster: &str) -> BTreeMap<Tuple, BTreeSet<String>> {
        self.tunnels(cluster, "from_tunnel")
    }

    fn tunnels(&self, cluster: &str, set: &str) -> BTreeMap<Tuple, BTreeSet<String>> {
        let mut found: BTreeMap<Tuple, BTreeSet<String>> = BTreeMap::new();
        let gateways = self.nodes().filter(|n| n.is_gateway());
        for node in gateways.filter(|n| n.cluster == cluster) {
            for tuple in tuples(&node.space, set) {
                found.entry(tuple).or_default().insert(node.name.clone());
            }
        }
        found
    }

    /// Watches for a moment, and gives by which of its gateways a cluster's connections go into the tunnels.
    pub(crate) fn carriers(&self, cluster: &str) -> BTreeMap<Tuple, BTreeSet<String>> {
        self.watch();
        std::thread::sleep(Duration::from_millis(700));
        self.out_of_cluster(cluster)
    }

    /// Drops, on the internet, what an nftables expression of the bridge family says.
    pub(crate) fn fault(&self, expression: &str) {
        self.world
            .internet
            .run(&format!("nft add rule bridge lab fault {expression} drop"))
            .ok();
    }

    /// Mends the internet.
    pub(crate) fn mend(&self) {
        self.world
            .internet
            .run("nft flush chain bridge lab fault")
            .ok();
    }

    /// Asserts that nothing between pods of two clusters was anywhere in clear.
    pub(crate) fn no_leaks(&self) {
        let lans = self.lans.values().map(|lan| (lan, "inet"));
        for (space, family) in lans.chain([(&self.world.internet, "bridge")]) {
            let text = space
                .run(&format!("nft list counter {family} lab leaked"))
                .ok();
            assert!(
                text.contains("packets 0 bytes 0"),
                "{}: {text}",
                space.name()
            );
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in self.nodes() {
            for (role, daemon) in [("gateway", &node.gateway), ("agent", &node.agent)] {
                if daemon.is_some() {
                    let status = node.subsea(role, "status");
                    eprintln!("==== {}/{} {status}", node.cluster, node.name);
                }
            }
        }
    }
}

/// Which connections go by a gateway: from the tunnel and into it.
const WATCH: &str = "table inet lab {
    set from_tunnel { type ipv4_addr . inet_service . ipv4_addr . inet_service; size 65536; flags dynamic; }
    set into_tunnel { type ipv4_addr . inet_service . ipv4_addr . inet_service; size 65536; flags dynamic; }
    chain forward {
        type filter hook forward priority -300; policy accept;
        meta l4proto { tcp, udp } iifname subsea0 add @from_tunnel { ip saddr . th sport . ip daddr . th dport }
        meta l4proto { tcp, udp } oifname subsea0 add @into_tunnel { ip saddr . th sport . ip daddr . th dport }
    }
}";

fn tuples(space: &Namespace, set: &str) -> Vec<Tuple> {
    let text = space.run(&format!("nft -j list set inet lab {set}")).ok();
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let items = all["nftables"].as_array().expect("a list");
    let found = items.iter().find_map(|item| item["set"]["elem"].as_array());
    let elements = found.into_iter().flatten().map(|element| {
        let value = element.get("elem").map_or(element, |elem| &elem["val"]);
        let word = |at: usize| value["concat"][at].as_str().expect("an address").to_owned();
        let port = |at: usize| {
            let port = value["concat"][at].as_u64().expect("a port");
            u16::try_from(port).expect("a port")
        };
        (word(0), port(1), word(2), port(3))
    });
    elements.collect()
}

/// A link between two namespaces, up at both ends.
pub(crate) fn cable(one: (&Namespace, &str), other: (&Namespace, &str)) {
    let mut link = Command::new("ip");
    link.args(["link", "add", one.1, "netns", one.0.name(), "type", "veth"]);
    link.args(["peer", "name", other.1, "netns", other.0.name()]);
    run(&mut link).ok();
    for (space, device) in [one, other] {
        space.ip(&format!("link set {device} up"));
    }
}

/// What a bridge carries is not shown to the IP layer's filters there.
fn bridge_only(space: &Namespace) {
    for table in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
        space.inside(|| {
            // Where the module is not loaded there is nothing to switch off.
            if std::fs::exists(&path).unwrap_or(false) {
                std::fs::write(&path, "0").expect("a writable setting");
            }
        });
    }
}
