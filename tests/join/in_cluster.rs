//! `subsea gateway --kubernetes` with the files that a pod has, against a real broker. The API server is away all the time.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fleet::{Fleet, in_namespace, subsea};
use crate::service_account::Cluster;

/// The node's, where it is asked how it is.
const ADDRESS: &str = "192.0.2.1";
const PORT: u16 = 4853;

/// Settings are looked at every 5 s, and a slow machine takes its time.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        let waited = start.elapsed();
        assert!(waited < Duration::from_mins(1), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A pod's daemon.
struct Pod {
    child: Child,
    dir: PathBuf,
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Pod {
    fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        Self::start_as("gw-1", "state", cluster, flags)
    }

    fn start_as(node: &str, state: &str, cluster: &Cluster, flags: &[&str]) -> Self {
        let root = cluster.fleet.dir.path();
        let dir = root.join(state);
        let at = |name: &str| root.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_subsea"))
            .args(["gateway", "--kubernetes", "--driver", "userspace"])
            .arg("--state-dir")
            .arg(&dir)
            .arg("--enrolment-dir")
            .arg(&cluster.secret)
            .arg("--config-dir")
            .arg(at("config"))
            .arg("--token-file")
            .arg(at("token"))
            .args(flags)
            .envs([("NODE_NAME", node), ("NODE_IP", ADDRESS)])
            .env("POD_NAMESPACE", "subsea")
            .env("KUBECONFIG", at("none"))
            .env("SUBSEA_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("subsea starts");
        Self { child, dir }
    }

    /// Code and body of an answer.
    fn ask(path: &str) -> Option<(u16, String)> {
        Self::ask_at(PORT, path)
    }

    fn ask_at(port: u16, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((ADDRESS, port)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    }

    fn is_ready() -> bool {
        Self::ask("/readyz").is_some_and(|(code, _)| code == 200)
    }

    fn status(&self) -> Option<Value> {
        let line = format!("status --state-dir {} -o json", self.dir.display());
        let ran = subsea(&line);
        serde_json::from_str(&ran.out).ok()
    }

    fn endpoint(&self) -> Option<String> {
        Some(self.status()?["endpoint"].as_str()?.to_owned())
    }

    fn has_problem(&self, text: &str) -> bool {
        let status = self.status().unwrap_or_default();
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems
            .iter()
            .any(|problem| problem.as_str().is_some_and(|p| p.contains(text)))
    }
}

fn configure(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("config")).expect("made");
    let new = dir.join("config/..new");
    fs::write(&new, text).expect("written");
    fs::rename(new, dir.join("config/config.yaml")).expect("in its place");
}

fn cluster() -> Cluster {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::east(Fleet::start()));
    // Which writes it for the pod.
    cluster.token("subsea-gateway", "gw-1");
    cluster
}

#[test]
fn a_gateway_waits_for_its_identity_and_follows_what_it_is_told() {
    let name = "in_cluster::a_gateway_waits_for_its_identity_and_follows_what_it_is_told";
    if !in_namespace(
        name,
        "ip link add u0 type veth peer name u1; ip address add 192.0.2.1/24 dev u0; ip link set u0 up",
    ) {
        return;
    }
    let cluster = cluster();
    let root = cluster.fleet.dir.path().to_owned();
    fs::remove_dir_all(&cluster.secret).expect("unmounted");
    let mut pod = Pod::start(&cluster, &[]);
    until("it says what it waits for", || {
        Pod::ask("/readyz").is_some_and(|(code, body)| {
            code == 503 && body.contains("no identity yet") && body.contains("broker.yaml")
        })
    });
    assert_eq!(Pod::ask("/healthz").map(|(code, _)| code), Some(200));
    assert!(
        Pod::ask("/metrics")
            .expect("metrics")
            .1
            .contains("subsea_up 0.0")
    );

    cluster.mount();
    until("it is ready", Pod::is_ready);
    until("it is registered at the node's address", || {
        pod.endpoint().as_deref() == Some("192.0.2.1:51820")
    });
    let status = pod.status().expect("a status");
    assert_eq!(
        (&status["cluster"], &status["node"]),
        (&"east".into(), &"gw-1".into())
    );
    let problem = status["kubernetes"]["problem"].as_str().expect("a problem");
    assert!(problem.starts_with("Kubernetes: "), "{problem}");
    let shown = subsea(&format!("status --state-dir {}", pod.dir.display()))
        .exits(0)
        .out;
    assert!(shown.contains("Kubernetes: "), "{shown}");
    assert!(
        Pod::ask("/metrics")
            .expect("metrics")
            .1
            .contains("subsea_kubernetes_writable 0.0")
    );

    configure(&root, "gateway: {listenPort: 51900}\n");
    until("it listens elsewhere", || {
        pod.endpoint().as_deref() == Some("192.0.2.1:51900") && Pod::is_ready()
    });
    configure(&root, "gateway: {listnPort: 51901}\n");
    until("the wrong key is named", || pod.has_problem("listnPort"));
    assert_eq!(pod.endpoint().as_deref(), Some("192.0.2.1:51900"));

    // A port that somebody else has: it goes on with what worked.
    let taken = UdpSocket::bind("0.0.0.0:51902").expect("a port");
    configure(&root, "gateway: {listenPort: 51902}\n");
    until("it says that this does not work", || {
        pod.has_problem("it goes on as before") && !pod.has_problem("listnPort")
    });
    until("it runs as before", || {
        pod.endpoint().as_deref() == Some("192.0.2.1:51900") && Pod::is_ready()
    });
    drop(taken);
    configure(&root, "gateway: {listenPort: 51903}\nlogLevel: warn\n");
    until("it listens elsewhere once more", || {
        pod.endpoint().as_deref() == Some("192.0.2.1:51903") && !pod.has_problem("as before")
    });
    // All of it in one process.
    assert_eq!(pod.status().expect("a status")["pid"], pod.child.id());

    let pid = i32::try_from(pod.child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), Signal::TERM).expect("it runs");
    assert!(pod.child.wait().expect("its end").success());

    // A member needs the Secret no more, nor a broker.
    fs::remove_dir_all(&cluster.secret).expect("unmounted");
    configure(&root, "gateway: {nonsense: 1}\n");
    let mut cluster = cluster;
    cluster.fleet.down();
    let pod = Pod::start(&cluster, &[]);
    until("it is ready by itself", Pod::is_ready);
    assert!(pod.has_problem("nonsense"));
    let status = pod.status().expect("a status");
    assert_eq!(status["broker"]["state"], "away");
    until("the last good settings hold", || {
        let sockets = Command::new("ss").args(["-Hlun"]).output().expect("ss");
        String::from_utf8_lossy(&sockets.stdout).contains(":51903")
    });
}

#[test]
fn without_the_secret_members_go_on_and_a_new_node_waits_for_it() {
    let name = "in_cluster::without_the_secret_members_go_on_and_a_new_node_waits_for_it";
    if !in_namespace(
        name,
        "ip link add u0 type veth peer name u1; ip address add 192.0.2.1/24 dev u0; ip link set u0 up",
    ) {
        return;
    }
    let cluster = cluster();
    let pod = Pod::start(&cluster, &[]);
    let is_connected = |pod: &Pod| {
        pod.status()
            .is_some_and(|s| s["broker"]["state"] == "connected" && s["endpoint"].is_string())
    };
    until("it is ready and registered", || {
        Pod::is_ready() && is_connected(&pod)
    });
    let before = pod.status().expect("a status");

    // As a kubelet does with an optional volume whose Secret is deleted.
    for file in fs::read_dir(&cluster.secret).expect("it is mounted") {
        let path = file.expect("a file").path();
        fs::remove_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    cluster.token("subsea-gateway", "gw-2");
    let other = ["--http-listen", "192.0.2.1:4863", "--listen-port", "51830"];
    let devices = [
        "--device",
        "other0",
        "--table",
        "683",
        "--rule-pref",
        "683",
        "--road-table",
        "760",
    ];
    let flags = [&other[..], &devices[..]].concat();
    let new = Pod::start_as("gw-2", "other", &cluster, &flags);
    let waits = || {
        Pod::ask_at(4863, "/readyz").is_some_and(|(code, body)| {
            code == 503 && body.contains("no identity yet") && body.contains("broker.yaml")
        })
    };
    until("the new node says what it waits for", waits);
    // Twice as long as anybody takes to look at the Secret.
    std::thread::sleep(Duration::from_secs(11));
    assert!(waits());
    assert!(Pod::is_ready() && is_connected(&pod));
    let after = pod.status().expect("a status");
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(after["endpoint"], before["endpoint"]);
    // It is reckoned from how long ago that was.
    let started = |status: &Value| status["started"].as_u64().expect("a time");
    assert!(started(&after).abs_diff(started(&before)) < 1_000);
    assert!(!pod.has_problem("subsea-enrolment"));

    cluster.mount();
    until("the new node is ready and registered", || {
        Pod::ask_at(4863, "/readyz").is_some_and(|(code, _)| code == 200) && is_connected(&new)
    });
    assert!(Pod::is_ready() && is_connected(&pod));
}

#[test]
fn a_gateway_that_was_forgotten_enrols_again_while_it_runs() {
    let name = "in_cluster::a_gateway_that_was_forgotten_enrols_again_while_it_runs";
    if !in_namespace(
        name,
        "ip link add u0 type veth peer name u1; ip address add 192.0.2.1/24 dev u0; ip link set u0 up",
    ) {
        return;
    }
    let cluster = cluster();
    let mut pod = Pod::start(&cluster, &["--listen-port", "51850"]);
    let registered = || {
        let shown = cluster
            .fleet
            .admin("cluster show east -o json")
            .exits(0)
            .json();
        let at = &shown["gateways"]["gw-1"]["listeners"][0]["candidates"][0];
        at.as_str().map(str::to_owned)
    };
    until("it is registered", || {
        registered().as_deref() == Some("192.0.2.1:51850")
    });
    // A flag goes before the settings.
    configure(cluster.fleet.dir.path(), "gateway: {listenPort: 51900}\n");
    let enrolments = || {
        let log = cluster.fleet.admin("audit list -o json").exits(0).json();
        let entries = log.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .filter(|e| e["action"] == "node.enrol")
            .count()
    };
    assert_eq!(enrolments(), 1);
    cluster
        .fleet
        .admin("gateway forget --cluster east --name gw-1")
        .exits(0);
    until("it enrols again", || enrolments() == 2);
    until("it is registered again", || {
        registered().as_deref() == Some("192.0.2.1:51850")
    });
    until("the broker is with it", || {
        let status = pod.status().unwrap_or_default();
        status["broker"]["state"] == "connected" && !pod.has_problem("enrolled again")
    });
    assert_eq!(pod.status().expect("a status")["pid"], pod.child.id());
    assert!(pod.child.try_wait().expect("its state").is_none());
}

/// Puts a certificate for the key of the state directory in its place, which the broker would renew only for `left` more. It is
/// not the broker's own, so that it is refused from the start.
fn age(dir: &Path, left: Duration) {
    let key = fs::read_to_string(dir.join("tls.key")).expect("a key");
    let key = rcgen::KeyPair::from_pem(&key).expect("a key");
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let month = Duration::from_hours(30 * 24);
    let end = rcgen::date_time_ymd(1970, 1, 1) + now.expect("after 1970") + left - month;
    let mut params = rcgen::CertificateParams::default();
    params.not_before = end - Duration::from_hours(24);
    params.not_after = end;
    let certificate = params.self_signed(&key).expect("a certificate");
    fs::write(dir.join("tls.crt"), certificate.pem()).expect("written");
}

#[test]
fn a_gateway_whose_certificate_can_be_renewed_no_more_enrols_again_while_it_runs() {
    let name =
        "in_cluster::a_gateway_whose_certificate_can_be_renewed_no_more_enrols_again_while_it_runs";
    if !in_namespace(
        name,
        "ip link add u0 type veth peer name u1; ip address add 192.0.2.1/24 dev u0; ip link set u0 up",
    ) {
        return;
    }
    let cluster = cluster();
    let dir = cluster.fleet.dir.path().join("state");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let enrolled = runtime.block_on(cluster.enrol("gw-1", &dir));
    enrolled.expect("enrolled");
    age(&dir, Duration::from_secs(20));
    let pod = Pod::start(&cluster, &[]);
    let broker = || pod.status().unwrap_or_default()["broker"].clone();
    let reissued = || {
        let log = cluster.fleet.admin("audit list -o json").exits(0).json();
        let entries = log.as_array().cloned().unwrap_or_default();
        let reissues = entries.iter().map(|e| e["action"] == "certificate.reissue");
        reissues.filter(|is| *is).count()
    };
    until("it runs, and the broker refuses it", || {
        let broker = broker();
        broker["state"] == "away" && broker["last_error"].is_string()
    });
    assert_eq!(reissued(), 0, "it was renewable when it started");
    until("it enrols again", || reissued() == 1);
    until("the broker is with it", || {
        broker()["state"] == "connected" && !pod.has_problem("enrolled again")
    });
    assert_eq!(pod.status().expect("a status")["pid"], pod.child.id());
}
