//! `serve --publish-admin`: the real binary against an API server of ours, which knows one Secret and can refuse.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use subsea_api::admin::AdminFile;

use crate::support::{command, run};

const SECRET: &str = "/api/v1/namespaces/subsea-broker/secrets/subsea-broker-admin";
const URL: &str = "https://broker.example:8443";

/// What the API server has and was asked.
#[derive(Default)]
struct Api {
    /// What it answers instead, first one first.
    refusals: VecDeque<u16>,
    data: Value,
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Api>>;

/// Serves until the test ends.
fn api(at: SocketAddr, shared: Shared) {
    let listener = TcpListener::bind(at).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let router = axum::Router::new().fallback(answer).with_state(shared);
            axum::serve(listener, router).await.unwrap();
        });
    });
}

async fn answer(
    State(api): State<Shared>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    let mut api = api.lock().unwrap();
    let path = uri.path();
    api.asked.push(format!("{method} {path}"));
    if let Some(code) = api.refusals.pop_front() {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("no: {code}"), "reason": "Test", "code": code});
        return (StatusCode::from_u16(code).unwrap(), Json(status));
    }
    assert_eq!(path, SECRET);
    if method == Method::PATCH {
        assert!(uri.query().unwrap().contains("fieldManager=subsea-broker"));
        let patch: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(patch.as_object().unwrap().len(), 1, "nothing but the data");
        api.data = patch["data"].clone();
    } else {
        assert_eq!(method, Method::GET);
    }
    let secret = json!({"kind": "Secret", "apiVersion": "v1", "type": "Opaque", "data": api.data,
        "metadata": {"name": "subsea-broker-admin", "namespace": "subsea-broker"}});
    (StatusCode::OK, Json(secret))
}

/// A broker that ends with the test.
struct Publisher {
    child: Child,
}

impl Publisher {
    fn start(dir: &Path, api: SocketAddr) -> Self {
        let kubeconfig = dir.join("kubeconfig");
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        fs::write(&kubeconfig, text.to_string()).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = command()
            .args(["serve", "--listen", "127.0.0.1:0", "--advertise", URL])
            .args(["--publish-admin", "subsea-broker/subsea-broker-admin"])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The admin file in the Secret.
fn published(api: &Shared) -> Option<AdminFile> {
    let data = api.lock().unwrap().data["admin.yaml"].clone();
    let text = STANDARD.decode(data.as_str()?).unwrap();
    Some(serde_saphyr::from_str(std::str::from_utf8(&text).unwrap()).unwrap())
}

#[test]
fn the_admin_file_is_kept_in_its_secret_whatever_stands_against_it_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    // Nobody there: the broker serves all the same.
    let publisher = Publisher::start(dir.path(), at);
    until("the broker listens", || {
        dir.path().join("data/listen").exists()
    });
    until("the failure is told", || {
        log().contains("could not get the Secret")
    });
    assert!(log().contains("is the API server there"), "{}", log());
    let shared = Shared::default();
    shared.lock().unwrap().refusals = VecDeque::from([403, 404]);
    api(at, shared.clone());
    until("it is published", || published(&shared).is_some());
    let text = log();
    for told in [
        "does not let the broker get the Secret",
        "`get` and `patch`",
        "does not exist",
        "make it, empty",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
    let file = published(&shared).unwrap();
    assert_eq!(file.url, URL);
    // It is the operators' key, which the log must not show.
    let kept = fs::read_to_string(dir.path().join("data/admin.yaml")).unwrap();
    let kept: AdminFile = serde_saphyr::from_str(&kept).unwrap();
    assert_eq!((&file.key_pem, &file.ca_pem), (&kept.key_pem, &kept.ca_pem));
    let body = file.key_pem.lines().nth(1).unwrap();
    assert!(
        !text.contains(body) && !text.contains("PRIVATE KEY"),
        "{text}"
    );

    // A new one replaces it.
    let data = dir.path().join("data");
    run(&format!("admin reissue --data-dir {}", data.display())).good();
    until("the new one is published", || {
        published(&shared).is_some_and(|now| now.key_pem != file.key_pem)
    });
    // Nothing else was asked for, and a broker that starts again has nothing to change.
    drop(publisher);
    shared.lock().unwrap().asked.clear();
    fs::remove_file(dir.path().join("data/listen")).unwrap();
    let _publisher = Publisher::start(dir.path(), at);
    until("it looks", || !shared.lock().unwrap().asked.is_empty());
    until("the broker listens", || {
        dir.path().join("data/listen").exists()
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(shared.lock().unwrap().asked, [format!("GET {SECRET}")]);
}

#[test]
fn a_secret_without_a_namespace_is_no_name() {
    let text = run("serve --data-dir /nowhere --listen 127.0.0.1:0 --publish-admin admin").bad(64);
    assert!(text.contains("NAMESPACE/NAME"), "{text}");
}
