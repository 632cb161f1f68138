//! Network namespaces for tests: each test runs in one of its own, and can have more beside it.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const ROLE: &str = "SUBSEA_NETNS_ROLE";

/// Runs `body` in a network namespace of its own: the test starts itself again inside one.
///
/// `body` gets `main`, or the role that [`Space::spawn_role`] started it for.
pub(crate) fn in_namespace(test: &str, body: impl FnOnce(&str)) {
    if let Ok(role) = std::env::var(ROLE) {
        body(&role);
        return;
    }
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, "main")
        .output()
        .expect("`unshare` of util-linux and root are needed");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "in the namespace:\n{out}\n{err}"
    );
}

/// Another namespace. It goes with this process, however that ends: its keeper waits for our end of a pipe.
pub(crate) struct Space {
    keeper: Child,
}

impl Space {
    pub(crate) fn new() -> Self {
        let keeper = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", keeper.id());
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::read_link(&path).is_ok_and(|other| other == own) {
            assert!(Instant::now() < deadline, "no namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        let space = Self { keeper };
        space.sh("ip link set lo up");
        space
    }

    pub(crate) fn pid(&self) -> u32 {
        self.keeper.id()
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid()));
        command
    }

    /// Runs lines of shell, each of which must succeed; gives what they print.
    pub(crate) fn sh(&self, script: &str) -> String {
        succeed(script, self.enter().args(["sh", "-ec", script]))
    }

    /// Like [`Self::sh`], for what may fail.
    pub(crate) fn try_sh(&self, script: &str) -> Output {
        self.enter().args(["sh", "-c", script]).output().unwrap()
    }

    /// Runs a function inside, in a thread of its own: the sockets that it opens stay there.
    pub(crate) fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let enter = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    /// Starts this test once more, inside, with another role.
    pub(crate) fn spawn_role(&self, test: &str, role: &str) -> Role {
        let mut command = self.enter();
        command
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"]);
        Role(
            command
                .env(ROLE, role)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A test in another role; killed when dropped.
pub(crate) struct Role(Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this test once more in this namespace, with another role and without the system's tools.
pub(crate) fn run_without_tools(test: &str, role: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture"])
        .env(ROLE, role)
        .env("PATH", "/nonexistent");
    succeed(role, &mut command);
}

/// Runs lines of shell in this namespace, each of which must succeed; gives what they print.
pub(crate) fn sh(script: &str) -> String {
    succeed(script, Command::new("sh").args(["-ec", script]))
}

/// Feeds `nft -f -`, which wants a line of its own for what closes a block.
pub(crate) fn nft(text: &str) {
    let text = text.replace('}', "\n}\n");
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

fn succeed(what: &str, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "`{what}`: {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}
