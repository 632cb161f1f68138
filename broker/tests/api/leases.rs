//! Leases of gateways: who renews, what that costs, and what the fleet hears of the end of one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use subsea_api::admin::{AuditEntry, BrokerStatus, ClusterInfo};
use subsea_api::member::Lease;
use subsea_api::snapshot::{Change, Gateway, WatchEvent};
use subsea_api::{Code, UnixMillis};
use tokio::task::JoinHandle;

use crate::common::{Broker, Client, Node, Refused, Watch, config};

/// Short enough to wait for, and long enough for a busy machine to renew in time.
const SHORT: Duration = Duration::from_secs(3);

async fn renew(client: &Client, node: &Node) -> Refused<Lease> {
    client.post(&format!("{}/lease", node.path()), &()).await
}

async fn status(broker: &Broker) -> BrokerStatus {
    broker.admin.get("/v1/admin/status").await.unwrap()
}

async fn gateway(broker: &Broker, node: &Node) -> Gateway {
    let path = format!("/v1/admin/clusters/{}", node.cluster);
    let info: ClusterInfo = broker.admin.get(&path).await.unwrap();
    info.record.gateways[node.name.as_str()].clone()
}

/// Two gateways of one cluster, whose leases have not begun.
async fn enrolled(broker: &Broker) -> (Node, Node) {
    let first = broker.member("east", "10.0.0.0/16").await;
    let second = broker.enrol("east", "gateway", "gw-2").await;
    (first, second)
}

async fn register(broker: &Broker, first: &Node, second: &Node) {
    first.register(broker, "192.0.2.1:51820").await.unwrap();
    second.register(broker, "192.0.2.2:51820").await.unwrap();
}

/// Two gateways of one cluster, registered.
async fn pair(broker: &Broker) -> (Node, Node) {
    let (first, second) = enrolled(broker).await;
    register(broker, &first, &second).await;
    (first, second)
}

/// Renews a short lease, also one that ended during a slow commit, and goes on until it is aborted.
async fn keep(client: &Client, node: &Node) -> JoinHandle<()> {
    let _: Lease = renew(client, node).await.unwrap();
    let (client, path) = (client.clone(), format!("{}/lease", node.path()));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SHORT / 6).await;
            let _: Lease = client.post(&path, &()).await.unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_leave_no_trace() {
    let broker = Broker::start().await;
    let (first, second) = pair(&broker).await;
    let (before, log): (_, Vec<AuditEntry>) = (
        status(&broker).await,
        broker.admin.get("/v1/admin/audit").await.unwrap(),
    );
    let store = || std::fs::metadata(broker.dir.join("store.db-wal")).map(|m| m.len());
    let written = store().unwrap();
    for node in [&first, &second] {
        let client = node.client(&broker);
        for _ in 0..100 {
            let lease = renew(&client, node).await.unwrap();
            assert_eq!(lease.lasts(), Duration::from_mins(1));
        }
    }
    let after = status(&broker).await;
    assert_eq!(after.revision, before.revision);
    assert_eq!(after.expired, 0);
    assert_eq!(store().unwrap(), written, "nothing is written");
    let now: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
    assert_eq!(now.len(), log.len());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_gateway_itself_renews_its_lease() {
    let broker = Broker::start().await;
    let (first, second) = pair(&broker).await;
    let west = broker.member("west", "10.1.0.0/16").await;
    let agent = broker.enrol("east", "agent", "gw-1").await;
    let dns = broker.enrol("east", "dns", "gw-1").await;
    for (who, of) in [
        (&second, &first),
        (&first, &second),
        (&west, &first),
        (&agent, &first),
        (&dns, &first),
    ] {
        let refused = renew(&who.client(&broker), of).await.unwrap_err();
        assert_eq!(
            refused.code,
            Code::Forbidden,
            "{}/{}",
            who.cluster,
            who.name
        );
    }
    let refused = renew(&broker.anonymous(), &first).await.unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated);
    let refused = renew(&broker.admin, &first).await.unwrap_err();
    assert_eq!(refused.code, Code::Forbidden);
    // Without a registration there is no lease.
    let refused = renew(&west.client(&broker), &west).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    assert!(refused.hint.is_some_and(|hint| hint.contains("registered")));
    broker
        .admin
        .delete("/v1/admin/clusters/east/gateways/gw-2")
        .await
        .unwrap();
    let refused = renew(&second.client(&broker), &second).await.unwrap_err();
    assert_eq!(refused.code, Code::NotMember);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_clears_another_one_of_its_cluster_once_that_has_lapsed() {
    let broker = Broker::start_with(|config| config.lease = SHORT).await;
    let (first, second) = enrolled(&broker).await;
    let west = broker.member("west", "10.1.0.0/16").await;
    let agent = broker.enrol("east", "agent", "gw-3").await;
    register(&broker, &first, &second).await;
    let client = first.client(&broker);
    let keeping = keep(&second.client(&broker), &second).await;
    let early = client.delete(&second.path()).await.unwrap_err();
    assert_eq!(early.code, Code::Forbidden);
    keeping.abort();
    let start = Instant::now();
    while gateway(&broker, &second).await.expired.is_none() {
        assert!(start.elapsed() < SHORT * 20, "its lease does not end");
        tokio::time::sleep(SHORT / 30).await;
    }
    for who in [&west, &agent] {
        let refused = who.client(&broker).delete(&second.path()).await;
        assert_eq!(
            refused.unwrap_err().code,
            Code::Forbidden,
            "{}",
            who.cluster
        );
    }
    client.delete(&second.path()).await.unwrap();
    let gone = client.delete(&second.path()).await.unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    // What was cleared is no member any more; in Kubernetes it enrols anew, should it come back.
    let refused = renew(&second.client(&broker), &second).await.unwrap_err();
    assert_eq!(refused.code, Code::NotMember);
    let log: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
    assert!(log.iter().any(|entry| entry.action == "gateway.clear"));
    broker.stop().await;
}

/// The next change of a gateway of `east` that is told, and its revision.
async fn told(watch: &mut Watch, name: &str) -> (u64, Option<UnixMillis>) {
    let Some(WatchEvent::Delta { delta }) = watch.news().await else {
        panic!("no delta");
    };
    let [Change::Put { record, .. }] = delta.changes.as_slice() else {
        panic!("{delta:?}");
    };
    (delta.to, record.gateways[name].expired)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_hears_of_the_end_and_of_the_return() {
    let broker = Broker::start_with(|config| config.lease = SHORT).await;
    let (first, second) = pair(&broker).await;
    let client = first.client(&broker);
    let renewing = keep(&client, &first).await;
    let other = second.client(&broker);
    let keeping = keep(&other, &second).await;
    let mut watch = client.watch("").await.unwrap();
    let Some(WatchEvent::Snapshot { snapshot }) = watch.next().await else {
        panic!("no snapshot");
    };
    let before = snapshot.revision;
    keeping.abort();
    let start = Instant::now();
    renew(&other, &second).await.unwrap();
    let (revision, expired) = told(&mut watch, "gw-2").await;
    assert_eq!(revision, before + 1);
    assert!(start.elapsed() > SHORT / 2, "{:?}", start.elapsed());
    let since = expired.unwrap();
    assert_eq!(gateway(&broker, &second).await.expired, Some(since));
    assert_eq!(status(&broker).await.expired, 1);
    let lasts = renew(&other, &second).await.unwrap().lasts();
    assert_eq!(lasts, SHORT);
    assert_eq!(told(&mut watch, "gw-2").await, (before + 2, None));
    // Once more, and it comes back by its registration.
    let (revision, expired) = told(&mut watch, "gw-2").await;
    assert_eq!(revision, before + 3);
    assert!(expired.is_some_and(|again| again > since));
    let log: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
    second.register(&broker, "192.0.2.2:51820").await.unwrap();
    assert_eq!(told(&mut watch, "gw-2").await, (before + 4, None));
    assert_eq!(gateway(&broker, &first).await.expired, None);
    renewing.abort();
    let later: Vec<AuditEntry> = broker.admin.get("/v1/admin/audit").await.unwrap();
    // What came before the snapshot depends on how long the registrations took.
    let of = |log: &[AuditEntry], action: &str| {
        let lines = log.iter().filter(|line| line.action == action);
        lines
            .map(|line| (line.who.clone(), line.subject.clone()))
            .collect::<Vec<_>>()
    };
    let line = |who: &str| (who.to_owned(), "east/gw-2".to_owned());
    assert!(of(&log, "gateway.expire").ends_with(&[line("broker"), line("broker")]));
    let returns = of(&log, "gateway.return");
    assert!(returns.ends_with(&[line("cluster/east/gateway/gw-2")]));
    assert_eq!(of(&later, "gateway.return"), returns);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_gives_all_a_full_lease_again() {
    // Long leases at first, for no commit of theirs may take longer than one.
    let broker = Broker::start().await;
    let (first, second) = pair(&broker).await;
    let tmp = broker.stop().await.unwrap();
    tokio::time::sleep(SHORT + SHORT / 3).await;
    let mut again = config(tmp.path());
    again.lease = SHORT;
    let start = Instant::now();
    let broker = Broker::start_in(again).await.unwrap();
    let client = first.client(&broker);
    renew(&client, &first).await.unwrap();
    while gateway(&broker, &second).await.expired.is_none() {
        assert!(start.elapsed() < SHORT * 20, "it never expires");
        tokio::time::sleep(Duration::from_millis(20)).await;
        renew(&client, &first).await.unwrap();
    }
    // Less would be what the time without a broker left of it.
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    assert_eq!(gateway(&broker, &first).await.expired, None);
    // That it is over is on disk, and a restart does not forgive it.
    let tmp2 = broker.stop().await;
    assert!(tmp2.is_none());
    let broker = Broker::start_in(config(tmp.path())).await.unwrap();
    assert!(gateway(&broker, &second).await.expired.is_some());
    renew(&second.client(&broker), &second).await.unwrap();
    assert_eq!(gateway(&broker, &second).await.expired, None);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_tells_where_its_node_is() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let client = east.client(&broker);
    let register = async |addresses: Value| -> Refused<Gateway> {
        let mut body = east
            .registration(&client, east.public_key(), "192.0.2.1:51820")
            .await;
        body["node_addresses"] = addresses;
        client.call("PUT", &east.path(), Some(&body)).await
    };
    let registered = register(json!(["fd00::5", "192.168.1.5"])).await.unwrap();
    let texts: Vec<_> = registered
        .node_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts, ["192.168.1.5", "fd00::5"]);
    let mut watch = client.watch("").await.unwrap();
    let Some(WatchEvent::Snapshot { snapshot }) = watch.next().await else {
        panic!("no snapshot");
    };
    assert_eq!(snapshot.clusters["east"].gateways["gw-1"], registered);
    for bad in [
        json!(["127.0.0.1"]),
        json!(["fe80::1"]),
        json!(["node-1"]),
        json!("192.0.2.1"),
    ] {
        let refused = register(bad.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::BadRequest, "{bad}");
    }
    broker.stop().await;
}
