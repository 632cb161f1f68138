//! One control plane.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::keys::{Kind, SigningKey};
use super::launch::{self, Ports};
use super::process::Process;
use super::scratch::SCRATCH;
use super::servers::{Plan, READY, TAIL, address, answers};
use super::{LONG, programs};
use crate::command::{Ran, run_with};

/// The group of users that may do everything.
const MASTERS: &str = "system:masters";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// etcd, kube-apiserver and kube-controller-manager. Dropping it ends them.
pub(crate) struct Plane {
    name: &'static str,
    programs: PathBuf,
    dir: PathBuf,
    ports: Ports,
    services: [String; 2],
    kind: Kind,
    /// Those that the API server accepts; it signs with the last one.
    keys: Vec<SigningKey>,
    admin: PathBuf,
    client: Client,
    // Dropped in this order.
    controllers: Process,
    api: Option<Process>,
    paused: bool,
    etcd: Process,
}

impl Plane {
    /// Starts one that is ready to use. No other of this program that lives has its `name`; `number`, 1 to 9, gives its Services the
    /// addresses `10.9N.0.0/20` and `fd00:2:N::/108`. An even one signs tokens of service accounts with ECDSA.
    pub(crate) fn start(name: &'static str, number: u8) -> Self {
        let programs = programs::directory();
        let dir = SCRATCH.join(name);
        // Of one that was dropped.
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
        std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let services = [
            format!("10.9{number}.0.0/20"),
            format!("fd00:2:{number}::/108"),
        ];
        let kind = if number.is_multiple_of(2) {
            Kind::Ecdsa
        } else {
            Kind::Rsa
        };
        let keys = vec![SigningKey::make(kind, &dir, "service-accounts-0")];
        let token = random();
        write(
            &dir.join("tokens.csv"),
            &format!("{token},admin,admin,{MASTERS}\n"),
        );
        let admin = dir.join("admin.kubeconfig");
        let plan = Plan {
            name,
            programs: &programs,
            dir: &dir,
            services: &services,
            keys: &keys,
        };
        let (ports, etcd, api, client) = plan.start_servers(|ports| {
            write(&admin, &kubeconfig(name, &dir, address(ports), &token));
            client(&admin)
        });
        let controllers = plan.start_controllers(&admin);
        let mut plane = Self {
            name,
            programs,
            dir,
            ports,
            services,
            kind,
            keys,
            admin,
            client,
            controllers,
            api: Some(api),
            paused: false,
            etcd,
        };
        if let Err(reason) = plane.wait_ready() {
            panic!("control plane {name}: {reason}\n{}", plane.log_tails());
        }
        plane
    }

    /// Its name, which is also that of the cluster, the user and the context in kubeconfigs.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The ranges of ClusterIPs, IPv4 and IPv6.
    pub(crate) fn service_cidrs(&self) -> &[String; 2] {
        &self.services
    }

    /// The `iss` of service account tokens.
    pub(crate) fn issuer() -> &'static str {
        launch::ISSUER
    }

    /// Where the API server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        address(self.ports)
    }

    /// An administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// Writes a kubeconfig for a bearer token. `server` is usually [`Self::address`], or a [`super::Relay`] to it.
    pub(crate) fn kubeconfig_for(&self, token: &str, server: SocketAddr) -> PathBuf {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("user-{number}.kubeconfig"));
        write(&path, &kubeconfig(self.name, &self.dir, server, token));
        path
    }

    /// An administrator's client, to be used within [`Self::block_on`] or a runtime of the test's own.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client by a kubeconfig.
    pub(crate) fn client_of(kubeconfig: &Path) -> Client {
        client(kubeconfig)
    }

    /// Runs asynchronous code of a test that is not.
    pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
        RUNTIME.block_on(future)
    }

    /// The kubectl of this version.
    pub(crate) fn kubectl_path(&self) -> PathBuf {
        self.programs.join("kubectl")
    }

    /// Runs kubectl as administrator.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Ran {
        self.kubectl_as(&self.admin, arguments, "")
    }

    /// Runs kubectl with another kubeconfig, and with `input` for `-f -`.
    pub(crate) fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Ran {
        let mut command = Command::new(self.kubectl_path());
        command
            .env("KUBECONFIG", kubeconfig)
            // What it caches of the API, and preferences.
            .env("HOME", &self.dir)
            .arg("--request-timeout=30s")
            .args(arguments);
        run_with(&mut command, input)
    }

    /// Creates or changes what the YAML or JSON says, by server-side apply.
    pub(crate) fn apply(&self, manifest: &str) -> Ran {
        let arguments = ["apply", "--server-side", "--field-manager=test", "-f", "-"];
        self.kubectl_as(&self.admin, &arguments, manifest)
    }

    /// Ends the API server as a service manager does.
    pub(crate) fn stop_api_server(&mut self) {
        self.resume_api_server();
        if let Some(api) = self.api.take() {
            api.stop(Duration::from_secs(10));
        }
    }

    /// Starts it again, at the same address with the same data, and waits until it is ready.
    pub(crate) fn start_api_server(&mut self) {
        if let Err(reason) = self.heal() {
            panic!("control plane {}: {reason}", self.name);
        }
    }

    /// Both.
    pub(crate) fn restart_api_server(&mut self) {
        self.stop_api_server();
        self.start_api_server();
    }

    /// It stops in the middle of what it does: connections stay, and nobody answers.
    pub(crate) fn pause_api_server(&mut self) {
        if let Some(api) = &self.api {
            api.signal(Signal::STOP);
            self.paused = true;
        }
    }

    /// It goes on.
    pub(crate) fn resume_api_server(&mut self) {
        if let (true, Some(api)) = (self.paused, &self.api) {
            api.signal(Signal::CONT);
        }
        self.paused = false;
    }

    /// The API server signs with a new key from now on, and accepts the old ones too.
    pub(crate) fn rotate_service_account_key(&mut self) {
        let name = format!("service-accounts-{}", self.keys.len());
        self.keys
            .push(SigningKey::make(self.kind, &self.dir, &name));
        self.restart_api_server();
    }

    /// etcd forgets what was before now, and the API server restarts with an empty cache of changes: a watch from
    /// an older resource version gets `410 Gone`.
    pub(crate) fn forget_history(&mut self) {
        self.stop_api_server();
        let status = self.ask_etcd("/v3/maintenance/status", &json!({}));
        let revision = &status["header"]["revision"];
        self.ask_etcd(
            "/v3/kv/compaction",
            &json!({"revision": revision, "physical": true}),
        );
        self.start_api_server();
    }

    /// What service accounts have asked the API server so far: its audit events, which say who, what, and whether it was allowed.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let path = launch::audit_log(&self.dir);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let event = |line: &str| serde_json::from_str(line).expect("an audit event");
        text.lines().map(event).collect()
    }

    /// The ends of the logs of all three.
    pub(crate) fn log_tails(&self) -> String {
        let servers = [Some(&self.etcd), self.api.as_ref(), Some(&self.controllers)];
        servers
            .map(|s| s.map_or_else(String::new, |s| s.tail(TAIL)))
            .join("\n")
    }

    /// Makes it run again, whatever was stopped.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.resume_api_server();
        if !self.api.as_mut().is_some_and(Process::is_running) {
            let plan = Plan {
                name: self.name,
                programs: &self.programs,
                dir: &self.dir,
                services: &self.services,
                keys: &self.keys,
            };
            self.api = Some(plan.start_api_server(self.ports));
            // As in clusters, where they lose their leases. Those that stayed would wait half a minute before they
            // look again.
            self.controllers = plan.start_controllers(&self.admin);
        }
        self.wait_ready()
    }

    /// Until the API server says so, and the controllers have done their first work.
    fn wait_ready(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let made_first = "/api/v1/namespaces/default/serviceaccounts/default";
            if answers(&self.client, READY) && answers(&self.client, made_first) {
                return Ok(());
            }
            for (what, server) in [
                ("etcd", Some(&mut self.etcd)),
                ("kube-apiserver", self.api.as_mut()),
                ("kube-controller-manager", Some(&mut self.controllers)),
            ] {
                if let Some(server) = server
                    && !server.is_running()
                {
                    return Err(format!("{what} ended\n{}", server.tail(TAIL)));
                }
            }
            if start.elapsed() > LONG {
                return Err(format!("not ready within {LONG:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// etcd's gRPC as JSON over HTTP.
    fn ask_etcd(&self, path: &str, body: &Value) -> Value {
        let (port, body) = (self.ports.etcd, body.to_string());
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            write!(
                stream,
                "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().unwrap_or_else(|e| panic!("etcd of {}: {path}: {e}", self.name));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.contains(" 200 "), "etcd: {path}: {answer}");
        serde_json::from_str(body).unwrap_or_else(|e| panic!("etcd: {path}: {e}: {answer}"))
    }
}

fn kubeconfig(name: &str, dir: &Path, server: SocketAddr, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": dir.join("tls/apiserver.crt"),
        }}],
        "users": [{"name": name, "user": {"token": token}}],
    })
    .to_string()
}

fn client(kubeconfig: &Path) -> Client {
    let read = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    Plane::block_on(async {
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(read, &options)
            .await
            .expect("a configuration");
        Client::try_from(config).expect("a client")
    })
}

fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A password of 128 bits.
fn random() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("random bytes");
    format!("{:032x}", u128::from_ne_bytes(bytes))
}
