use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::super::fake::{Answer, client, list};
use super::*;

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": "10.1.0.0/24"}, "status": {"images": [{"names": ["x"]}]}})
}

#[tokio::test]
async fn lists_are_read_in_pages_and_begun_anew_when_they_have_become_too_old() {
    let gone = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&gone);
    let client = client(move |uri| {
        if !uri.starts_with("/api/v1/nodes?") {
            return Answer::Status(404, "not found");
        }
        assert!(uri.contains("limit=500"), "{uri}");
        if !uri.contains("continue=") {
            Answer::Object(list(&[node("a"), node("b")], Some("next")))
        } else if counter.fetch_add(1, Ordering::Relaxed) == 0 {
            Answer::Status(410, "too old")
        } else {
            Answer::Object(list(&[node("c")], None))
        }
    });
    let facts = read(&client).await.unwrap();
    let names: Vec<&str> = facts
        .objects(Query::Nodes)
        .iter()
        .filter_map(|n| super::super::facts::text(n, "/metadata/name"))
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(gone.load(Ordering::Relaxed), 2);
    assert!(
        facts.objects(Query::Nodes)[0]
            .pointer("/status/images")
            .is_none()
    );
    assert_eq!(facts.failures().count(), 0);
}

#[tokio::test]
async fn what_is_absent_is_not_there_and_what_is_forbidden_is_said() {
    let client = client(|uri| match uri.split('?').next().unwrap_or_default() {
        "/api/v1/nodes" => Answer::Object(list(&[node("a")], None)),
        "/api/v1/namespaces/kube-system/configmaps/kubeadm-config" => Answer::Status(
            403,
            "configmaps \"kubeadm-config\" is forbidden: User \"u\" cannot get resource \"configmaps\"",
        ),
        "/apis/networking.k8s.io/v1/servicecidrs" => Answer::Object(list(
            &[
                json!({"metadata": {"name": "kubernetes", "managedFields": []}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
            ],
            None,
        )),
        "/api/v1/namespaces/kube-system/pods" => {
            assert!(uri.contains("labelSelector=component"), "{uri}");
            Answer::Status(500, "etcdserver: request timed out")
        }
        _ => Answer::Status(404, "the server could not find the requested resource"),
    });
    let facts = read(&client).await.unwrap();
    let failures: Vec<String> = facts
        .failures()
        .map(|(q, why)| format!("{q}: {why}"))
        .collect();
    assert_eq!(
        failures,
        [
            "ConfigMap kube-system/kubeadm-config: configmaps \"kubeadm-config\" is forbidden: User \"u\" cannot get resource \"configmaps\" (403)",
            "pods in kube-system: etcdserver: request timed out (500)",
        ]
    );
    let discovered = super::super::decide(&facts, &super::super::Flags::default());
    assert_eq!(discovered.service.len(), 1);
    let missing = discovered.missing();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert_eq!(missing[0].flag, "--pod-cidr");
    assert_eq!(
        missing[0].why,
        "the nodes have 10.1.0.0/24, and nothing says out of which block further nodes get theirs; could not be read: \
         ConfigMap kube-system/kubeadm-config, pods in kube-system"
    );
    assert!(discovered.notes.iter().any(|n| {
        n.text
            .starts_with("ConfigMap kube-system/kubeadm-config could not be read:")
    }));
}

#[tokio::test]
async fn credentials_that_are_refused_are_one_error() {
    let client = client(|_| Answer::Status(401, "Unauthorized"));
    let error = read(&client).await.unwrap_err();
    assert!(matches!(error, DiscoverError::Unauthorized(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_one_error() {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let error = read(&client).await.unwrap_err();
    assert!(matches!(error, DiscoverError::Unreachable(_)), "{error}");
}
