//! Network namespaces that go away with their owner, and commands inside them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

pub(crate) use crate::command::{Ran, run};

/// A named network namespace; dropping it ends what still runs in it and removes it.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with loopback up. What a new namespace inherits from the host is set to the kernel's defaults.
    pub(crate) fn create(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name])).ok();
        let namespace = Self { name };
        namespace.ip("link set lo up");
        for setting in [
            "net.ipv4.ip_forward=0",
            "net.ipv6.conf.all.forwarding=0",
            // Duplicate address detection only delays tests.
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.all.accept_dad=0",
        ] {
            namespace.sysctl(setting);
        }
        namespace
    }

    /// Its name, as `ip netns` shows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line of plain words inside, for at most 90 s.
    pub(crate) fn run(&self, line: &str) -> Ran {
        let mut command = self.command("timeout");
        run(command
            .args(["-k", "5", "90"])
            .args(line.split_whitespace()))
    }

    /// Runs `ip` inside; it must succeed.
    pub(crate) fn ip(&self, line: &str) -> String {
        let mut command = Command::new("ip");
        run(command
            .args(["-n", &self.name])
            .args(line.split_whitespace()))
        .ok()
    }

    /// What `ip -j` reads inside; nothing at all is an empty list.
    pub(crate) fn ip_json(&self, line: &str) -> Vec<Value> {
        let text = self.ip(&format!("-j {line}"));
        if text.trim().is_empty() {
            return Vec::new();
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("`ip -j {line}`: {e}: {text}"))
    }

    /// Loads nftables rules inside.
    pub(crate) fn nft(&self, rules: &str) {
        let mut command = self.command("nft");
        run(command.arg(rules)).ok();
    }

    /// Sets `key=value`.
    pub(crate) fn sysctl(&self, setting: &str) {
        let (key, value) = setting.split_once('=').expect("key=value");
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| std::fs::write(&path, value))
            .unwrap_or_else(|e| panic!("{setting} in {}: {e}", self.name));
    }

    /// Runs `work` on a thread of this namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let name = &self.name;
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(name);
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let pids = run(Command::new("ip").args(["netns", "pids", &self.name]));
        for pid in pids
            .stdout
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
        {
            // It was started by this test: nobody else knows the namespace. It may end by itself meanwhile.
            if let Some(pid) = Pid::from_raw(pid) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// Moves the calling thread into a namespace, for good.
pub(crate) fn enter(name: &str) {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .unwrap_or_else(|e| panic!("cannot enter {path}: {e}"));
}
