use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::super::fake::{Answer, client, list, status};
use super::*;

/// Generous: a back-off is about a second, and machines are slow.
const LIMIT: Duration = Duration::from_mins(1);

fn node(block: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "resourceVersion": version.to_string()}, "spec": {"podCIDRs": [block]}})
}

async fn until(following: &mut Following, wanted: &str) {
    let wanted: Vec<Cidr> = wanted
        .split_whitespace()
        .map(|c| c.parse().unwrap())
        .collect();
    let seen = following
        .prefixes
        .wait_for(|now| now.as_ref() == Some(&wanted));
    let late = tokio::time::timeout(LIMIT, seen).await;
    late.expect("in time").expect("the task lives");
}

/// A server whose list and whose watches are set by the test.
struct Server {
    listed: Arc<Mutex<Result<Value, u16>>>,
    watches: mpsc::Receiver<mpsc::Sender<Value>>,
    client: Client,
}

fn server(first: Value) -> Server {
    let listed = Arc::new(Mutex::new(Ok(first)));
    let (opened, watches) = mpsc::channel(8);
    let state = Arc::clone(&listed);
    let client = client(move |uri| {
        assert!(uri.starts_with("/api/v1/nodes?"), "{uri}");
        assert!(uri.contains("fieldSelector=metadata.name%3Da"), "{uri}");
        if uri.contains("watch=") {
            let (sender, receiver) = mpsc::channel(8);
            opened.try_send(sender).expect("few watches");
            return Answer::Stream(receiver);
        }
        match &*state.lock().unwrap() {
            Ok(node) => Answer::Object(list(std::slice::from_ref(node), None)),
            Err(code) => Answer::Status(*code, "away"),
        }
    });
    Server {
        listed,
        watches,
        client,
    }
}

#[tokio::test]
async fn blocks_are_followed_through_changes_410_gone_and_an_outage() {
    let mut server = server(node("10.1.0.0/24", 1));
    let mut following = follow(
        server.client.clone(),
        "a".to_owned(),
        PrefixSource::Node,
        false,
    );
    until(&mut following, "10.1.0.0/24").await;

    let watch = server.watches.recv().await.unwrap();
    let event = json!({"type": "MODIFIED", "object": node("10.2.0.0/24", 2)});
    watch.send(event).await.unwrap();
    until(&mut following, "10.2.0.0/24").await;

    // The server has forgotten the version that the watch goes on from.
    *server.listed.lock().unwrap() = Ok(node("10.3.0.0/24", 90));
    let event = json!({"type": "ERROR", "object": status(410, "too old resource version")});
    watch.send(event).await.unwrap();
    until(&mut following, "10.3.0.0/24").await;

    // The watch ends and lists fail: what was known stands, until the server is back.
    let watch = server.watches.recv().await.unwrap();
    *server.listed.lock().unwrap() = Err(503);
    let event = json!({"type": "ERROR", "object": status(410, "too old resource version")});
    watch.send(event).await.unwrap();
    drop(watch);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        *following.prefixes.borrow(),
        Some(vec!["10.3.0.0/24".parse().unwrap()])
    );
    *server.listed.lock().unwrap() = Ok(node("10.4.0.0/24", 120));
    until(&mut following, "10.4.0.0/24").await;
}

#[tokio::test]
async fn kinds_that_the_server_does_not_know_are_no_obstacle() {
    let (open, _kept) = mpsc::channel(8);
    let client = client(move |uri| {
        if !uri.starts_with("/api/v1/nodes?") {
            return Answer::Status(404, "the server could not find the requested resource");
        }
        if uri.contains("watch=") {
            // One that never says anything.
            let (sender, receiver) = mpsc::channel(1);
            open.try_send(sender).expect("few watches");
            return Answer::Stream(receiver);
        }
        Answer::Object(list(&[node("10.1.0.0/24", 1)], None))
    });
    let mut following = follow(client, "a".to_owned(), PrefixSource::Auto, false);
    until(&mut following, "10.1.0.0/24").await;
}

#[tokio::test]
async fn where_nodes_have_no_blocks_that_is_known_at_once() {
    let client = client(|uri| panic!("nothing is to be asked, but {uri} was"));
    let mut following = follow(client, "a".to_owned(), PrefixSource::None, false);
    until(&mut following, "").await;
}

#[test]
fn each_outage_is_told_once_when_it_begins_and_once_when_it_ends() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let object = || serde_json::from_value(node("10.1.0.0/24", 1)).unwrap();
    let mut outage = Outage::default();
    assert!(!outage.ended_by(&Event::InitDone), "there was none");
    assert!(outage.begins(at(0)) && !outage.begins(at(30)));
    // A new list is about to be asked for, and fails.
    assert!(!outage.ended_by(&Event::Init) && !outage.begins(at(60)));
    // The watch goes on where it was, without a list.
    assert!(outage.ended_by(&Event::Apply(object())));
    assert!(!outage.ended_by(&Event::Apply(object())));
    assert!(outage.begins(at(90)) && outage.ended_by(&Event::InitDone));
    // Nothing was new between the two.
    assert!(outage.begins(at(100)) && !outage.begins(at(130)));
    assert!(outage.begins(at(130) + OUTAGE) && !outage.begins(at(160) + OUTAGE));
}
