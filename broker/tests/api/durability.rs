//! What happens to the store: restarts, backups, damage, a full disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use subsea_api::Code;
use subsea_api::admin::{AuditEntry, BrokerStatus, ClusterInfo};
use subsea_api::snapshot::WatchEvent;
use subsea_broker::restore_local;

use crate::common::{Broker, Node, config};

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_restart() {
    let broker = Broker::start().await;
    let mut east = broker.member("east", "10.0.0.0/16").await;
    let gateway = east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let before: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    let refused = Broker::start_in(config(&broker.dir))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains(&std::process::id().to_string()),
        "{refused}"
    );
    let tmp = broker.stop().await.unwrap();
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    let after: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    assert_eq!((after.epoch, after.fleet), (before.epoch, before.fleet));
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/east").await.unwrap();
    assert_eq!(info.record.gateways["gw-1"], gateway);
    assert_eq!(
        east.register(&broker, "192.0.2.1:51820").await.unwrap(),
        gateway
    );
    east.certificate = None;
    broker.stop().await;
    let mut other = config(tmp.path());
    other.fleet = Some("other".parse().unwrap());
    let refused = Broker::start_in(other).await.err().unwrap().to_string();
    assert!(refused.contains("belongs to fleet f1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_pools_are_kept_and_written_down_once() {
    let broker = Broker::start().await;
    let tmp = broker.stop().await.unwrap();
    let mut with_pool = config(tmp.path());
    with_pool.pools = vec![subsea_api::admin::Pool {
        kind: subsea_api::Kind::Pod,
        cidr: "172.16.0.0/12".parse().unwrap(),
    }];
    for config in [with_pool.clone(), with_pool, config(tmp.path())] {
        let broker = Broker::start_in(config).await.unwrap();
        let status: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
        assert!(
            status
                .pools
                .iter()
                .any(|p| p.cidr.to_string() == "172.16.0.0/12")
        );
        let log: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
        let lines: Vec<&AuditEntry> = log.iter().filter(|e| e.action == "broker.pools").collect();
        assert_eq!(lines.len(), 1, "{log:?}");
        assert!(lines[0].subject.contains("pod=172.16.0.0/12"), "{log:?}");
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_under_a_new_epoch_without_forgiving_anybody() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let thief = broker.member("thief", "10.1.0.0/16").await;
    let unused = broker.token("south", "member").await;
    let (status, backup) = broker.admin.raw("GET", "/v1/admin/backup", vec![]).await;
    assert_eq!(status, 200);
    let before: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    // After the backup one is revoked, one joins, and a token is used.
    let _: () = broker
        .admin
        .post("/v1/admin/clusters/thief/revoke", &())
        .await
        .unwrap();
    broker.member("west", "10.2.0.0/16").await;
    let mut south = Node::new("south", "gw-1");
    south
        .join(&broker, &unused, json!({"pod": ["10.3.0.0/16"]}))
        .await
        .unwrap();
    let mut stream = east.client(&broker).watch("").await.unwrap();
    stream.next().await.unwrap();
    let (status, text) = broker
        .admin
        .raw("POST", "/v1/admin/restore", backup.to_vec())
        .await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    while stream.next().await.is_some() {}
    let after: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    assert_ne!(after.epoch, before.epoch);
    let query = format!("?epoch={}&since={}", before.epoch, before.revision);
    let mut stream = east.client(&broker).watch(&query).await.unwrap();
    let Some(WatchEvent::Snapshot { snapshot }) = stream.next().await else {
        panic!("no snapshot")
    };
    assert_eq!(snapshot.epoch, after.epoch);
    assert_eq!(
        snapshot
            .clusters
            .keys()
            .map(subsea_api::ClusterId::as_str)
            .collect::<Vec<_>>(),
        ["east"]
    );
    assert!(snapshot.tombstones.contains_key("thief"));
    assert_eq!(
        thief.client(&broker).watch("").await.err().unwrap().code,
        Code::MemberRevoked
    );
    let mut second = Node::new("south", "gw-1");
    let refused = second
        .join(&broker, &unused, json!({"pod": ["10.3.0.0/16"]}))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::TokenUsed, "a burnt token stays burnt");
    let log: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
    let actions: Vec<&str> = log.iter().map(|e| e.action.as_str()).collect();
    for action in ["store.backup", "cluster.revoke", "store.restore"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
    let damaged = [&backup[..backup.len() / 2], b"no database at all"];
    for bad in damaged {
        let (status, text) = broker
            .admin
            .raw("POST", "/v1/admin/restore", bad.to_vec())
            .await;
        assert_eq!(status, 400, "{}", String::from_utf8_lossy(&text));
    }
    let unchanged: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    assert_eq!(unchanged.epoch, after.epoch);
    broker.member("north", "10.7.0.0/16").await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_fleets_backup_is_refused_online_and_taken_into_an_empty_directory() {
    let (broker, other) = (Broker::start().await, Broker::start().await);
    other.member("east", "10.0.0.0/16").await;
    let (_, backup) = other.admin.raw("GET", "/v1/admin/backup", vec![]).await;
    let (status, _) = broker
        .admin
        .raw("POST", "/v1/admin/restore", backup.to_vec())
        .await;
    assert_eq!(status, 400);
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("backup.db");
    std::fs::write(&file, &backup).unwrap();
    assert!(
        restore_local(&broker.dir, &file)
            .unwrap_err()
            .to_string()
            .contains("in use")
    );
    let dir = tmp.path().join("new");
    let status = restore_local(&dir, &file).unwrap();
    assert_eq!(status.clusters, 1);
    let restored = Broker::start_in(config(&dir)).await.unwrap();
    let _: ClusterInfo = restored.admin.get("/v1/admin/clusters/east").await.unwrap();
    restored.stop().await;
    std::fs::write(&file, "nonsense").unwrap();
    let before = std::fs::read(dir.join("store.db")).unwrap();
    let refused = restore_local(&dir, &file).unwrap_err().to_string();
    assert!(refused.contains("no whole backup"), "{refused}");
    assert_eq!(std::fs::read(dir.join("store.db")).unwrap(), before);
    broker.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_and_left_as_it_is() {
    let broker = Broker::start().await;
    broker.member("east", "10.0.0.0/16").await;
    let tmp = broker.stop().await.unwrap();
    let store = tmp.path().join("store.db");
    let good = std::fs::read(&store).unwrap();
    let mut flipped = good.clone();
    let (from, to) = (good.len() / 3, good.len() / 3 + 5000);
    flipped[from..to].fill(0x5a);
    for damage in [
        Vec::new(),
        b"garbage".repeat(1000),
        flipped,
        good[..good.len() / 2].to_vec(),
    ] {
        std::fs::write(&store, &damage).unwrap();
        let error = Broker::start_in(config(tmp.path()))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("damaged") && error.contains("store.db"),
            "{error}"
        );
        assert_eq!(std::fs::read(&store).unwrap(), damage, "it was written to");
    }
    std::fs::write(&store, &good).unwrap();
    Broker::start_in(config(tmp.path()))
        .await
        .unwrap()
        .stop()
        .await;
}

/// A small file system, gone at the end.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(at: &'a Path, size: &str) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "subsea-test"])
            .arg(at)
            .status()
            .unwrap();
        assert!(status.success(), "this test mounts a tmpfs: run it as root");
        Self(at)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_and_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(tmp.path(), "1m");
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    broker.member("east", "10.0.0.0/16").await;
    let filler = tmp.path().join("filler");
    let _ = std::fs::write(&filler, vec![0; 1 << 20]);
    let body = json!({"cluster": "west", "role": "member", "ttl_seconds": 900});
    let mut refused = None;
    for _ in 0..200 {
        if let Err(problem) = broker.admin.post::<Value>("/v1/admin/tokens", &body).await {
            refused = Some(problem);
            break;
        }
    }
    let refused = refused.expect("the disk never filled");
    assert_eq!(refused.code, Code::StoreUnavailable);
    assert!(refused.message.contains("full"), "{}", refused.message);
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/east").await.unwrap();
    assert_eq!(info.record.allocations.len(), 1, "reads go on");
    std::fs::remove_file(&filler).unwrap();
    broker.member("west", "10.1.0.0/16").await;
    broker.stop().await;
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    let list: Vec<ClusterInfo> = broker.admin.get("/v1/admin/clusters").await.unwrap();
    assert_eq!(list.len(), 2);
    broker.stop().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_finds_no_room_at_its_start_says_so() {
    let tmp = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::mount(tmp.path(), "32k");
    let error = Broker::start_in(config(tmp.path()))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("full"), "{error}");
    assert!(!tmp.path().join("store.db").exists());
}
