//! An "internet", a broker on it, and clusters around it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::namespace::{Namespace, Ran, run};
use crate::site::{Family, Site};
use crate::wait::{LONG, Permit, until};

/// Where the broker listens.
pub(crate) const BROKER: &str = "192.0.2.10:7443";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Everything of one test. Goes away with the test, also when it fails.
pub(crate) struct World {
    pub(crate) sites: BTreeMap<String, Site>,
    pub(crate) broker: Broker,
    /// The underlay: a bridge `br0`, which is everybody's default gateway and leads nowhere.
    pub(crate) internet: Namespace,
    prefix: String,
    dir: tempfile::TempDir,
    _permit: Permit,
}

impl World {
    /// An internet and a broker that does not run yet.
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the namespace tests need root"
        );
        let permit = Permit::take();
        let owner =
            std::env::var("SUBSEA_NETNS_OWNER").unwrap_or_else(|_| std::process::id().to_string());
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("subsea-{owner}-{counter}");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let internet = Namespace::create(format!("{prefix}-internet"));
        internet.ip("link add br0 type bridge");
        internet.ip("address add 192.0.2.254/24 dev br0");
        internet.ip("address add 2001:db8::fe/64 dev br0 nodad");
        internet.ip("link set br0 up");
        let space = Namespace::create(format!("{prefix}-broker"));
        connect(&internet, &space, "192.0.2.10/24", "2001:db8::10/64");
        let broker = Broker {
            space,
            dir: dir.path().join("broker"),
            flags: String::new(),
            logs: dir.path().to_owned(),
            process: None,
        };
        Self {
            sites: BTreeMap::new(),
            broker,
            internet,
            prefix,
            dir,
            _permit: permit,
        }
    }

    /// A fleet of clusters that have joined and are connected.
    pub(crate) fn fleet(names: &[&str]) -> Self {
        let mut world = Self::new();
        world.broker.start();
        for name in names {
            world.add(name, Family::V4).enrol();
        }
        world.wait_connected();
        world
    }

    /// Builds a cluster that has not joined: a gateway on the internet and a pod behind it.
    pub(crate) fn add(&mut self, name: &str, family: Family) -> Entry<'_> {
        let index = u8::try_from(self.sites.len() + 1).expect("few clusters");
        let site = Site::build(
            &self.prefix,
            self.dir.path(),
            &self.internet,
            name,
            index,
            family,
        );
        self.sites.insert(name.to_owned(), site);
        Entry {
            world: self,
            name: name.to_owned(),
        }
    }

    /// A further namespace on the internet, for example an attacker's.
    pub(crate) fn stranger(&self, name: &str, address: &str) -> Namespace {
        let space = Namespace::create(format!("{}-{name}", self.prefix));
        connect(&self.internet, &space, &format!("{address}/24"), "");
        space
    }

    /// What the names of all its namespaces begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The cluster of that name.
    pub(crate) fn site(&self, name: &str) -> &Site {
        &self.sites[name]
    }

    /// The cluster of that name, to start and stop things in it.
    pub(crate) fn site_mut(&mut self, name: &str) -> &mut Site {
        self.sites.get_mut(name).expect("such a cluster")
    }

    /// A place for files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until every cluster whose gateway runs is connected with every other.
    pub(crate) fn wait_connected(&self) {
        for site in self.sites.values().filter(|s| s.gateway.is_some()) {
            site.subsea("status --wait 30s").ok();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for site in self.sites.values() {
            eprintln!("==== {}", site.subsea("status"));
        }
        let files = std::fs::read_dir(self.dir.path())
            .into_iter()
            .flatten()
            .flatten();
        for path in files.map(|f| f.path()) {
            if path.extension().is_some_and(|e| e == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(120);
                eprintln!("==== {}\n{}", path.display(), lines[from..].join("\n"));
            }
        }
    }
}

/// A cluster that was just added.
pub(crate) struct Entry<'a> {
    world: &'a mut World,
    name: String,
}

impl Entry<'_> {
    /// Joins, and gives what that said.
    pub(crate) fn join(self) -> String {
        self.world.join(&self.name).said()
    }

    /// Joins and starts the gateway.
    pub(crate) fn enrol(self) {
        let Self { world, name } = self;
        world.join(&name).ok();
        world.site_mut(&name).start_gateway("");
    }
}

impl World {
    /// Makes a token at the broker and joins with it.
    pub(crate) fn join(&self, name: &str) -> Ran {
        let token = self.broker.token(name);
        let site = self.site(name);
        site.subsea(&format!("join {} {}", token.display(), site.join_flags()))
    }
}

/// The broker: its place, its data and, while it runs, its process.
pub(crate) struct Broker {
    pub(crate) space: Namespace,
    pub(crate) dir: PathBuf,
    /// Further flags of `serve`.
    pub(crate) flags: String,
    logs: PathBuf,
    process: Option<Daemon>,
}

impl Broker {
    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.spawn();
        let address: SocketAddr = BROKER.parse().expect("an address");
        until("the broker listens", LONG, || {
            let process = self.process.as_mut().expect("it was started");
            assert!(
                process.is_running(),
                "the broker ended:\n{}",
                process.output()
            );
            self.space
                .inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
                && self.dir.join("admin.yaml").exists()
        });
    }

    /// Starts it.
    pub(crate) fn spawn(&mut self) {
        let mut command = self.space.command(&broker_program());
        command.arg("serve").arg("--data-dir").arg(&self.dir);
        command.args(["--listen", BROKER, "--fleet", "harbour"]);
        command.args(self.flags.split_whitespace());
        self.process = Some(Daemon::start(command, &self.logs.join("broker.log")));
    }

    /// Stops it as a service manager does.
    pub(crate) fn stop(&mut self) {
        let process = self.process.take().expect("the broker runs");
        let status = process.stop();
        assert!(status.success(), "the broker ended with {status}");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process
            .as_ref()
            .expect("the broker runs")
            .signal(signal);
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("the broker runs").kill();
    }

    /// What it said.
    pub(crate) fn output(&self) -> String {
        self.process
            .as_ref()
            .map(Daemon::output)
            .unwrap_or_default()
    }

    /// Whether its process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Daemon::is_running)
    }

    /// An admin verb.
    pub(crate) fn admin(&self, line: &str) -> Ran {
        let program = broker_program();
        let admin = self.dir.join("admin.yaml");
        self.space
            .run(&format!("{program} --admin {} {line}", admin.display()))
    }

    /// An admin verb with JSON for an answer.
    pub(crate) fn admin_json(&self, line: &str) -> Value {
        let text = self.admin(&format!("{line} -o json")).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{line}`: {e}: {text}"))
    }

    /// A join file for a cluster.
    pub(crate) fn token(&self, cluster: &str) -> PathBuf {
        static TOKENS: AtomicU32 = AtomicU32::new(0);
        let number = TOKENS.fetch_add(1, Ordering::Relaxed);
        let file = self.logs.join(format!("join-{cluster}-{number}.yaml"));
        self.admin(&format!(
            "token create --cluster {cluster} -o {}",
            file.display()
        ))
        .ok();
        file
    }

    /// The ids of the members.
    pub(crate) fn members(&self) -> Vec<String> {
        let clusters = self.admin_json("cluster list");
        let ids = clusters.as_array().expect("a list").iter();
        ids.map(|c| c["id"].as_str().expect("an id").to_owned())
            .collect()
    }
}

/// The broker's program, which Cargo builds beside ours but only names to its own package's tests.
pub(crate) fn broker_program() -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_subsea")).with_file_name("subsea-broker");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace` first",
        path.display()
    );
    path.display().to_string()
}

/// Puts a namespace on the internet as `u0`, with its default routes there.
pub(crate) fn connect(internet: &Namespace, space: &Namespace, v4: &str, v6: &str) {
    // The port's name needs only to be unique on the bridge.
    let port = format!("p{}", COUNTER.fetch_add(1, Ordering::Relaxed));
    let mut link = Command::new("ip");
    link.args(["link", "add", &port, "netns", internet.name()]);
    link.args(["type", "veth", "peer", "name", "u0", "netns", space.name()]);
    run(&mut link).ok();
    internet.ip(&format!("link set {port} master br0 up"));
    space.ip(&format!("address add {v4} dev u0"));
    if !v6.is_empty() {
        space.ip(&format!("address add {v6} dev u0 nodad"));
    }
    space.ip("link set u0 up");
    space.ip("route add default via 192.0.2.254");
    if !v6.is_empty() {
        space.ip("-6 route add default via 2001:db8::fe");
    }
}
