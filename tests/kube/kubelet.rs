//! What runs the pods of a control plane that has no nodes: a scheduler and a kubelet in as few lines as do.
//!
//! A node is a network namespace of `ip netns`. A container is a process in it, with what its pod's specification says and
//! nothing more: command, arguments and environment, volumes at their places in a root of its own that cannot be written to, the
//! token of its service account, and only the capabilities that it asks for. So a daemon that lacks a mount, a right or a
//! capability fails here as it would on a real node. There is no image: the programs are those that Cargo built;
//! of the registry `nowhere`, none can be pulled.

mod launch;
mod probe;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use self::launch::PATH;
use crate::bed::{Plane, Relay};
use crate::daemon::Daemon;

/// How often it looks at the pods.
const LOOK: Duration = Duration::from_millis(200);
/// So many bytes of a log are taken, as by a kubelet.
const WORDS: usize = 2048;
/// How long a container that ended waits before it starts again.
const RESTART: Duration = Duration::from_secs(1);

/// A node: its name in the cluster, its network namespace, its address.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) address: IpAddr,
}

/// Runs the pods of one control plane until it is dropped.
pub(crate) struct Kubelet {
    ended: Arc<AtomicBool>,
    lost: Lost,
    thread: Option<JoinHandle<()>>,
    relays: Vec<Relay>,
}

/// Nodes that are no more.
type Lost = Arc<Mutex<BTreeSet<String>>>;

impl Kubelet {
    /// Starts to run what is there for these nodes. Their disks are in `dir`, and what containers say beside it.
    pub(crate) fn start(plane: &Plane, places: Vec<Place>, dir: &Path) -> Self {
        let relays = places
            .iter()
            .map(|place| Relay::inside(&place.namespace, plane.address()))
            .collect();
        let mut kubelet = Self::start_without_relays(plane, places, dir);
        kubelet.relays = relays;
        kubelet
    }

    /// The same where the API server is reached from the nodes already.
    pub(crate) fn start_without_relays(plane: &Plane, places: Vec<Place>, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let ended = Arc::new(AtomicBool::new(false));
        let lost = Lost::default();
        let mut work = Work {
            lost: Arc::clone(&lost),
            client: plane.client(),
            api: plane.address(),
            places,
            dir: dir.to_owned(),
            containers: BTreeMap::new(),
        };
        let until = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                work.look();
                std::thread::sleep(LOOK);
            }
        });
        Self {
            ended,
            lost,
            thread: Some(thread),
            relays: Vec::new(),
        }
    }

    /// A node is no more, from one moment to the next: nothing runs there, and nobody says so.
    pub(crate) fn lose(&self, node: &str) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.insert(node.to_owned());
    }

    /// The same, and its object stays: the API server has it on record as the controllers of a cluster put it there.
    pub(crate) fn take_down(&self, plane: &Plane, node: &str) {
        self.lose(node);
        let gone = "Kubelet stopped posting node status.";
        let unknown = json!({"status": {"conditions": [
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": gone},
        ]}});
        let patch = |what: &[&str], status: &Value| {
            let more = ["--subresource=status", "--type=strategic", "-p"];
            plane
                .kubectl(&[what, &more, &[&status.to_string()]].concat())
                .ok();
        };
        patch(&["patch", "node", node], &unknown);
        let on = format!("--field-selector=spec.nodeName={node}");
        let names = ["-n", "subsea", "get", "pods", &on, "-o", "name"];
        let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        for pod in plane.kubectl(&names).ok().lines() {
            patch(&["-n", "subsea", "patch", pod], &not_ready);
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; the test says what did not come about.
            drop(thread.join());
        }
        // After the last question to an API server.
        self.relays.clear();
    }
}

struct Work {
    lost: Lost,
    client: Client,
    api: SocketAddr,
    places: Vec<Place>,
    dir: PathBuf,
    /// By the pod's uid.
    containers: BTreeMap<String, Container>,
}

struct Container {
    node: String,
    process: Option<Daemon>,
    /// With what it ended last: exit code, and its last words where the kubelet is to take them from the log.
    last: Option<(i32, String)>,
    log: PathBuf,
    root: PathBuf,
    restarts: u32,
    ended: Option<Instant>,
    /// What was last told.
    told: Value,
    /// The files of its volumes, by their directory.
    files: BTreeMap<PathBuf, BTreeMap<String, Vec<u8>>>,
    stopping: Option<Stopping>,
}

/// A container that is to end.
struct Stopping {
    hook: Option<Daemon>,
    /// When it is killed.
    until: Instant,
    told: bool,
}

impl Work {
    fn look(&mut self) {
        let lost = self.lost.lock();
        let lost = lost.unwrap_or_else(PoisonError::into_inner).clone();
        self.containers.retain(|_, c| !lost.contains(&c.node));
        // While the API server is away, everything goes on as it is.
        let Some(pods) = self.get("/api/v1/pods") else {
            return;
        };
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        for pod in &pods {
            match pod["spec"]["nodeName"].as_str() {
                None => self.schedule(pod),
                Some(node) => {
                    // A scheduler binds pods also to a node that does not answer.
                    let here = |place: &&Place| place.node == node && !lost.contains(node);
                    if let Some(place) = self.places.iter().find(here) {
                        let place = place.clone();
                        self.look_after(pod, &place);
                    }
                }
            }
        }
        let there = |uid: &String| {
            pods.iter()
                .any(|pod| pod["metadata"]["uid"] == uid.as_str())
        };
        // Deleted by force: nobody waits for them.
        self.containers.retain(|uid, _| there(uid));
    }

    /// Binds a pod to the node that its DaemonSet chose, or to the first one.
    fn schedule(&self, pod: &Value) {
        let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
        let terms =
            &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let chosen = terms[0]["matchFields"][0]["values"][0].as_str();
        let Some(place) = self
            .places
            .iter()
            .find(|place| chosen.is_none_or(|node| place.node == node))
        else {
            return;
        };
        let path = format!("{}/binding", path_of(pod));
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": place.node});
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}, "target": target});
        self.send("POST", &path, "application/json", &binding);
    }

    fn look_after(&mut self, pod: &Value, place: &Place) {
        let uid = text(&pod["metadata"]["uid"]);
        if !self.containers.contains_key(&uid) {
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.forget(pod);
                return;
            }
            let name = text(&pod["metadata"]["name"]);
            let container = Container {
                node: place.node.clone(),
                process: None,
                last: None,
                log: self
                    .dir
                    .with_file_name(format!("{}-{name}.log", place.namespace)),
                root: self.dir.join("pods").join(&uid),
                restarts: 0,
                ended: None,
                told: Value::Null,
                files: BTreeMap::new(),
                stopping: None,
            };
            self.containers.insert(uid.clone(), container);
        }
        let mut container = self.containers.remove(&uid).expect("put there above");
        if self.turn(pod, place, &mut container) {
            self.containers.insert(uid, container);
        } else {
            self.forget(pod);
        }
    }

    /// Does what is to be done next; false when the pod has ended for good.
    fn turn(&self, pod: &Value, place: &Place, container: &mut Container) -> bool {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            return !self.stop(pod, place, container);
        }
        if let Some(why) = unpullable(pod) {
            self.tell_waiting(pod, place, container, &why);
            return true;
        }
        let complete = self.write_volumes(pod, container, place);
        let runs = container.process.as_mut().is_some_and(Daemon::is_running);
        if !runs {
            if let Some(mut process) = container.process.take() {
                let code = process.wait(Duration::ZERO).code().unwrap_or(137);
                container.last = Some((code, last_words(pod, code, &process)));
                container.ended = Some(Instant::now());
            }
            if is_over(pod, container) {
                self.tell(pod, place, container, false);
                return true;
            }
            let waits = container.ended.is_some_and(|at| at.elapsed() < RESTART);
            // A Secret that is not there yet is waited for.
            if complete && !waits {
                container.restarts += u32::from(container.last.is_some());
                container.process = Some(self.launch(pod, place, container));
            }
        }
        self.tell(pod, place, container, runs);
        true
    }

    /// Ends a container as a kubelet does: first the hook, then SIGTERM, then SIGKILL. True when it has ended.
    fn stop(&self, pod: &Value, place: &Place, container: &mut Container) -> bool {
        let Some(process) = container.process.as_mut() else {
            return true;
        };
        if !process.is_running() {
            return true;
        }
        let spec = &pod["spec"]["containers"][0];
        let stopping = container.stopping.get_or_insert_with(|| {
            let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64();
            let hook = spec["lifecycle"]["preStop"]["exec"]["command"].as_array();
            let hook = hook.map(|words| {
                let mut command = Command::new("nsenter");
                command.args([
                    "-t",
                    &process.pid().to_string(),
                    "-m",
                    "-n",
                    "-r",
                    "--",
                    "env",
                ]);
                command.args(["-i", PATH]);
                command.args(words.iter().filter_map(Value::as_str));
                Daemon::start(command, &container.log)
            });
            Stopping {
                hook,
                until: Instant::now() + Duration::from_secs(grace.unwrap_or(30)),
                told: false,
            }
        });
        let waits = stopping.hook.as_mut().is_some_and(Daemon::is_running);
        if !waits && !stopping.told {
            stopping.told = true;
            process.signal(Signal::TERM);
        }
        if Instant::now() > stopping.until {
            container.process = None;
            return true;
        }
        // Others must see that it is not ready any more.
        self.tell(pod, place, container, false);
        false
    }

    /// Removes the pod, now that nothing of it runs.
    fn forget(&self, pod: &Value) {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        self.send("DELETE", &path_of(pod), "application/json", &options);
    }

    /// Says how the pod is, when that changed.
    fn tell(&self, pod: &Value, place: &Place, container: &mut Container, runs: bool) {
        let spec = &pod["spec"]["containers"][0];
        let ready = runs && probe::is_ready(spec, place);
        let over = !runs && is_over(pod, container);
        let state = json!([runs, ready, container.restarts, over]);
        if container.told == state {
            return;
        }
        let last = container.last.as_ref().map(|(code, message)| {
            let reason = if *code == 0 { "Completed" } else { "Error" };
            json!({"terminated": {"exitCode": code, "message": message, "reason": reason}})
        });
        let phase = match &container.last {
            Some((0, _)) if over => "Succeeded",
            Some(_) if over => "Failed",
            _ => "Running",
        };
        let is = |yes: bool| if yes { "True" } else { "False" };
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let condition = |kind: &str, yes: bool| json!({"type": kind, "status": is(yes), "lastTransitionTime": now});
        let started = if runs {
            json!({"running": {}})
        } else if over {
            json!(last)
        } else {
            json!({"waiting": {"reason": "CrashLoopBackOff"}})
        };
        let status = json!({"status": {
            "phase": phase,
            "hostIP": place.address, "hostIPs": [{"ip": place.address}],
            "podIP": place.address, "podIPs": [{"ip": place.address}],
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", ready), condition("Ready", ready),
            ],
            "containerStatuses": [{
                "name": spec["name"], "image": spec["image"], "imageID": "", "ready": ready,
                "started": runs, "restartCount": container.restarts, "state": started,
                "lastState": last.filter(|_| !over).unwrap_or(json!({})),
            }],
        }});
        let path = format!("{}/status", path_of(pod));
        let kind = "application/strategic-merge-patch+json";
        if self.send("PATCH", &path, kind, &status).is_some() {
            container.told = state;
        }
    }

    /// Says that the container waits for its image.
    fn tell_waiting(&self, pod: &Value, place: &Place, container: &mut Container, why: &str) {
        let state = json!(why);
        if container.told == state {
            return;
        }
        let spec = &pod["spec"]["containers"][0];
        let is = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let status = json!({"status": {
            "phase": "Pending", "hostIP": place.address,
            "conditions": [is("PodScheduled", "True"), is("ContainersReady", "False"), is("Ready", "False")],
            "containerStatuses": [{
                "name": spec["name"], "image": spec["image"], "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": why}},
            }],
        }});
        let path = format!("{}/status", path_of(pod));
        let kind = "application/strategic-merge-patch+json";
        if self.send("PATCH", &path, kind, &status).is_some() {
            container.told = state;
        }
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.send("GET", path, "application/json", &Value::Null)
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Option<Value> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body)
            .expect("a request");
        let ask = self.client.request::<Value>(request);
        Plane::block_on(async { tokio::time::timeout(Duration::from_secs(5), ask).await })
            .ok()?
            .ok()
    }
}

/// Why an image cannot be pulled: the registry `nowhere` is not there.
fn unpullable(pod: &Value) -> Option<String> {
    let image = text(&pod["spec"]["containers"][0]["image"]);
    let why = format!("Back-off pulling image \"{image}\"");
    image.starts_with("nowhere/").then_some(why)
}

/// Whether a container that ended does not start again.
fn is_over(pod: &Value, container: &Container) -> bool {
    match (pod["spec"]["restartPolicy"].as_str(), &container.last) {
        (Some("Never"), Some(_)) => true,
        (Some("OnFailure"), Some((code, _))) => *code == 0,
        _ => false,
    }
}

/// What a container leaves for whoever looks at its pod.
fn last_words(pod: &Value, code: i32, process: &Daemon) -> String {
    let policy = &pod["spec"]["containers"][0]["terminationMessagePolicy"];
    if code == 0 || policy != "FallbackToLogsOnError" {
        return String::new();
    }
    let log = process.output();
    let start = log.len().saturating_sub(WORDS);
    String::from_utf8_lossy(log.as_bytes().get(start..).unwrap_or_default()).into_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn path_of(pod: &Value) -> String {
    let metadata = &pod["metadata"];
    let [namespace, name] = [&metadata["namespace"], &metadata["name"]].map(text);
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// A field of a pod, as `fieldRef` names it.
fn field(pod: &Value, path: &str, place: Option<&Place>) -> String {
    match (path, place) {
        ("metadata.name", _) => text(&pod["metadata"]["name"]),
        ("metadata.namespace", _) => text(&pod["metadata"]["namespace"]),
        ("metadata.uid", _) => text(&pod["metadata"]["uid"]),
        ("spec.nodeName", _) => text(&pod["spec"]["nodeName"]),
        ("spec.serviceAccountName", _) => text(&pod["spec"]["serviceAccountName"]),
        ("status.hostIP" | "status.podIP", Some(place)) => place.address.to_string(),
        _ => panic!("this kubelet knows no field {path}"),
    }
}
