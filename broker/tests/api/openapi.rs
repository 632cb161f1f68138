//! The description of the API stands in `docs/openapi.json` and does not drift.

use std::path::Path;

use crate::common::Broker;

#[tokio::test(flavor = "multi_thread")]
async fn the_document_in_docs_is_the_one_that_the_broker_serves() {
    let broker = Broker::start().await;
    let (status, served) = broker
        .anonymous()
        .raw("GET", "/v1/openapi.json", vec![])
        .await;
    assert_eq!(status, 200);
    let served: serde_json::Value = serde_json::from_slice(&served).unwrap();
    let text = serde_json::to_string_pretty(&served).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/openapi.json is out of date: run this test once with UPDATE_OPENAPI=1"
    );
    broker.stop().await;
}
