//! The broker as a process, and what an operator asks of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hyper::Method;
use subsea_api::PublicKey;
use subsea_api::admin::{AdminFile, BrokerStatus, ClusterInfo, StockGateway, TokenCreate};
use subsea_api::allocation::{Allocation, Kind};
use subsea_api::join_file::JoinFile;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use crate::client;

pub(crate) struct Broker {
    child: Child,
    dir: TempDir,
    address: SocketAddr,
    tls: TlsConnector,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let child = serve(&data, "127.0.0.1:0");
        let address = listening(&data);
        let file = fs::read_to_string(data.join("admin.yaml")).unwrap();
        let file: AdminFile = serde_saphyr::from_str(&file).unwrap();
        let tls = client::tls(&file.ca_pem, Some((&file.certificate_pem, &file.key_pem)));
        Self {
            child,
            dir,
            address,
            tls,
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_file(self.data().join("listen")).unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = serve(&self.data(), &self.address.to_string());
        assert_eq!(listening(&self.data()), self.address);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Resident memory, MiB.
    pub(crate) fn memory(&self) -> f64 {
        self.proc_status("VmRSS:")
    }

    /// The most that was ever resident, MiB.
    pub(crate) fn peak(&self) -> f64 {
        self.proc_status("VmHWM:")
    }

    /// Processor time that it has used, by whichever core.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name before may hold blanks; user and system time are the 14th and 15th field of all.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse::<u64>().unwrap()).sum();
        // USER_HZ is 100 on every architecture that we run on.
        Duration::from_millis(ticks * 10)
    }

    /// The newest revision.
    pub(crate) async fn revision(&self) -> u64 {
        let status: BrokerStatus = self.ask(Method::GET, "/v1/admin/status", &()).await;
        status.revision
    }

    fn proc_status(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> T {
        let mut sender = client::connect(self.address, &self.tls).await.unwrap();
        client::call(&mut sender, method, path, body).await
    }

    pub(crate) async fn token(&self, cluster: u32, role: &str) -> JoinFile {
        let request = TokenCreate {
            cluster: format!("c{cluster}").parse().unwrap(),
            role: role.parse().unwrap(),
            ttl_seconds: 3600,
        };
        self.ask(Method::POST, "/v1/admin/tokens", &request).await
    }

    /// The epoch that revisions belong to.
    pub(crate) async fn epoch(&self) -> String {
        let status: BrokerStatus = self.ask(Method::GET, "/v1/admin/status", &()).await;
        status.epoch
    }

    /// One commit that every watcher hears of: a stock gateway moves.
    pub(crate) async fn change(&self, n: u32) {
        let request = StockGateway {
            public_key: PublicKey::from_bytes([7; 32]).unwrap(),
            endpoint: format!("198.51.100.1:{}", 1000 + n).parse().unwrap(),
            probe: None,
            allocations: vec![Allocation {
                kind: Kind::Pod,
                cidr: "10.200.0.0/24".parse().unwrap(),
                exported: true,
            }],
        };
        let path = "/v1/admin/clusters/stock/stock-gateways/stock";
        let _: ClusterInfo = self.ask(Method::PUT, path, &request).await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn serve(data: &Path, listen: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_subsea-broker"))
        .args(["serve", "--listen", listen, "--data-dir"])
        .arg(data)
        .env("SUBSEA_LOG", "warn")
        .spawn()
        .unwrap()
}

fn listening(data: &Path) -> SocketAddr {
    let start = Instant::now();
    loop {
        if let Ok(address) = fs::read_to_string(data.join("listen"))
            && data.join("admin.yaml").exists()
        {
            return address.trim().parse().unwrap();
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the broker does not start"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
