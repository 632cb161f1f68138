//! Runs the binary, and a broker of its own for each test that needs one.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The binary with a clean environment.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subsea-broker"));
    command
        .env_remove("SUBSEA_ADMIN")
        .env_remove("SUBSEA_LOG")
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    command
}

/// What a run of the binary gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Standard output of a run that did what it should and had nothing to complain about.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (Some(0), ""),
            "{}",
            self.stdout
        );
        self.stdout
    }

    /// Standard error of a run that failed with `code` and gave no data.
    #[track_caller]
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (Some(code), ""),
            "{}",
            self.stderr
        );
        self.stderr
    }
}

/// Runs the binary with the words of `line`.
pub(crate) fn run(line: &str) -> Ran {
    command()
        .args(line.split_whitespace())
        .output()
        .unwrap()
        .into()
}

/// A running broker.
pub(crate) struct Broker {
    child: Child,
    dir: TempDir,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = serve(&dir.path().join("data"));
        let broker = Self { child, dir };
        broker.wait();
        broker
    }

    /// Ends the process, without leave to tidy up.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data.
    pub(crate) fn restart(&mut self) {
        fs::remove_file(self.data().join("listen")).unwrap();
        self.child = serve(&self.data());
        self.wait();
    }

    fn wait(&self) {
        let listen = self.data().join("listen");
        let start = Instant::now();
        while !(listen.exists() && self.admin().exists()) {
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "the broker does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.data().join("admin.yaml")
    }

    /// A path beside the data directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        fs::read_to_string(self.data().join("listen"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Runs a verb with this broker's admin file; `@name` is a path beside its data directory.
    pub(crate) fn run(&self, line: &str) -> Ran {
        let words = line
            .split_whitespace()
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.file(name).into_os_string(),
                None => word.into(),
            });
        command()
            .env("SUBSEA_ADMIN", self.admin())
            .args(words)
            .output()
            .unwrap()
            .into()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn serve(data: &std::path::Path) -> Child {
    command()
        .args([
            "serve",
            "--fleet",
            "test",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(data)
        .env("SUBSEA_LOG", "warn")
        .spawn()
        .unwrap()
}
