//! Starts the servers of a control plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::Client;

use super::keys::SigningKey;
use super::launch::{self, Ports};
use super::process::Process;
use super::scratch::LOGS;
use super::{LONG, Plane};

/// What of each log a failing test prints.
pub(super) const TAIL: usize = 30;
/// How often servers may find their ports taken.
const ATTEMPTS: usize = 5;
/// Where the API server says that it is ready.
pub(super) const READY: &str = "/readyz";

/// Why a control plane did not start.
#[derive(Debug)]
enum Failure {
    /// Another one was faster.
    PortTaken,
    Other(String),
}

/// What all servers of a control plane are started with.
pub(super) struct Plan<'a> {
    pub(super) name: &'a str,
    pub(super) programs: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) services: &'a [String; 2],
    pub(super) keys: &'a [SigningKey],
}

impl Plan<'_> {
    /// etcd and an API server that is ready, on ports that were free.
    pub(super) fn start_servers(
        &self,
        client: impl Fn(Ports) -> Client,
    ) -> (Ports, Process, Process, Client) {
        for _ in 0..ATTEMPTS {
            let ports = Ports::choose();
            match self.try_start_servers(ports, &client) {
                Ok((etcd, api, client)) => return (ports, etcd, api, client),
                Err(Failure::PortTaken) => {
                    // As if it had not been tried. What did not come so far is not there.
                    drop(std::fs::remove_dir_all(self.dir.join("etcd")));
                    for server in ["etcd", "kube-apiserver"] {
                        drop(std::fs::remove_file(log(self.name, server)));
                    }
                }
                Err(Failure::Other(reason)) => panic!("control plane {}: {reason}", self.name),
            }
        }
        panic!(
            "control plane {}: {ATTEMPTS} times, a port was taken between its choice and its use",
            self.name
        );
    }

    fn try_start_servers(
        &self,
        ports: Ports,
        client: impl Fn(Ports) -> Client,
    ) -> Result<(Process, Process, Client), Failure> {
        let mut etcd = Process::start(
            &self.programs.join("etcd"),
            &launch::etcd(self.dir, ports),
            &log(self.name, "etcd"),
        );
        let mut api = self.start_api_server(ports);
        let certificate = self.dir.join("tls/apiserver.crt");
        let start = Instant::now();
        let mut found = None;
        loop {
            // Another's server on our port has another certificate: it does not answer to this client.
            if found.is_none() && certificate.exists() {
                found = Some(client(ports));
            }
            if let Some(client) = &found
                && answers(client, READY)
            {
                break;
            }
            for (what, server) in [("etcd", &mut etcd), ("kube-apiserver", &mut api)] {
                if !server.is_running() {
                    let tail = server.tail(TAIL);
                    return Err(if tail.contains("address already in use") {
                        Failure::PortTaken
                    } else {
                        Failure::Other(format!("{what} ended\n{tail}"))
                    });
                }
            }
            if start.elapsed() > LONG {
                let (etcd, api) = (etcd.tail(TAIL), api.tail(TAIL));
                return Err(Failure::Other(format!("does not answer\n{etcd}\n{api}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let client = found.expect("found above");
        Ok((etcd, api, client))
    }

    pub(super) fn start_api_server(&self, ports: Ports) -> Process {
        let policy = launch::audit_policy(self.dir);
        std::fs::write(&policy, launch::AUDIT_POLICY)
            .unwrap_or_else(|e| panic!("{}: {e}", policy.display()));
        Process::start(
            &self.programs.join("kube-apiserver"),
            &launch::api_server(self.dir, ports, self.services, self.keys),
            &log(self.name, "kube-apiserver"),
        )
    }

    pub(super) fn start_controllers(&self, kubeconfig: &Path) -> Process {
        Process::start(
            &self.programs.join("kube-controller-manager"),
            &launch::controller_manager(self.dir, kubeconfig),
            &log(self.name, "kube-controller-manager"),
        )
    }
}

/// Whether the API server has this path for us, now.
pub(super) fn answers(client: &Client, path: &str) -> bool {
    let request = hyper::Request::get(path)
        .body(Vec::new())
        .expect("a request");
    let answer = Plane::block_on(async {
        tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await
    });
    matches!(answer, Ok(Ok(_)))
}

pub(super) fn address(ports: Ports) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports.api).into()
}

fn log(plane: &str, program: &str) -> PathBuf {
    LOGS.join(format!("{plane}-{program}.log"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::keys::{Kind, SigningKey};
    use super::super::{programs, scratch};
    use super::*;

    #[test]
    fn a_port_that_was_taken_meanwhile_is_told_from_other_failures() {
        let dir = scratch::SCRATCH.join("taken");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("tokens.csv"), "token,admin,admin\n").unwrap();
        let plan = Plan {
            name: "taken",
            programs: &programs::directory(),
            dir: &dir,
            services: &["10.99.0.0/20".to_owned(), "fd00:2:9::/108".to_owned()],
            keys: &[SigningKey::make(Kind::Ecdsa, &dir, "key")],
        };
        let start = |ports| {
            // Nobody answers to it.
            let nowhere = kube::Config::new(hyper::Uri::from_static("http://127.0.0.1:1"));
            let client = Plane::block_on(async { Client::try_from(nowhere).unwrap() });
            let started = plan.try_start_servers(ports, |_| client.clone());
            started.err().unwrap()
        };
        for which in [|p: Ports| p.etcd, |p: Ports| p.peer, |p: Ports| p.api] {
            let ports = Ports::choose();
            let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, which(ports))).unwrap();
            let failure = start(ports);
            assert!(matches!(failure, Failure::PortTaken), "{failure:?}");
            drop(taken);
        }
    }
}
