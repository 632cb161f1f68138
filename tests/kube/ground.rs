//! Two clusters and a management cluster. API servers, daemons, networks and packets are real; nodes are network namespaces, and
//! [`crate::kubelet`] runs what their pods say.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::bed::{Plane, Relay};
use crate::cluster::Lab;
use crate::kubelet::{Kubelet, Place};
use crate::namespace::{Ran, run};
use crate::node::Node;
use crate::traffic::Pings;
use crate::wait::until;

/// For what takes the daemons of several nodes.
pub(crate) const LONG: Duration = Duration::from_secs(90);
pub(crate) const BROKER: &str = "https://192.0.2.10:8443";

/// Nothing of ours is installed.
pub(crate) struct Ground {
    // Dropped in this order: first what runs.
    /// Of the management cluster, of `east` and of `west`.
    pub(crate) kubelets: Vec<Kubelet>,
    _relays: Vec<Relay>,
    pub(crate) lab: Lab,
    pub(crate) manager: Plane,
    pub(crate) east: Plane,
    pub(crate) west: Plane,
    /// What was in the kernel of each node that is still there.
    before: BTreeMap<String, String>,
    pub(crate) dir: PathBuf,
}

impl Ground {
    /// Nodes whose names begin with `gw` are gateways.
    pub(crate) fn build(east: &[&str], west: &[&str]) -> Self {
        let nodes = [("east", east), ("west", west)];
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
        let mut lab = Lab::build(&nodes);
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
                    label(plane, &node.name, true);
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

    /// A node of east is no more: its machine first, and then its object, as whoever looks after machines does.
    pub(crate) fn lose(&mut self, node: &str) {
        self.kubelets[1].lose(node);
        self.before.remove(&format!("east/{node}"));
        self.east.kubectl(&["delete", "node", node]).ok();
    }

    /// What an operator types, on a host that reaches the API servers and the broker.
    pub(crate) fn subsea(&self, line: &str) -> Ran {
        run(&mut self.operator(&["timeout", "-k", "5", "200"], line))
    }

    fn operator(&self, wrapper: &[&str], line: &str) -> Command {
        let planes = [&self.manager, &self.east, &self.west];
        let files: Vec<String> = planes
            .iter()
            .map(|plane| plane.kubeconfig().display().to_string())
            .collect();
        let mut words = wrapper.to_vec();
        words.push(env!("CARGO_BIN_EXE_subsea"));
        let mut command = self.lab.world.broker.space.command(words[0]);
        command
            .env("KUBECONFIG", files.join(":"))
            .env("NO_COLOR", "1")
            .args(&words[1..])
            .args(line.split_whitespace());
        command
    }

    /// The same, and Ctrl-C as soon as it says something with these words. Gives its exit code and what it said.
    pub(crate) fn interrupted(&self, line: &str, words: &str) -> (Option<i32>, String) {
        let mut command = self.operator(&[], line);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("subsea starts");
        let pid = Pid::from_child(&child);
        let (mut said, mut sent) = (String::new(), false);
        for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
            let line = line.expect("text");
            if line.contains(words) && !sent {
                sent = true;
                kill_process(pid, Signal::INT).expect("it is there");
            }
            said = said + &line + "\n";
        }
        (child.wait().expect("it ends").code(), said)
    }

    /// What an operator of the fleet types, with the file that the broker has put into its Secret.
    pub(crate) fn broker_admin(&self, line: &str) -> Ran {
        let secret = "-n subsea-broker get secret subsea-broker-admin";
        let file = "go-template={{index .data \"admin.yaml\" | base64decode}}";
        let arguments = secret.split(' ').chain(["-o", file]).collect::<Vec<_>>();
        let path = self.dir.join("admin.yaml");
        std::fs::write(&path, self.manager.kubectl(&arguments).ok()).expect("the admin file");
        let program = Path::new(env!("CARGO_BIN_EXE_subsea")).with_file_name("subsea-broker");
        let mut command = self.lab.world.broker.space.command("timeout");
        command.args(["-k", "5", "60"]).arg(program);
        command
            .arg("--admin")
            .arg(path)
            .args(line.split_whitespace());
        run(&mut command)
    }

    /// A join file, made through the broker in the management cluster.
    pub(crate) fn token(&self, cluster: &str) -> PathBuf {
        let path = self.dir.join(format!("{cluster}.join"));
        let line = format!(
            "token create --context hub --cluster {cluster} -o {}",
            path.display()
        );
        self.subsea(&line).ok();
        path
    }

    pub(crate) fn join(&self, cluster: &str, file: &Path, more: &str) -> Ran {
        self.subsea(&Self::join_line(cluster, file, more))
    }

    pub(crate) fn join_line(cluster: &str, file: &Path, more: &str) -> String {
        let context = if cluster == "east" {
            "hither"
        } else {
            "yonder"
        };
        format!(
            "join {} --context {context} --cluster {cluster} --timeout 120s {more}",
            file.display()
        )
    }

    /// Pings between pods of plain nodes, until they are stopped.
    pub(crate) fn pings(&self, name: &str) -> Pings {
        let (from, to) = (self.node("west/n-1"), self.node("east/n-1"));
        let log = self.dir.join(format!("pings-{name}.log"));
        Pings::start(&from.pod, to.pod4(), Duration::from_millis(50), log)
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.lab.node(name)
    }

    /// What it says.
    pub(crate) fn deploy_broker(&self) -> String {
        self.deploy_broker_with("").said()
    }

    pub(crate) fn deploy_broker_with(&self, more: &str) -> Ran {
        self.subsea(&format!(
            "deploy-broker --context hub --expose {BROKER} --timeout 120s {more}"
        ))
    }

    /// Pods of nodes reach each other by their own addresses, in both families.
    pub(crate) fn talk(&self, pairs: &[(&str, &str)]) {
        for (from, to) in pairs {
            let [from, to] = [from, to].map(|name| self.node(name));
            until("pods reach each other", LONG, || {
                crate::traffic::ping(&from.pod, to.pod4())
                    && crate::traffic::ping(&from.pod, to.pod6())
            });
            from.reaches(to);
        }
        self.lab.no_leaks();
    }

    /// Nothing of ours is in a cluster, nor on its nodes.
    pub(crate) fn is_clean(&self, name: &str, plane: &Plane) {
        let all = "namespaces,clusterroles,clusterrolebindings,customresourcedefinitions";
        let left = plane.kubectl(&["get", all, "-o", "name"]).ok();
        assert!(!left.contains("subsea"), "{left}");
        let events = plane
            .kubectl(&["-n", "default", "get", "roles,rolebindings", "-o", "name"])
            .ok();
        assert!(!events.contains("subsea"), "{events}");
        for node in self.lab.nodes().filter(|node| node.cluster == name) {
            let of = format!("{name}/{}", node.name);
            // Of one that is no more there is nothing to look at.
            let Some(before) = self.before.get(&of) else {
                continue;
            };
            // What the lab itself notes of the tunnels' packets.
            self.lab.watch();
            let state = node.kernel_state();
            let only = |these: &str, those: &str| -> Vec<String> {
                let lines = these.lines().filter(|line| !those.contains(line));
                lines.map(str::to_owned).collect()
            };
            let (left, lacking) = (only(&state, before), only(before, &state));
            assert!(left.is_empty(), "{of} has what it had not before: {left:?}");
            assert!(lacking.is_empty(), "{of} lacks what it had: {lacking:?}");
            let mut find = Command::new("find");
            let disk = self.dir.join(name).join("disks").join(&node.name);
            let dirs = ["var/lib", "run"].map(|dir| disk.join(dir));
            let found = run(find.args(dirs).args(["-mindepth", "2"])).ok();
            assert_eq!(found, "", "keys or sockets are left on {}", node.name);
        }
    }
}

/// Makes a node a gateway, or no gateway any more.
pub(crate) fn label(plane: &Plane, node: &str, gateway: bool) {
    let label = format!("subsea.dev/gateway{}", if gateway { "=true" } else { "-" });
    plane.kubectl(&["label", "node", node, &label]).ok();
}

pub(crate) fn objects(plane: &Plane, kind: &str) -> Vec<Value> {
    let mut arguments = vec!["get"];
    arguments.extend(kind.split_whitespace());
    arguments.extend(["-o", "json"]);
    let text = plane.kubectl(&arguments).ok();
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Asserts that all of this was said.
#[track_caller]
pub(crate) fn assert_says(said: &str, all: &[&str]) {
    for wanted in all {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
}
