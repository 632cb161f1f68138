//! Directories of this program: one that goes with it, however it ends, and one for logs, which stays until the next run.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, OnceLock};

/// All of ours are in it, with the process id of the owner as a part of their names.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// For keys, kubeconfigs and the data of etcd.
pub(super) static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = make("kube-data");
    remove_at_the_end(&path);
    path
});

/// For the logs of all control planes.
pub(super) static LOGS: LazyLock<PathBuf> = LazyLock::new(|| make("kube-logs"));

fn make(kind: &str) -> PathBuf {
    sweep(kind);
    let path = Path::new(TMP).join(format!("{kind}-{}", std::process::id()));
    std::fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// Removes those of programs that are gone.
fn sweep(kind: &str) {
    let entries = std::fs::read_dir(TMP).unwrap_or_else(|e| panic!("{TMP}: {e}"));
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(kind)?.strip_prefix('-')?.parse().ok());
        let Some(owner): Option<u32> = owner else {
            continue;
        };
        if owner == std::process::id() || !Path::new(&format!("/proc/{owner}")).exists() {
            // Another that starts now may do the same.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

/// Stays open as long as this program lives: that is its purpose.
static PIPE: OnceLock<ChildStdin> = OnceLock::new();

/// A shell waits for the end of a pipe that only this program holds. It is in a process group of its own, so that
/// Ctrl-C does not reach it, and tries again, since the servers may write a moment longer.
#[expect(clippy::zombie_processes, reason = "it ends after this program")]
fn remove_at_the_end(path: &Path) {
    let script = r#"read -r _; for _ in 1 2 3 4 5; do rm -rf "$1" && exit; sleep 1; done"#;
    let mut shell = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(path)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start sh: {e}"));
    let pipe = shell.stdin.take().expect("a pipe");
    PIPE.set(pipe).expect("there is one directory");
}
