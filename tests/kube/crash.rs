//! A test program that is killed leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{self, LONG, until};

/// Set for a test that is to be killed: it does not end by itself before.
pub(crate) const STAY: &str = "SUBSEA_KUBE_STAY";

/// This program once more, with a test that starts control planes.
struct Another {
    child: Child,
    data: PathBuf,
}

impl Another {
    fn start() -> Self {
        // Who runs in the background of a script inherits that Ctrl-C is ignored.
        let child = Command::new("env")
            .arg("--default-signal=INT")
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "harness::two_planes_are_ready_and_know_their_version",
            ])
            .env(STAY, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let name = format!("kube-data-{}", child.id());
        Self {
            child,
            data: Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
        }
    }

    /// What runs with its data.
    fn servers(&self) -> usize {
        let data = self.data.to_str().unwrap();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            // setpriv becomes the server, and only then that is tied to its parent.
            .filter(|line| !line.starts_with(b"setpriv\0"))
            .filter(|line| String::from_utf8_lossy(line).contains(data))
            .count()
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn nothing_survives_a_test_program_that_is_killed() {
    // It needs the machine for two more control planes.
    let _alone = bed::exclusive();
    for signal in [Signal::KILL, Signal::INT] {
        let mut another = Another::start();
        // Twice etcd and the API server, and the shell that waits for the end.
        until("its control planes start", LONG, || another.servers() >= 5);
        assert!(another.data.exists());
        let pid = Pid::from_child(&another.child);
        kill_process(pid, signal).unwrap();
        let status = another.child.wait().unwrap();
        assert!(!status.success(), "it had ended before: {status}");
        until("all of them end", LONG, || another.servers() == 0);
        until("their data goes", LONG, || !another.data.exists());
    }
}
