//! Admission: joins, retries, refusals of tokens, conflicts.

use serde_json::{Value, json};
use subsea_api::conflict::{Conflict, Owner};
use subsea_api::join_file::JoinFile;
use subsea_api::member::{JoinResponse, PreflightReport};
use subsea_api::snapshot::WatchEvent;
use subsea_api::{Code, Problem, Role, Token};

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
    while !snapshot.clusters["east"].gateways.contains_key("gw-1") {
        let Some(WatchEvent::Delta { delta }) = watch.news().await else {
            panic!("no delta");
        };
        assert!(delta.from <= snapshot.revision, "no gap");
        snapshot.apply(delta).unwrap();
    }
    assert_eq!(snapshot.clusters["east"].gateways["gw-1"], gateway);
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
    broker.stop().await;
}

/// Tries a join that must be refused, and checks that the answer helps.
async fn refusal(broker: &Broker, file: &JoinFile, cluster: &str) -> Problem {
    let cidrs = json!({"pod": ["10.9.0.0/16"]});
    let problem = Node::new(cluster, "gw-1")
        .join(broker, file, cidrs)
        .await
        .unwrap_err();
    assert!(problem.hint.is_some(), "{problem:?}");
    assert!(
        !problem.message.contains(&file.token.expose()[9..]),
        "it must not repeat the secret"
    );
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_token_is_refused_with_its_own_message() {
    let broker = Broker::start().await;
    let mut seen = Vec::new();
    let good = broker.token("east", "member").await;

    let mut made_up = good.clone();
    made_up.token = Token::from_parts(7, [7; 32]);
    seen.push(refusal(&broker, &made_up, "east").await);
    assert_eq!(seen[0].code, Code::TokenUnknown);

    let mut foreign = good.clone();
    foreign.fleet = "other".parse().unwrap();
    seen.push(refusal(&broker, &foreign, "east").await);
    assert_eq!(seen[1].code, Code::FleetMismatch);

    seen.push(refusal(&broker, &good, "west").await);
    assert_eq!(seen[2].code, Code::TokenMismatch);

    let revoked = broker.token("east", "member").await;
    broker
        .admin
        .delete(&format!("/v1/admin/tokens/{}", revoked.token.id()))
        .await
        .unwrap();
    seen.push(refusal(&broker, &revoked, "east").await);
    assert_eq!(seen[3].code, Code::TokenRevoked);

    let body = json!({"cluster": "east", "role": "member", "ttl_seconds": 1});
    let late: JoinFile = broker.admin.post("/v1/admin/tokens", &body).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    seen.push(refusal(&broker, &late, "east").await);
    assert_eq!(seen[4].code, Code::TokenExpired);

    Node::new("east", "gw-1")
        .join(&broker, &good, json!({"pod": ["10.0.0.0/16"]}))
        .await
        .unwrap();
    seen.push(refusal(&broker, &good, "east").await);
    assert_eq!(seen[5].code, Code::TokenUsed);

    let exists = broker.token("east", "member").await;
    seen.push(refusal(&broker, &exists, "east").await);
    assert_eq!(seen[6].code, Code::ClusterExists);

    let mut messages: Vec<&str> = seen.iter().map(|p| p.message.as_str()).collect();
    messages.sort_unstable();
    messages.dedup();
    assert_eq!(messages.len(), seen.len());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused_with_the_reason() {
    let broker = Broker::start().await;
    let token = broker.token("east", "member").await;
    let node = Node::new("east", "gw-1");
    let good = node.join_body(&token, &json!({"pod": ["10.0.0.0/16"]}));
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    for (body, why) in [
        (with("cluster", json!("east.eu")), "dots"),
        (with("cluster", json!("East")), "capital"),
        (with("cluster", json!("a".repeat(33))), "33 characters"),
        (
            with("cidrs", json!({"pod": ["10.100.0.0/12"]})),
            "10.96.0.0/12",
        ),
        (
            with("cidrs", json!({"pod": ["10.0.0/16"]})),
            "not a CIDR block",
        ),
        (with("cidrs", json!({"pod": ["auto/31"]})), "auto/31"),
        (with("cidrs", json!({"pods": []})), "unknown field"),
        (with("token", json!("cut")), "token create"),
        (with("csr_pem", json!("nothing")), "certificate request"),
        (json!([]), "body"),
    ] {
        let refused: Problem = broker
            .anonymous()
            .post::<Value>("/v1/join", &body)
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::BadRequest, "{refused:?}");
        assert!(refused.message.contains(why), "{why}: {}", refused.message);
    }
    let own = with(
        "cidrs",
        json!({"pod": ["10.96.0.0/12"], "service": ["10.100.0.0/16"]}),
    );
    let refused = broker
        .anonymous()
        .post::<Value>("/v1/join", &own)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::CidrConflict);
    let joined: JoinResponse = broker.anonymous().post("/v1/join", &good).await.unwrap();
    assert_eq!(
        joined.allocations.len(),
        1,
        "none of the refusals burnt the token"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_shows_conflicts_and_burns_nothing() {
    let broker = Broker::start().await;
    broker.member("west", "10.0.0.0/16").await;
    let token = broker.token("east", "member").await;
    let ask = |block: &str| json!({"fleet": "f1", "token": token.token.expose(), "cluster": "east", "cidrs": {"pod": [block]}});
    let client = broker.anonymous();
    let report: PreflightReport = client
        .post("/v1/preflight", &ask("10.0.4.0/22"))
        .await
        .unwrap();
    assert_eq!(report.conflicts.len(), 1);
    assert_eq!(
        report.conflicts[0].existing.owner,
        Owner::Cluster("west".parse().unwrap())
    );
    assert!(!report.conflicts[0].free.is_empty());
    assert_eq!(report.others.len(), 1);
    let report: PreflightReport = client
        .post("/v1/preflight", &ask("10.1.0.0/16"))
        .await
        .unwrap();
    assert!(report.conflicts.is_empty());
    let mut east = Node::new("east", "gw-1");
    east.join(&broker, &token, json!({"pod": ["10.1.0.0/16"]}))
        .await
        .unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_joins_at_once_that_overlap_exactly_one_wins_200_times() {
    let broker = Broker::start().await;
    for round in 0..200u32 {
        let block = format!("10.{}.0.0/16", 10 + round % 200);
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let files = (
            broker.token(&a, "member").await,
            broker.token(&b, "member").await,
        );
        let (mut first, mut second) = (Node::new(&a, "gw-1"), Node::new(&b, "gw-1"));
        // The clients are warm, so that the requests meet in the broker and not in the handshake.
        let cidrs = json!({"pod": [block]});
        let (one, two) = tokio::join!(
            first.join(&broker, &files.0, cidrs.clone()),
            second.join(&broker, &files.1, cidrs.clone()),
        );
        let (winner, refused) = match (one, two) {
            (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(
            refused.code,
            Code::CidrConflict,
            "round {round}: {refused:?}"
        );
        let details = refused.details.unwrap();
        let conflicts: Vec<Conflict> =
            serde_json::from_value(details["conflicts"].clone()).unwrap();
        assert_eq!(
            conflicts[0].existing.owner,
            Owner::Cluster(winner.cluster.clone())
        );
        assert_ne!(conflicts[0].wanted.owner, conflicts[0].existing.owner);
        // The loser's token is still good for another block.
        let (loser, file) = if winner.cluster.as_str() == a {
            (&mut second, &files.1)
        } else {
            (&mut first, &files.0)
        };
        if round % 50 == 0 {
            let other = json!({"pod": [format!("172.{}.0.0/16", 16 + round / 50)]});
            loser.join(&broker, file, other).await.unwrap();
        }
    }
    broker.stop().await;
}
