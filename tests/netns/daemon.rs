//! Processes that go away with their owner, with their output in a file.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running process; dropping it ends it the hard way.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    line: String,
}

impl Daemon {
    /// Starts it. Both its outputs are appended to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let line = format!("{command:?}");
        let file = open(log);
        let other = file.try_clone().expect("a second handle of the log");
        let child = command
            .env("SUBSEA_LOG", "info,subsea=debug,subsea_broker=debug")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(other)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {line}: {e}"));
        Self {
            child,
            log: log.to_owned(),
            line,
        }
    }

    /// What it and its predecessors on the same log said.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("the process is there");
    }

    /// Ends it as a service manager does; it must go within 10 s.
    pub(crate) fn stop(mut self) -> ExitStatus {
        if self.is_running() {
            self.signal(Signal::TERM);
        }
        self.wait(Duration::from_secs(10))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            match self.child.try_wait().expect("the state of a child") {
                Some(status) => return status,
                None if start.elapsed() > limit => {
                    panic!("{} does not end in {limit:?}", self.line)
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
