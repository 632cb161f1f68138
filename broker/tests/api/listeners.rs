//! Several listeners of one gateway, each with its own proof.

use serde_json::{Value, json};
use subsea_api::snapshot::{Gateway, WatchEvent};
use subsea_api::{Code, Problem, PublicKey};
use x25519_dalek::StaticSecret;

use crate::common::{Broker, Client, Node, Refused};

/// A listener with the key, the port and the candidate of its number.
fn listener(n: u8, stripe: u16, for_slot: Option<u16>) -> (Value, StaticSecret) {
    let secret = StaticSecret::from([n + 100; 32]);
    let key = PublicKey::from_bytes(*x25519_dalek::PublicKey::from(&secret).as_bytes()).unwrap();
    let port = 51820 + u16::from(n);
    let mut listener = json!({"id": n.to_string(), "public_key": key, "port": port, "stripe": stripe, "slot": 0,
        "state": "active", "candidates": [format!("192.0.2.1:{port}")]});
    if let Some(slot) = for_slot {
        listener["for_slot"] = json!(slot);
    }
    (listener, secret)
}

async fn register(
    node: &Node,
    client: &Client,
    listeners: &[(Value, StaticSecret)],
) -> Refused<Gateway> {
    let mut body = Vec::new();
    for (listener, secret) in listeners {
        body.push(node.proven(client, listener.clone(), secret).await);
    }
    let body = json!({ "listeners": body });
    client.call("PUT", &node.path(), Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_shows_possession_of_every_key() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let client = east.client(&broker);
    let four: Vec<_> = (0..4).map(|n| listener(n, u16::from(n), None)).collect();
    let gateway = register(&east, &client, &four).await.unwrap();
    let ports: Vec<_> = gateway.listeners.iter().map(|l| l.port).collect();
    assert_eq!(ports, [51820, 51821, 51822, 51823]);
    // Others read what was written, and `for_slot` arrives.
    let slots: Vec<_> = (0..16)
        .map(|n| listener(n, 0, Some(u16::from(n))))
        .collect();
    let gateway = register(&east, &client, &slots).await.unwrap();
    let mut watch = client.watch("").await.unwrap();
    let Some(WatchEvent::Snapshot { snapshot }) = watch.next().await else {
        panic!("no snapshot");
    };
    assert_eq!(snapshot.clusters["east"].gateways["gw-1"], gateway);
    assert_eq!(gateway.listeners[15].for_slot, Some(15));
    // One bad proof among good ones, and nothing is registered: here of a key whose private half we do not have.
    let mut forged = four;
    forged[3].1 = StaticSecret::from([1; 32]);
    let refused = register(&east, &client, &forged).await.unwrap_err();
    assert_eq!(refused.code, Code::ProofInvalid);
    let mut watch = client.watch("").await.unwrap();
    let Some(WatchEvent::Snapshot { snapshot }) = watch.next().await else {
        panic!("no snapshot");
    };
    assert_eq!(snapshot.clusters["east"].gateways["gw-1"], gateway);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_that_make_no_sense_are_refused() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let client = east.client(&broker);
    let zero = || listener(0, 0, None);
    let mut same_key = listener(1, 1, None);
    same_key.0["public_key"] = zero().0["public_key"].clone();
    same_key.1 = zero().1;
    for (what, listeners) in [
        ("no listener", vec![]),
        (
            "17 listeners",
            (0..17).map(|n| listener(n, u16::from(n), None)).collect(),
        ),
        ("a stripe twice", vec![zero(), listener(1, 0, None)]),
        (
            "a slot twice",
            vec![listener(0, 0, Some(1)), listener(1, 0, Some(1))],
        ),
        ("a key twice", vec![zero(), same_key]),
        ("a gap", vec![zero(), listener(1, 2, None)]),
        (
            "a slot beyond all",
            vec![zero(), listener(1, 0, Some(1000))],
        ),
    ] {
        let refused = register(&east, &client, &listeners).await;
        let Problem { code, message, .. } = refused.unwrap_err();
        assert_eq!(code, Code::BadRequest, "{what}: {message}");
    }
    broker.stop().await;
}
