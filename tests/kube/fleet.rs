//! The whole way: a broker in a management cluster, two clusters that join by one command each, pods that talk, an upgrade, an
//! API server that restarts, and two clusters that leave. API servers, daemons, networks and packets are real; nodes are
//! network namespaces, and [`crate::kubelet`] runs what their pods say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{self, Plane, Relay};
use crate::cluster::Lab;
use crate::kubelet::{Kubelet, Place};
use crate::namespace::{Ran, run};
use crate::node::Node;
use crate::traffic::Pings;
use crate::wait::until;

/// For what takes the daemons of several nodes.
const LONG: Duration = Duration::from_secs(90);
const BROKER: &str = "https://192.0.2.10:8443";
const EAST: &[&str] = &["gw-1", "gw-2", "n-1"];
const WEST: &[&str] = &["gw-1", "n-1"];

/// A ping whose question came by the gateway that begins to drain, and whose answer goes by the other one: that one's
/// connection tracking never saw the question, and the rule of kube-proxy drops the answer. One for each time that flows move.
const IN_FLIGHT: usize = 2;

/// Two clusters and a management cluster, of which nothing of ours is installed.
struct Ground {
    // Dropped in this order: first what runs.
    kubelets: Vec<Kubelet>,
    _relays: Vec<Relay>,
    lab: Lab,
    manager: Plane,
    east: Plane,
    west: Plane,
    /// What was in the kernel of each node.
    before: BTreeMap<String, String>,
    dir: PathBuf,
}

impl Ground {
    fn build() -> Self {
        // Their names are those of their contexts.
        let planes = [("hub", 3), ("hither", 4), ("yonder", 5)];
        let [manager, east, west] = std::thread::scope(|scope| {
            let started =
                planes.map(|(name, number)| scope.spawn(move || Plane::start(name, number)));
            started.map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|e| std::panic::resume_unwind(e))
            })
        });
        let mut lab = Lab::build(&[("east", EAST), ("west", WEST)]);
        // This time the broker runs in a pod.
        lab.world.broker.stop();
        let dir = lab.world.path("");
        let state = |node: &Node| {
            (
                format!("{}/{}", node.cluster, node.name),
                node.kernel_state(),
            )
        };
        let before = lab.nodes().map(state).collect();
        let mut ground = Self {
            kubelets: Vec::new(),
            _relays: [&manager, &east, &west]
                .map(|plane| Relay::inside(lab.world.broker.space.name(), plane.address()))
                .into(),
            lab,
            manager,
            east,
            west,
            before,
            dir,
        };
        ground.run_pods();
        ground
    }

    /// Nodes as a cluster of kubeadm has them, with somebody who runs their pods.
    fn run_pods(&mut self) {
        let place = Place {
            node: "manager-1".to_owned(),
            namespace: self.lab.world.broker.space.name().to_owned(),
            address: "192.0.2.10".parse().expect("an address"),
        };
        self.manager.fake_node(&place.node, &[], "192.0.2.10", &[]);
        // The broker's own relay is there already.
        let kubelet =
            Kubelet::start_without_relays(&self.manager, vec![place], &self.dir.join("manager"));
        self.kubelets.push(kubelet);
        for (name, plane) in [("east", &self.east), ("west", &self.west)] {
            let nodes: Vec<&Node> = self.lab.nodes().filter(|n| n.cluster == name).collect();
            for node in &nodes {
                let [v4, v6] = node.prefixes();
                let address = node.address().to_string();
                plane.fake_node(&node.name, &[&v4, &v6], &address, &[]);
                if node.is_gateway() {
                    let endpoint = format!("subsea.dev/endpoint={}:51820", node.underlay());
                    plane
                        .kubectl(&["annotate", "node", &node.name, &endpoint])
                        .ok();
                    plane
                        .kubectl(&["label", "node", &node.name, "subsea.dev/gateway=true"])
                        .ok();
                }
            }
            let i = nodes[0].index;
            let services = plane.service_cidrs().join(",");
            let written = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
                "data": {"ClusterConfiguration": format!(
                    "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  \
                     podSubnet: 10.{i}.0.0/16,fd00:1:{i}::/48\n  serviceSubnet: {services}\n"
                )},
            });
            plane.apply(&written.to_string()).ok();
            let places = nodes.iter().map(|node| Place {
                node: node.name.clone(),
                namespace: node.space.name().to_owned(),
                address: node.address().into(),
            });
            let kubelet = Kubelet::start(plane, places.collect(), &self.dir.join(name));
            self.kubelets.push(kubelet);
        }
    }

    /// What an operator types, on a host that reaches the API servers and the broker.
    fn subsea(&self, line: &str) -> Ran {
        let planes = [&self.manager, &self.east, &self.west];
        let files: Vec<String> = planes
            .iter()
            .map(|plane| plane.kubeconfig().display().to_string())
            .collect();
        let mut command = self.lab.world.broker.space.command("timeout");
        command
            .env("KUBECONFIG", files.join(":"))
            .env("NO_COLOR", "1")
            .args(["-k", "5", "200", env!("CARGO_BIN_EXE_subsea")])
            .args(line.split_whitespace());
        run(&mut command)
    }

    /// A join file, made through the broker in the management cluster.
    fn token(&self, cluster: &str) -> PathBuf {
        let path = self.dir.join(format!("{cluster}.join"));
        let line = format!(
            "token create --context hub --cluster {cluster} -o {}",
            path.display()
        );
        self.subsea(&line).ok();
        path
    }

    fn join(&self, cluster: &str, file: &Path, more: &str) -> Ran {
        let context = if cluster == "east" {
            "hither"
        } else {
            "yonder"
        };
        self.subsea(&format!(
            "join {} --context {context} --cluster {cluster} --timeout 120s {more}",
            file.display()
        ))
    }

    /// Pings between pods of plain nodes, until they are stopped.
    fn pings(&self, name: &str) -> Pings {
        let (from, to) = (self.node("west/n-1"), self.node("east/n-1"));
        let log = self.dir.join(format!("pings-{name}.log"));
        Pings::start(&from.pod, to.pod4(), Duration::from_millis(50), log)
    }

    fn node(&self, name: &str) -> &Node {
        self.lab.node(name)
    }
}

fn objects(plane: &Plane, kind: &str) -> Vec<Value> {
    let mut arguments = vec!["get"];
    arguments.extend(kind.split_whitespace());
    arguments.extend(["-o", "json"]);
    let text = plane.kubectl(&arguments).ok();
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["items"].as_array().cloned().unwrap_or_default()
}

#[test]
fn clusters_join_talk_are_upgraded_and_leave() {
    // Alone: packets that are lost for want of a processor would be counted.
    let _alone = bed::exclusive();
    let mut ground = Ground::build();
    let said = ground
        .subsea(&format!(
            "deploy-broker --context hub --expose {BROKER} --timeout 120s"
        ))
        .said();
    assert!(said.contains(&format!("answers at {BROKER}")), "{said}");
    join_both(&ground);
    is_shown(&ground);
    talks(&ground);
    upgrade(&ground);
    talks(&ground);
    lose_the_api_server(&mut ground);
    move_a_gateway(&ground);
    talks(&ground);
    leave_both(&ground);
}

fn join_both(ground: &Ground) {
    // The first has nobody to talk to, and that is no failure.
    let file = ground.token("west");
    let said = ground.join("west", &file, "").said();
    for wanted in [
        "10.2.0.0/16",
        "kubeadm-config",
        "cluster west is a member",
        "no other cluster with a gateway yet",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    // What overlaps is found and refused before anything is touched.
    let file = ground.token("east");
    let check = format!("preflight {} --context hither", file.display());
    let said = ground.subsea(&check).said();
    assert!(said.contains("cluster `east` can join fleet"), "{said}");
    let check = format!("{check} --pod-cidr 10.2.0.0/17 -o json");
    let said = ground.subsea(&check).fails_with(2);
    assert!(
        said.contains("\"ok\": false") && said.contains("10.2.0.0/16"),
        "{said}"
    );
    let said = ground
        .join("east", &file, "--pod-cidr 10.2.0.0/17")
        .fails_with(2);
    assert!(
        said.contains("10.2.0.0/16") && said.contains("west"),
        "{said}"
    );
    let namespaces = ["get", "namespaces", "-o", "name"];
    let namespaces = ground.east.kubectl(&namespaces).ok();
    assert!(!namespaces.contains("namespace/subsea\n"), "{namespaces}");
    let said = ground.join("east", &file, "").said();
    // What an operator reads, for `--nocapture`.
    eprintln!("{said}");
    let wanted = "2 connections to 1 other cluster, all ready";
    assert!(said.contains(wanted), "{said}");
}

fn is_shown(ground: &Ground) {
    let ready = [
        "wait",
        "--for=condition=Ready",
        "connection",
        "--all",
        "--timeout=60s",
    ];
    ground.east.kubectl(&ready).ok();
    ground.west.kubectl(&ready).ok();
    let shown = ground.east.kubectl(&["get", "connections"]).ok();
    eprintln!("{shown}");
    assert!(
        shown.contains("connected") && shown.contains("west"),
        "{shown}"
    );
    assert_eq!(objects(&ground.west, "connections").len(), 2);
    assert_eq!(objects(&ground.east, "gateways.subsea.dev").len(), 2);
    assert_eq!(objects(&ground.east, "clusters.subsea.dev").len(), 2);
    // These nodes have no network plugin: what was read, with the rights of the manifest, says so.
    let look = [
        "wait",
        "--for=jsonpath={.status.conditions[?(@.type==\"NetworkCompatible\")].reason}=SettingWarns",
        "gateways.subsea.dev",
        "--all",
        "--timeout=60s",
    ];
    ground.east.kubectl(&look).ok();
    let gateway = objects(&ground.east, "gateways.subsea.dev")[0].to_string();
    assert!(gateway.contains("plugin-not-found"), "{gateway}");
}

/// A second join is an upgrade: one gateway after the other, and next to nothing is lost.
fn upgrade(ground: &Ground) {
    let pings = ground.pings("upgrade");
    let file = ground.dir.join("east.join");
    let said = ground.join("east", &file, "--image subsea:next").said();
    let wanted = "changed DaemonSet subsea/subsea-gateway";
    assert!(said.contains(wanted), "{said}");
    let answered = pings.stop_losing(IN_FLIGHT);
    assert!(answered > 20, "{answered} pings during the upgrade");
}

/// Without its API server a cluster goes on, and shows what has changed when it is back.
fn lose_the_api_server(ground: &mut Ground) {
    let pings = ground.pings("outage");
    ground.east.stop_api_server();
    std::thread::sleep(Duration::from_secs(5));
    ground.east.start_api_server();
    let version = |ground: &Ground| {
        let all = objects(&ground.east, "connections");
        all[0]["metadata"]["resourceVersion"].clone()
    };
    let shown = version(ground);
    until("what is shown is kept up to date again", LONG, || {
        version(ground) != shown
    });
    pings.stop_without_loss();
}

/// The label goes from a gateway's node and comes back: it drains, and the other one has its flows.
fn move_a_gateway(ground: &Ground) {
    let pings = ground.pings("moved");
    let east = &ground.east;
    east.kubectl(&["label", "node", "gw-2", "subsea.dev/gateway-"])
        .ok();
    until("no gateway runs on the node", LONG, || {
        objects(east, "pods --namespace subsea").iter().all(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            !name.starts_with("subsea-gateway") || pod["spec"]["nodeName"] != "gw-2"
        })
    });
    east.kubectl(&["label", "node", "gw-2", "subsea.dev/gateway=true"])
        .ok();
    until("it is back", LONG, || {
        let all = objects(east, "connections");
        let used = |c: &&Value| c["status"]["inUse"] == true;
        all.iter().filter(used).count() == 2
    });
    pings.stop_losing(IN_FLIGHT);
}

fn leave_both(ground: &Ground) {
    let said = ground
        .subsea("leave --context yonder --timeout 120s")
        .said();
    for wanted in ["cluster west has left fleet", "swept 2 nodes"] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    is_clean(ground, "west", &ground.west);
    until("connections to who left are gone", LONG, || {
        objects(&ground.east, "connections").is_empty()
    });
    ground.subsea("leave --context hither --timeout 120s").ok();
    is_clean(ground, "east", &ground.east);
}

/// Pods of all nodes reach each other by their own addresses, in both families.
fn talks(ground: &Ground) {
    for (from, to) in [
        ("east/n-1", "west/n-1"),
        ("west/n-1", "east/n-1"),
        ("east/gw-1", "west/n-1"),
        ("west/gw-1", "east/gw-2"),
    ] {
        let [from, to] = [from, to].map(|name| ground.node(name));
        until("pods reach each other", LONG, || {
            crate::traffic::ping(&from.pod, to.pod4()) && crate::traffic::ping(&from.pod, to.pod6())
        });
        from.reaches(to);
    }
    ground.lab.no_leaks();
}

/// Nothing of ours is in a cluster, nor on its nodes.
fn is_clean(ground: &Ground, name: &str, plane: &Plane) {
    let all = "namespaces,clusterroles,clusterrolebindings,customresourcedefinitions";
    let left = plane.kubectl(&["get", all, "-o", "name"]).ok();
    assert!(!left.contains("subsea"), "{left}");
    let events = plane
        .kubectl(&["-n", "default", "get", "roles,rolebindings", "-o", "name"])
        .ok();
    assert!(!events.contains("subsea"), "{events}");
    for node in ground.lab.nodes().filter(|node| node.cluster == name) {
        // What the lab itself notes of the tunnels' packets.
        ground.lab.watch();
        let state = node.kernel_state();
        let before = &ground.before[&format!("{name}/{}", node.name)];
        let only = |these: &str, those: &str| -> Vec<String> {
            let lines = these.lines().filter(|line| !those.contains(line));
            lines.map(str::to_owned).collect()
        };
        let (left, lacking) = (only(&state, before), only(before, &state));
        let of = format!("{name}/{}", node.name);
        assert!(left.is_empty(), "{of} has what it had not before: {left:?}");
        assert!(lacking.is_empty(), "{of} lacks what it had: {lacking:?}");
        let mut find = Command::new("find");
        let disk = ground.dir.join(name).join("disks").join(&node.name);
        let found = run(find.arg(disk.join("var/lib")).args(["-mindepth", "2"])).ok();
        assert_eq!(found, "", "keys are left on {}", node.name);
    }
}
