//! Operators' calls.

use serde_json::{Value, json};
use subsea_api::Code;
use subsea_api::admin::{
    AllocationInfo, AuditEntry, BrokerStatus, ClusterInfo, TokenInfo, TokenState,
};

use crate::common::{Broker, Node};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_listed_without_their_secret() {
    let broker = Broker::start().await;
    let file = broker.token("east", "member").await;
    let (_, text) = broker.admin.raw("GET", "/v1/admin/tokens", vec![]).await;
    assert!(!String::from_utf8_lossy(&text).contains(&file.token.expose()[9..]));
    let list: Vec<TokenInfo> = serde_json::from_slice(&text).unwrap();
    assert_eq!((list.len(), list[0].state), (1, TokenState::Unused));
    assert_eq!(list[0].id, file.token.id());
    let path = format!("/v1/admin/tokens/{}", file.token.id());
    broker.admin.delete(&path).await.unwrap();
    broker.admin.delete(&path).await.unwrap();
    assert_eq!(
        broker
            .admin
            .delete("/v1/admin/tokens/nope")
            .await
            .unwrap_err()
            .code,
        Code::NotFound
    );
    for bad in [
        json!({"cluster": "east", "role": "admin", "ttl_seconds": 60}),
        json!({"cluster": "east", "role": "member", "ttl_seconds": 0}),
    ] {
        let refused = broker
            .admin
            .post::<Value>("/v1/admin/tokens", &bad)
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::BadRequest);
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_reserved_listed_and_released() {
    let broker = Broker::start().await;
    let body = json!({"cluster": "east", "kind": "pod", "cidr": "auto/16"});
    let info: AllocationInfo = broker
        .admin
        .post("/v1/admin/allocations", &body)
        .await
        .unwrap();
    assert_eq!(info.cidr.to_string(), "10.32.0.0/16");
    let list: Vec<AllocationInfo> = broker.admin.get("/v1/admin/allocations").await.unwrap();
    assert_eq!(list, [info]);
    broker
        .admin
        .delete("/v1/admin/allocations?cidr=10.32.0.0/16")
        .await
        .unwrap();
    let gone = broker
        .admin
        .delete("/v1/admin/allocations?cidr=10.32.0.0/16")
        .await
        .unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    let bad = broker
        .admin
        .delete("/v1/admin/allocations?cidr=10.32.0.1/16")
        .await
        .unwrap_err();
    assert_eq!(bad.code, Code::BadRequest);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_peer_is_added_and_forgotten() {
    let broker = Broker::start().await;
    let key = Node::new("x", "y").public_key();
    let path = "/v1/admin/clusters/office/stock-gateways/wg";
    let body = json!({"public_key": key, "endpoint": "192.0.2.9:51820", "probe": "10.50.0.1",
        "allocations": [{"kind": "pod", "cidr": "10.50.0.0/16"}]});
    let info: ClusterInfo = broker.admin.call("PUT", path, Some(&body)).await.unwrap();
    assert_eq!(
        info.record.gateways["wg"]
            .stock
            .as_ref()
            .unwrap()
            .probe
            .unwrap()
            .to_string(),
        "10.50.0.1"
    );
    broker
        .admin
        .delete("/v1/admin/clusters/office/gateways/wg")
        .await
        .unwrap();
    let again = broker
        .admin
        .delete("/v1/admin/clusters/office/gateways/wg")
        .await
        .unwrap_err();
    assert_eq!(again.code, Code::NotFound);
    broker
        .admin
        .delete("/v1/admin/clusters/office")
        .await
        .unwrap();
    let gone = broker
        .admin
        .get::<ClusterInfo>("/v1/admin/clusters/office")
        .await
        .unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_audited_and_the_status_adds_up() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let _stream = east.client(&broker).watch("").await.unwrap();
    let status: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
    assert_eq!(
        (status.clusters, status.gateways, status.watches),
        (1, 1, 1)
    );
    assert_eq!(status.urls, [broker.url.as_str()]);
    assert_eq!(status.pools.len(), 3);
    let log: Vec<AuditEntry> = broker
        .admin
        .get("/v1/admin/audit?after=1&limit=100")
        .await
        .unwrap();
    let lines: Vec<String> = log
        .iter()
        .map(|e| format!("{} {}", e.who, e.action))
        .collect();
    let token = log
        .iter()
        .find(|e| e.action == "token.create")
        .unwrap()
        .subject
        .clone();
    assert_eq!(
        lines,
        [
            "broker broker.address".to_owned(),
            "admin/admin token.create".to_owned(),
            format!("token/{token} cluster.join"),
            "cluster/east/member/gw-1 gateway.register".to_owned(),
        ]
    );
    assert!(log.windows(2).all(|w| w[0].sequence + 1 == w[1].sequence));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_calls_are_answered_as_problems() {
    let broker = Broker::start().await;
    let client = broker.anonymous();
    assert_eq!(
        client.get::<Value>("/v2/x").await.unwrap_err().code,
        Code::NotFound
    );
    assert_eq!(
        client.get::<Value>("/v1/join").await.unwrap_err().code,
        Code::BadRequest
    );
    assert_eq!(
        broker
            .admin
            .get::<Value>("/v1/admin/audit?after=x")
            .await
            .unwrap_err()
            .code,
        Code::BadRequest
    );
    assert_eq!(
        broker
            .admin
            .get::<Value>("/v1/admin/clusters/A.b")
            .await
            .unwrap_err()
            .code,
        Code::BadRequest
    );
    broker.stop().await;
}
