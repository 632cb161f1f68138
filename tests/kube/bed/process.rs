//! Processes that do not outlive this one, however it ends, with their output in a file.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running process; dropping it ends it the hard way.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. Both its outputs are appended to `log`.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let other = file.try_clone().expect("a second handle of the log");
        let mut command = Command::new("setpriv");
        command
            // Ctrl-C, a crash, kill -9: the kernel ends it with us.
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(other);
        let child = spawn(command).unwrap_or_else(|e| {
            panic!(
                "cannot start {} by setpriv: {e}; scripts/test installs what the tests need",
                program.display()
            )
        });
        Self {
            child,
            log: log.to_owned(),
        }
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

    /// Ends it as a service manager does, and the hard way after `limit`.
    pub(crate) fn stop(mut self, limit: Duration) {
        if self.is_running() {
            self.signal(Signal::TERM);
        }
        let start = Instant::now();
        while self.is_running() && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The last `lines` of what it and its predecessors on the same log said.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let start = all.len().saturating_sub(lines);
        format!("--- {}\n{}", self.log.display(), all[start..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Order {
    command: Command,
    reply: SyncSender<io::Result<Child>>,
}

/// The kernel sends the signal when the *thread* ends that made the process, and the thread of a test ends with it.
/// So one thread, which ends with the program, makes them all.
static PARENT: LazyLock<Mutex<SyncSender<Order>>> = LazyLock::new(|| {
    let (sender, orders) = sync_channel::<Order>(0);
    std::thread::Builder::new()
        .name("parent".to_owned())
        .spawn(move || {
            for mut order in orders {
                let child = order.command.spawn();
                order.reply.send(child).expect("somebody waits for it");
            }
        })
        .expect("a thread");
    Mutex::new(sender)
});

fn spawn(command: Command) -> io::Result<Child> {
    let (reply, child) = sync_channel(1);
    let parent = PARENT.lock().unwrap_or_else(PoisonError::into_inner);
    parent
        .send(Order { command, reply })
        .expect("the parent lives");
    child.recv().expect("the parent answers")
}
