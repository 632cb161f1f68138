//! Agents: what their certificates entitle to, and how they go.

use serde_json::{Value, json};
use subsea_api::admin::{BrokerStatus, ClusterInfo};
use subsea_api::member::RenewResponse;
use subsea_api::{Code, Role};

use crate::common::{Broker, Node};

fn path(node: &Node) -> String {
    format!("/v1/clusters/{}/agents/{}", node.cluster, node.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_watches_and_renews_and_nothing_else() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let registered = east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let token = broker.token("east", "agent").await;
    // Nothing but a name and a key is asked of it.
    let mut agent = Node::new("east", "gw-1");
    let mut body = agent.join_body(&token, &Value::Null);
    body.as_object_mut().unwrap().remove("cidrs");
    let joined: subsea_api::member::JoinResponse =
        broker.anonymous().post("/v1/join", &body).await.unwrap();
    assert_eq!(joined.role, Role::Agent);
    agent.certificate = Some(joined.certificate_pem);
    let client = agent.client(&broker);
    let body = json!({"csr_pem": agent.csr()});
    let renewed: RenewResponse = client.post("/v1/renew", &body).await.unwrap();
    agent.certificate = Some(renewed.certificate_pem);
    let client = agent.client(&broker);
    let mut watch = client.watch("").await.unwrap();
    watch.next().await.unwrap();
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/east").await.unwrap();
    assert!(info.watching.is_empty(), "the gateway does not watch");
    assert!(info.agents_watching.contains_key("gw-1"));
    let proof = east
        .registration(&east.client(&broker), east.public_key(), "192.0.2.9:1")
        .await;
    for (method, path, body) in [
        ("PUT", east.path(), Some(&proof)),
        ("DELETE", east.path(), None),
        ("POST", format!("{}/lease", east.path()), None),
        ("POST", "/v1/challenge".to_owned(), None),
        ("DELETE", "/v1/clusters/east".to_owned(), None),
        ("DELETE", "/v1/clusters/east?force=true".to_owned(), None),
        ("GET", "/v1/admin/clusters".to_owned(), None),
        ("GET", "/v1/admin/status".to_owned(), None),
    ] {
        let refused = client.call::<Value>(method, &path, body).await;
        assert_eq!(
            refused.unwrap_err().code,
            Code::Forbidden,
            "{method} {path}"
        );
    }
    let info: ClusterInfo = broker.admin.get("/v1/admin/clusters/east").await.unwrap();
    assert_eq!(info.record.gateways["gw-1"], registered);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_by_its_own_certificate() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    let west = broker.member("west", "10.1.0.0/16").await;
    let agent = broker.enrol("east", "agent", "gw-1").await;
    let other = broker.enrol("east", "agent", "n-1").await;
    let foreign = broker.enrol("west", "agent", "gw-1").await;
    let dns = broker.enrol("east", "dns", "gw-1").await;
    for who in [&east, &west, &other, &foreign, &dns] {
        let refused = who.client(&broker).delete(&path(&agent)).await.unwrap_err();
        assert_eq!(
            refused.code,
            Code::Forbidden,
            "{}/{}",
            who.cluster,
            who.name
        );
    }
    let refused = broker.anonymous().delete(&path(&agent)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated);
    let revision = async || {
        let status: BrokerStatus = broker.admin.get("/v1/admin/status").await.unwrap();
        status.revision
    };
    let before = revision().await;
    let client = agent.client(&broker);
    let mut watch = client.watch("").await.unwrap();
    watch.next().await.unwrap();
    client.delete(&path(&agent)).await.unwrap();
    while watch.next().await.is_some() {}
    assert_eq!(client.watch("").await.err().unwrap().code, Code::NotMember);
    assert_eq!(
        client.delete(&path(&agent)).await.unwrap_err().code,
        Code::NotMember
    );
    assert_eq!(revision().await, before, "no gateway need know");
    // Its namesakes are as before, and the name is free.
    assert!(east.client(&broker).watch("").await.is_ok());
    assert!(dns.client(&broker).watch("").await.is_ok());
    let again = broker.enrol("east", "agent", "gw-1").await;
    let mut watch = again.client(&broker).watch("").await.unwrap();
    watch.next().await.unwrap();
    // A machine that takes the name over: what the old one has open ends.
    let taken = broker.enrol("east", "agent", "gw-1").await;
    while watch.next().await.is_some() {}
    assert_eq!(
        again.client(&broker).watch("").await.err().unwrap().code,
        Code::NotMember
    );
    // With the cluster all its agents go.
    let mut watch = taken.client(&broker).watch("").await.unwrap();
    watch.next().await.unwrap();
    east.client(&broker)
        .delete("/v1/clusters/east")
        .await
        .unwrap();
    while watch.next().await.is_some() {}
    for gone in [&taken, &other] {
        let refused = gone.client(&broker).watch("").await.err().unwrap();
        assert_eq!(refused.code, Code::NotMember);
    }
    assert!(foreign.client(&broker).watch("").await.is_ok());
    broker
        .admin
        .delete("/v1/admin/clusters/west")
        .await
        .unwrap();
    let refused = foreign.client(&broker).watch("").await.err().unwrap();
    assert_eq!(refused.code, Code::NotMember);
    broker.stop().await;
}
