//! A real `subsea-broker` on the loopback, and real `subsea` beside it.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::ports::free_port;

static BUILT: Once = Once::new();

/// The broker's binary. For a test, Cargo builds only the binaries of the test's own package, so it is asked for this one
/// when it is missing or older than its sources.
fn broker_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_subsea")).with_file_name("subsea-broker");
    BUILT.call_once(|| {
        let built = path.metadata().and_then(|m| m.modified()).ok();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = [
            newest(&root.join("broker/src")),
            newest(&root.join("api/src")),
        ];
        if built.is_none() || sources.into_iter().any(|s| s > built) {
            build(root);
        }
    });
    path
}

/// When anything under `dir` changed last.
fn newest(dir: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(dir)
        .expect("listed")
        .map(|e| e.expect("an entry").path());
    entries
        .filter_map(|path| {
            if path.is_dir() {
                newest(&path)
            } else {
                path.metadata().ok()?.modified().ok()
            }
        })
        .max()
}

fn build(root: &Path) {
    let mut build = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    build
        .args([
            "build",
            "-q",
            "-p",
            "subsea-broker",
            "--bin",
            "subsea-broker",
        ])
        .current_dir(root);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // What Cargo tells this test about itself would make build scripts of dependencies run again, now and next time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|p| text.starts_with(p))
        {
            build.env_remove(name);
        }
    }
    assert!(
        build.status().expect("cargo starts").success(),
        "subsea-broker does not build"
    );
}

/// How a program ended and what it said.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Checks the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.out,
            self.err
        );
        self
    }

    /// Checks the exit code and that standard error says `what`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, what: &str) -> Self {
        let ran = self.exits(code);
        assert!(ran.err.contains(what), "`{what}` is not in:\n{}", ran.err);
        ran
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("JSON")
    }
}

/// Runs `subsea` with arguments between blanks.
pub(crate) fn subsea(line: &str) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_subsea"))
        .args(line.split_whitespace())
        .env("NO_COLOR", "1")
        .env_remove("SUBSEA_LOG")
        .output()
        .expect("subsea starts");
    Ran::new(output)
}

/// Runs the test `name` anew in a network namespace that `script` prepares; true in there. The namespace goes with
/// its last process.
pub(crate) fn in_namespace(name: &str, script: &str) -> bool {
    if std::env::var_os("SUBSEA_TEST_IN_NAMESPACE").is_some() {
        return true;
    }
    // Built out here: in there is no network to ask for anything.
    broker_binary();
    let status = Command::new("unshare")
        .args(["--net", "sh", "-c"])
        .arg(format!(
            "set -e; ip link set lo up; {script}\nexec \"$0\" --exact {name} --nocapture"
        ))
        .arg(std::env::current_exe().expect("this test"))
        .env("SUBSEA_TEST_IN_NAMESPACE", "1")
        .status()
        .expect("unshare starts");
    assert!(status.success(), "in the namespace (needs root)");
    false
}

/// A broker of its own for each test; ends with the test.
pub(crate) struct Fleet {
    process: Option<Child>,
    pub(crate) dir: tempfile::TempDir,
    data: PathBuf,
    flags: Vec<String>,
    port: u16,
}

impl Fleet {
    /// Starts a broker of the fleet `harbour`.
    pub(crate) fn start() -> Self {
        Self::with(&["--fleet", "harbour"])
    }

    /// Starts a broker with flags.
    pub(crate) fn with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("broker");
        let flags = flags.iter().map(|f| (*f).to_owned()).collect();
        let mut fleet = Self {
            process: None,
            dir,
            data,
            flags,
            port: free_port(),
        };
        fleet.up();
        fleet
    }

    /// Starts the process (again, on the same port) and waits until it listens.
    pub(crate) fn up(&mut self) {
        assert!(self.process.is_none(), "the broker runs");
        let file = self.data.join("listen");
        if file.exists() {
            fs::remove_file(&file).expect("removed");
        }
        let log = fs::File::create(self.dir.path().join("broker.log")).expect("a log");
        let child = Command::new(broker_binary())
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port))
            .args(&self.flags)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("subsea-broker starts");
        self.process = Some(child);
        let start = Instant::now();
        while !(file.exists() && self.data.join("admin.yaml").exists()) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no broker:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("a broker").id();
        let status = Command::new("kill")
            .args(["-s", name, &pid.to_string()])
            .status()
            .expect("kill starts");
        assert!(status.success(), "SIG{name} to the broker");
    }

    fn log(&self) -> String {
        let mut text = String::new();
        let file = fs::File::open(self.dir.path().join("broker.log"));
        // For a message only.
        drop(file.map(|mut file| file.read_to_string(&mut text)));
        text
    }

    /// Runs an admin verb with arguments between blanks.
    pub(crate) fn admin(&self, line: &str) -> Ran {
        let output = Command::new(broker_binary())
            .args(line.split_whitespace())
            .arg("--admin")
            .arg(self.data.join("admin.yaml"))
            .env("NO_COLOR", "1")
            .output()
            .expect("subsea-broker starts");
        Ran::new(output)
    }

    /// A path in the test's own directory, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir
            .path()
            .join(name)
            .to_str()
            .expect("text")
            .to_owned()
    }

    /// Creates a join file and gives its path.
    pub(crate) fn token(&self, cluster: &str, role: &str) -> String {
        self.token_with(cluster, role, "15m")
    }

    /// Creates a join file whose token lives for `ttl`.
    pub(crate) fn token_with(&self, cluster: &str, role: &str, ttl: &str) -> String {
        let count = fs::read_dir(self.dir.path()).expect("listed").count();
        let path = self.path(&format!("{cluster}-{role}-{count}.yaml"));
        self.admin(&format!(
            "token create --cluster {cluster} --role {role} --ttl {ttl} -o {path}"
        ))
        .exits(0);
        path
    }

    /// The id of the newest token in the list that has the state.
    pub(crate) fn token_id(&self, state: &str) -> String {
        let list = self.admin("token list -o json").exits(0).json();
        let tokens = list.as_array().expect("a list");
        let of_state = tokens.iter().filter(|t| t["state"] == state);
        let newest = of_state
            .max_by_key(|t| t["created"].as_u64())
            .expect("a token");
        newest["id"].as_str().expect("an id").to_owned()
    }

    /// Joins `cluster` with its own token, from the state directory of the same name.
    #[track_caller]
    pub(crate) fn join(&self, cluster: &str, blocks: &str) -> Ran {
        let file = self.token(cluster, "member");
        self.join_with(&file, cluster, blocks)
    }

    /// Joins with a join file.
    pub(crate) fn join_with(&self, file: &str, dir: &str, more: &str) -> Ran {
        subsea(&format!(
            "join {file} --node gw-1 --state-dir {} {more}",
            self.path(dir)
        ))
    }

    /// The members as the broker lists them.
    pub(crate) fn clusters(&self) -> Vec<String> {
        let list = self.admin("cluster list -o json").exits(0).json();
        let ids = list.as_array().expect("a list").iter();
        ids.map(|c| c["id"].as_str().expect("an id").to_owned())
            .collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.down();
    }
}
