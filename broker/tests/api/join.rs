//! Admission: joins, retries, refusals of tokens, conflicts.

use serde_json::json;
use subsea_api::member::JoinResponse;
use subsea_api::snapshot::WatchEvent;
use subsea_api::{Code, Role};

use crate::common::{Broker, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_joins_registers_its_gateway_and_is_seen() {
    let broker = Broker::start().await;
    let token = broker.token("east", "member").await;
    let mut east = Node::new("east", "gw-1");
    let cidrs =
        json!({"pod": ["auto/16"], "service": ["10.120.0.0/16"], "node": ["192.168.1.0/24"]});
    let joined = east.join(&broker, &token, cidrs).await.unwrap();
    assert_eq!(joined.role, Role::Member);
    let blocks: Vec<String> = joined
        .allocations
        .iter()
        .map(|a| format!("{} {}", a.kind, a.cidr))
        .collect();
    assert_eq!(
        blocks,
        [
            "pod 10.32.0.0/16",
            "service 10.120.0.0/16",
            "node 192.168.1.0/24"
        ]
    );
    let client = east.client(&broker);
    let mut watch = client.watch_with("", true).await.unwrap();
    let Some(WatchEvent::Snapshot { mut snapshot }) = watch.next().await else {
        panic!("no snapshot");
    };
    assert_eq!(snapshot.clusters.len(), 1);
    let gateway = east.register(&broker, "192.0.2.1:51820").await.unwrap();
    assert_eq!(gateway.slot, 0);
    assert_eq!(gateway.inner.len(), 2);
    assert_eq!(gateway.inner[0].to_string(), "198.19.0.1");
    let Some(WatchEvent::Delta { delta }) = watch.news().await else {
        panic!("no delta");
    };
    assert!(delta.from <= snapshot.revision, "no gap");
    snapshot.apply(delta).unwrap();
    let seen = &snapshot.clusters["east"].gateways["gw-1"];
    assert_eq!(*seen, gateway);
    let again = east.register(&broker, "192.0.2.1:51820").await.unwrap();
    assert_eq!(again, gateway, "registering the same again changes nothing");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_join_gives_the_same_and_another_key_gets_nothing() {
    let broker = Broker::start().await;
    let token = broker.token("east", "member").await;
    let mut east = Node::new("east", "gw-1");
    let cidrs = json!({"pod": ["auto/16"], "service": ["auto/20"]});
    let first = east.join(&broker, &token, cidrs.clone()).await.unwrap();
    let second = east.join(&broker, &token, cidrs.clone()).await.unwrap();
    assert_eq!(first.allocations, second.allocations);
    assert!(east.client(&broker).watch("").await.is_ok());
    let mut thief = Node::new("east", "gw-1");
    let refused = thief.join(&broker, &token, cidrs).await.unwrap_err();
    assert_eq!(refused.code, Code::TokenUsed);
    assert!(refused.hint.is_some());
    let _: JoinResponse = first;
    broker.stop().await;
}
