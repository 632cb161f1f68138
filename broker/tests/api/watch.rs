//! The watch: resumption, heartbeats, many watchers.

use std::time::Duration;

use subsea_api::Snapshot;
use subsea_api::admin::ClusterInfo;
use subsea_api::snapshot::WatchEvent;

use crate::common::{Broker, Client};

async fn snapshot(client: &Client) -> Box<Snapshot> {
    match client.watch("").await.unwrap().next().await {
        Some(WatchEvent::Snapshot { snapshot }) => snapshot,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_resumes_where_it_was_also_after_a_restart() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let client = east.client(&broker);
    let mut have = snapshot(&client).await;
    let at = |s: &Snapshot| format!("?epoch={}&since={}", s.epoch, s.revision);
    let first = client.watch(&at(&have)).await.unwrap().next().await;
    assert_eq!(
        first,
        Some(WatchEvent::Heartbeat {
            revision: have.revision
        }),
        "it is current"
    );
    broker.member("west", "10.1.0.0/16").await;
    broker.member("north", "10.2.0.0/16").await;
    let before = have.clone();
    let tmp = broker.stop().await.unwrap();
    let broker = Broker::start_in(crate::common::config(tmp.path()))
        .await
        .unwrap();
    let client = east.client(&broker);
    // Another port is another address of the broker, which is a change too.
    let Some(WatchEvent::Delta { delta }) = client.watch(&at(&have)).await.unwrap().next().await
    else {
        panic!("no delta");
    };
    assert_eq!((delta.from, delta.to), (have.revision, have.revision + 3));
    have.apply(delta).unwrap();
    assert_eq!(*have, *snapshot(&client).await);
    for query in [
        format!("?epoch=other&since={}", before.revision),
        format!("?epoch={}&since=999", before.epoch),
    ] {
        let first = client.watch(&query).await.unwrap().next().await;
        assert!(
            matches!(first, Some(WatchEvent::Snapshot { .. })),
            "{query}: {first:?}"
        );
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_beats_every_ten_seconds() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let mut watch = east.client(&broker).watch_with("", true).await.unwrap();
    watch.news().await.unwrap();
    let beat =
        async { while !matches!(watch.next().await.unwrap(), WatchEvent::Heartbeat { .. }) {} };
    tokio::time::timeout(Duration::from_secs(25), beat)
        .await
        .unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_hears_of_every_change_and_is_listed() {
    let broker = Broker::start().await;
    let mut watchers = Vec::new();
    for i in 0..20 {
        let node = broker
            .member(&format!("c{i}"), &format!("10.{i}.0.0/16"))
            .await;
        let mut watch = node
            .client(&broker)
            .watch_with("", i % 2 == 0)
            .await
            .unwrap();
        let Some(WatchEvent::Snapshot { snapshot }) = watch.news().await else {
            panic!()
        };
        watchers.push((watch, snapshot));
    }
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/c3").await.unwrap();
    assert!(info.watching.contains_key("gw-1"));
    broker.member("last", "10.99.0.0/16").await;
    for (watch, snapshot) in &mut watchers {
        while !snapshot.clusters.contains_key("last") {
            let Some(WatchEvent::Delta { delta }) = watch.news().await else {
                panic!()
            };
            snapshot.apply(delta).unwrap();
        }
        assert_eq!(snapshot.clusters.len(), 21);
    }
    drop(watchers);
    broker.stop().await;
}
