//! What a gateway shows of itself, against a real API server and with the rights that the manifests give it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use subsea::control::Answers;
use subsea::control::around::{Around, KubernetesStatus, Notebook, Open};
use subsea::control::feed::Feed;
use subsea::gateway::status::Status;
use subsea::kube::publish;
use subsea::task::Task;
use tokio::sync::watch;

use crate::bed::{self, LONG, Plane, Relay, run, until};

const MANIFESTS: [&str; 4] = ["namespace", "accounts", "roles", "crds"];
pub(crate) const CONNECTION: &str = "connection/gw-1.west.gw-9";

/// The status of a gateway that the test plays.
struct Played(Arc<Mutex<Value>>, Notebook);

impl Answers for Played {
    type Status = Status;

    fn status(&self) -> Status {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status: Status = serde_json::from_value(status.clone()).unwrap();
        status.network = self.1.read().network;
        status
    }

    fn stop(&self) {}

    fn drain(&self) -> bool {
        false
    }

    fn inward(&self, _dead: Option<bool>) {}

    fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>> {
        None
    }
}

fn path(remote: &str) -> Value {
    json!({
        "cluster": "west", "gateway": remote,
        "public_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "endpoint": "192.0.2.2:51820", "state": "connecting", "since": 1_750_000_000_000_u64,
        "latest_handshake": null, "rtt_ms": null, "rx_bytes": 1, "tx_bytes": 2, "cidrs": [], "drops": {},
        "why": "no handshake yet: is UDP 192.0.2.2:51820 open?", "peer_hears_us": false, "two_way": false,
    })
}

fn status() -> Value {
    json!({
        "fleet": "harbour", "cluster": "east", "node": "gw-1", "role": "member", "pid": 42,
        "started": 1_750_000_000_000_u64, "endpoint": "192.0.2.1:51820", "device": "subsea0", "mtu": 1420,
        "driver": "userspace", "public_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=", "epoch": "e1", "revision": 7,
        "broker": {"state": "connected", "since": 2_000, "url": "https://192.0.2.9:7443"},
        "certificate_expires": null, "snapshot": {"source": "broker"},
        "allocations": [{"kind": "pod", "cidr": "10.1.0.0/16", "exported": true}],
        "cluster_gateways": [{"node": "gw-1"}],
        "members": [{
            "cluster": "west",
            "allocations": [{"kind": "pod", "cidr": "10.2.0.0/16", "exported": true}],
            "gateways": [path("gw-9")],
        }],
        "drops": {}, "kernel": {"converged": true, "last_reconcile": 3_000, "problems": []}, "problems": [],
    })
}

/// A gateway that shows itself.
pub(crate) struct Shown {
    status: Arc<Mutex<Value>>,
    pub(crate) around: Around<Status>,
    stop: watch::Sender<bool>,
    task: Option<Task>,
    _open: Open<Status>,
}

impl Shown {
    pub(crate) fn start(kubeconfig: &Path) -> Self {
        let status = Arc::new(Mutex::new(status()));
        let around = Around::default();
        let open = around
            .door
            .open(Arc::new(Played(Arc::clone(&status), around.notes.clone())));
        let (stop, stopped) = watch::channel(false);
        let client = Plane::client_of(kubeconfig);
        let publishing = publish::with(client, around.clone(), stopped);
        let task = Plane::block_on(async { Some(Task::spawn("kubernetes", publishing)) });
        Self {
            status,
            around,
            stop,
            task,
            _open: open,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn connect(&self) {
        self.change(|status| {
            let path = &mut status["members"][0]["gateways"][0];
            path["state"] = json!("connected");
            path["rtt_ms"] = json!(1.5);
            path["why"] = Value::Null;
            path["two_way"] = json!(true);
            path["in_use"] = json!(true);
            path["path_mtu"] = json!(1480);
        });
    }

    fn kubernetes(&self) -> KubernetesStatus {
        self.around.notes.read().kubernetes.unwrap_or_default()
    }

    fn problem(&self) -> String {
        self.kubernetes().problem.unwrap_or_default()
    }

    /// Stops it, as the end of the process does.
    pub(crate) fn end(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            Plane::block_on(task.join()).unwrap();
        }
    }
}

/// What the manifests give to the gateways, without the daemons; gone when dropped.
pub(crate) struct Installed<'a> {
    plane: &'a Plane,
    stays: bool,
}

fn manifest(name: &str) -> String {
    std::fs::read_to_string(format!("manifests/cluster/{name}.yaml")).unwrap()
}

impl<'a> Installed<'a> {
    pub(crate) fn all(plane: &'a Plane) -> Self {
        Self::some(plane, &MANIFESTS)
    }

    pub(crate) fn some(plane: &'a Plane, names: &[&str]) -> Self {
        let installed = Self {
            plane,
            stays: false,
        };
        // A test that failed leaves its own.
        installed.remove();
        for name in names {
            installed.apply(name);
        }
        installed
    }

    /// Also what others have changed.
    pub(crate) fn apply(&self, name: &str) {
        self.plane.apply_as_subsea(&manifest(name));
    }

    fn remove(&self) {
        self.delete(&["crds", "roles", "accounts", "namespace"]);
        self.plane
            .kubectl(&["delete", "--ignore-not-found", "node", "gw-1"])
            .ok();
    }

    /// Leaves it there, for a test that needs the plane for itself: the next one to install something removes it.
    pub(crate) fn stay(mut self) {
        self.stays = true;
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.plane.kubeconfig_of("subsea", "subsea-gateway")
    }

    fn delete(&self, names: &[&str]) {
        for name in names {
            let arguments = ["delete", "--ignore-not-found", "-f", "-"];
            let kubeconfig = self.plane.kubeconfig();
            let deleted = self
                .plane
                .kubectl_as(kubeconfig, &arguments, &manifest(name));
            deleted.ok();
        }
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if !self.stays && !std::thread::panicking() {
            self.remove();
        }
    }
}

pub(crate) fn get(plane: &Plane, what: &str) -> Option<Value> {
    let ran = plane.kubectl(&["get", what, "--show-managed-fields", "-o", "json"]);
    (ran.code == Some(0)).then(|| serde_json::from_str(&ran.stdout).unwrap())
}

/// Status and reason of the condition `Ready`.
fn ready(plane: &Plane, what: &str) -> Option<(String, String)> {
    let object = get(plane, what)?;
    let conditions = object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
    let text = |name: &str| ready[name].as_str().map(str::to_owned);
    Some((text("status")?, text("reason")?))
}

pub(crate) fn is_ready(plane: &Plane, what: &str, status: &str, reason: &str) -> bool {
    ready(plane, what) == Some((status.to_owned(), reason.to_owned()))
}

#[test]
fn kubectl_sees_and_waits_for_connections_and_what_is_stale_goes() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    plane.fake_node("gw-1", &["10.1.1.0/24"], "10.0.0.5", &[]);
    let shown = Shown::start(&installed.kubeconfig());
    until("the connection is shown", LONG, || {
        is_ready(plane, CONNECTION, "False", "NoHandshake")
    });
    until("the clusters are shown", LONG, || {
        is_ready(plane, "cluster.subsea.dev/west", "False", "NoHandshake")
            && is_ready(plane, "cluster.subsea.dev/east", "True", "GatewayReady")
            && is_ready(plane, "gateway.subsea.dev/gw-1", "True", "Running")
    });
    let first = get(plane, CONNECTION).unwrap();
    assert_eq!(first["metadata"]["labels"]["subsea.dev/node"], "gw-1");
    let node = get(plane, "node/gw-1").unwrap();
    let owner = &first["metadata"]["ownerReferences"][0];
    assert_eq!(owner["uid"], node["metadata"]["uid"]);
    let managers = first["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers
            .iter()
            .all(|m| m["manager"] == "subsea-gateway" && m["operation"] == "Apply")
    );

    // `kubectl wait` is a watch: it sees the transition as it comes.
    let mut waiting = Command::new(plane.kubectl_path());
    waiting.env("KUBECONFIG", plane.kubeconfig()).args([
        "wait",
        "--for=condition=Ready",
        "--timeout=30s",
        CONNECTION,
    ]);
    std::thread::scope(|scope| {
        let waited = scope.spawn(|| run(&mut waiting).ok());
        std::thread::sleep(Duration::from_secs(1));
        shown.connect();
        waited.join().unwrap();
    });
    let table = plane.kubectl(&["get", "connections"]).ok();
    let line: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        line[1..7],
        ["gw-1", "west", "gw-9", "connected", "1.5", "1480"],
        "{table}"
    );
    until("an event of it", LONG, || {
        let events = plane
            .kubectl(&["get", "events", "-n", "default", "-o", "json"])
            .ok();
        let events: Value = serde_json::from_str(&events).unwrap();
        let all = events["items"].as_array().unwrap();
        let about = |e: &Value| {
            e["reason"] == "Connected"
                && e["type"] == "Normal"
                && e["involvedObject"]["name"] == "gw-1.west.gw-9"
                && e["involvedObject"]["uid"] == first["metadata"]["uid"]
        };
        all.iter().any(about)
    });
    let described = plane.kubectl(&["describe", CONNECTION]).ok();
    assert!(described.contains("echo goes both ways"), "{described}");

    shown.change(|status| status["members"] = json!([]));
    until("the stale ones are gone", LONG, || {
        get(plane, CONNECTION).is_none() && get(plane, "cluster.subsea.dev/west").is_none()
    });
    assert_eq!(shown.problem(), "");
    assert!(shown.kubernetes().last_write.is_some());
    shown.end();
    assert!(is_ready(
        plane,
        "gateway.subsea.dev/gw-1",
        "Unknown",
        "Stopped"
    ));
    // What a removed node wrote goes with it.
    plane.kubectl(&["delete", "node", "gw-1"]).ok();
    until("the node's gateway is gone", LONG, || {
        get(plane, "gateway.subsea.dev/gw-1").is_none()
    });
}

#[test]
fn the_first_gateway_removes_what_one_showed_that_is_in_the_fleet_no_more() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    let other = "
apiVersion: subsea.dev/v1alpha1
kind: Gateway
metadata:
  name: gw-2
  labels: {app.kubernetes.io/managed-by: subsea-gateway, app.kubernetes.io/part-of: subsea, subsea.dev/node: gw-2}
spec: {}
";
    plane.apply(other).ok();
    let shown = Shown::start(&installed.kubeconfig());
    shown.change(|status| status["cluster_gateways"] = json!([{"node": "gw-1"}, {"node": "gw-2"}]));
    until("the first one is shown", LONG, || {
        is_ready(plane, "gateway.subsea.dev/gw-1", "True", "Running")
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(get(plane, "gateway.subsea.dev/gw-2").is_some());
    shown.change(|status| status["cluster_gateways"] = json!([{"node": "gw-1"}]));
    until("what the other one showed is gone", LONG, || {
        get(plane, "gateway.subsea.dev/gw-2").is_none()
    });
    shown.end();
}

#[test]
fn what_somebody_changes_or_removes_is_mended() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    let shown = Shown::start(&installed.kubeconfig());
    until("the connection is shown", LONG, || {
        is_ready(plane, CONNECTION, "False", "NoHandshake")
    });
    plane.kubectl(&["delete", CONNECTION]).ok();
    let patch = [
        "--type=merge",
        "-p",
        r#"{"metadata":{"labels":{"subsea.dev/node":null}}}"#,
    ];
    plane
        .kubectl(&[&["patch", "gateway.subsea.dev/gw-1"][..], &patch].concat())
        .ok();
    // A write finds out at once that it is gone; what nothing is written to is looked at every minute.
    shown.connect();
    until("the connection is back", LONG, || {
        is_ready(plane, CONNECTION, "True", "Connected")
    });
    until("the label is back", 2 * LONG, || {
        let gateway = get(plane, "gateway.subsea.dev/gw-1").unwrap();
        gateway["metadata"]["labels"]["subsea.dev/node"] == "gw-1"
    });
    shown.end();
}

#[test]
fn an_api_server_that_is_away_gets_what_changed_meanwhile() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    let relay = Relay::to(plane.address());
    let token = plane.token("subsea", "subsea-gateway", None);
    let shown = Shown::start(&plane.kubeconfig_for(&token, relay.address()));
    until("the connection is shown", LONG, || {
        is_ready(plane, CONNECTION, "False", "NoHandshake")
    });
    relay.refuse(true);
    shown.connect();
    until("the problem is said", LONG, || {
        shown.problem().contains("it is tried again")
    });
    assert!(is_ready(plane, CONNECTION, "False", "NoHandshake"));
    relay.refuse(false);
    until("the change is written", LONG, || {
        is_ready(plane, CONNECTION, "True", "Connected")
    });
    until("nothing to complain of", LONG, || {
        shown.problem().is_empty()
    });
    drop(installed);
    shown.end();
}

#[test]
fn missing_rights_are_said_and_what_may_be_written_is() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::all(plane);
    plane.take_rule("subsea-gateway", 1);
    let shown = Shown::start(&installed.kubeconfig());
    until("the missing right is named", LONG, || {
        let problem = shown.problem();
        problem.contains("Kubernetes: may not patch connections.subsea.dev/status")
            && problem.contains("cannot patch resource")
            && problem.contains("apply manifests/cluster/roles.yaml")
    });
    installed.apply("roles");
    until("all is shown", 2 * LONG, || {
        is_ready(plane, CONNECTION, "False", "NoHandshake") && shown.problem().is_empty()
    });
    // Without events everything else is shown all the same.
    plane
        .kubectl(&[
            "-n",
            "default",
            "delete",
            "rolebinding",
            "subsea-gateway-events",
        ])
        .ok();
    shown.connect();
    until("the state is shown", LONG, || {
        is_ready(plane, CONNECTION, "True", "Connected")
    });
    until("the missing right to tell of it is named", LONG, || {
        let notes = shown.around.notes.read();
        let said = notes.problems.get("kubernetes-events");
        said.is_some_and(|said| said.contains("may not create events"))
    });
    assert_eq!(shown.problem(), "");
    shown.end();
}

#[test]
fn missing_definitions_are_said_until_they_are_there() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::some(plane, &["namespace", "accounts", "roles"]);
    let shown = Shown::start(&installed.kubeconfig());
    until("the missing definitions are named", LONG, || {
        shown
            .problem()
            .contains("the CRDs are missing: apply manifests/cluster/crds.yaml")
    });
    installed.apply("crds");
    until("all is shown", 2 * LONG, || {
        is_ready(plane, CONNECTION, "False", "NoHandshake")
            && is_ready(plane, "gateway.subsea.dev/gw-1", "True", "Running")
    });
    until("nothing to complain of", LONG, || {
        shown.problem().is_empty()
    });
    // And once more, under its feet.
    installed.delete(&["crds"]);
    shown.connect();
    until("they are missed again", 2 * LONG, || {
        shown.problem().contains("the CRDs are missing")
    });
    installed.apply("crds");
    until("all is shown again", 2 * LONG, || {
        is_ready(plane, CONNECTION, "True", "Connected")
    });
    shown.end();
}
