//! A real broker on port 0 and clients of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::MultiGzDecoder;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rcgen::{CertificateParams, KeyPair};
use ring::hmac;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use subsea_api::admin::AdminFile;
use subsea_api::join_file::JoinFile;
use subsea_api::member::{Challenge, JoinResponse, proof_message};
use subsea_api::snapshot::{Gateway, WatchEvent};
use subsea_api::{Problem, PublicKey};
use subsea_broker::{ServeConfig, ServeError, serve};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) type Refused<T> = Result<T, Problem>;

/// A running broker.
pub(crate) struct Broker {
    pub(crate) dir: PathBuf,
    pub(crate) url: String,
    pub(crate) admin: Client,
    pub(crate) ca_pem: String,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
    tmp: Option<TempDir>,
}

pub(crate) fn config(dir: &Path) -> ServeConfig {
    ServeConfig {
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        fleet: Some("f1".parse().unwrap()),
        pools: Vec::new(),
        certificate_lifetime: Duration::from_hours(24),
        lease: subsea_broker::LEASE,
        publish_admin: None,
    }
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut ServeConfig)) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = config(tmp.path());
        change(&mut config);
        let mut broker = Self::start_in(config).await.unwrap();
        broker.tmp = Some(tmp);
        broker
    }

    pub(crate) async fn start_in(config: ServeConfig) -> Result<Self, ServeError> {
        let dir = config.data_dir.clone();
        // An earlier broker's file may still be there.
        let stamp = |dir: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(dir.join("listen"))
                .ok()
                .map(|m| (m.ino(), m.mtime(), m.mtime_nsec()))
        };
        let before = stamp(&dir);
        let (stop, stopped) = oneshot::channel();
        let mut task = tokio::spawn(serve(config, async {
            let _ = stopped.await;
        }));
        let address = loop {
            if stamp(&dir) != before
                && let Ok(text) = std::fs::read_to_string(dir.join("listen"))
            {
                break text.trim().to_owned();
            }
            tokio::select! {
                ended = &mut task => return Err(ended.unwrap().expect_err("it ended by itself")),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        };
        let text = std::fs::read_to_string(dir.join("admin.yaml")).unwrap();
        let file: AdminFile = serde_saphyr::from_str(&text).unwrap();
        let url = format!("https://{address}");
        let identity = (file.certificate_pem.clone(), file.key_pem.clone());
        Ok(Self {
            admin: Client::new(&url, &file.ca_pem, Some(&identity)),
            ca_pem: file.ca_pem.clone(),
            url,
            dir,
            stop: Some(stop),
            task,
            tmp: None,
        })
    }

    /// Stops it and gives its directory back.
    pub(crate) async fn stop(mut self) -> Option<TempDir> {
        let _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap().unwrap();
        self.tmp.take()
    }

    pub(crate) fn anonymous(&self) -> Client {
        Client::new(&self.url, &self.ca_pem, None)
    }

    pub(crate) async fn token(&self, cluster: &str, role: &str) -> JoinFile {
        let body = json!({"cluster": cluster, "role": role, "ttl_seconds": 900});
        self.admin.post("/v1/admin/tokens", &body).await.unwrap()
    }

    /// Joins with the default node `gw-1` and the given pod block.
    pub(crate) async fn member(&self, cluster: &str, pod: &str) -> Node {
        let token = self.token(cluster, "member").await;
        let mut node = Node::new(cluster, "gw-1");
        node.join(self, &token, json!({"pod": [pod]}))
            .await
            .unwrap();
        node
    }

    pub(crate) async fn enrol(&self, cluster: &str, role: &str, name: &str) -> Node {
        let token = self.token(cluster, role).await;
        let mut node = Node::new(cluster, name);
        node.join(self, &token, json!({})).await.unwrap();
        node
    }
}

/// A client with or without a certificate.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

pub(crate) fn tls_config(
    ca_pem: &str,
    identity: Option<&(String, String)>,
) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    }
}

impl Client {
    pub(crate) fn new(url: &str, ca_pem: &str, identity: Option<&(String, String)>) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_config(ca_pem, identity))
            .https_only()
            .enable_http1()
            .build();
        Self {
            url: url.to_owned(),
            http: HyperClient::builder(TokioExecutor::new()).build(connector),
        }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        gzip: bool,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if gzip {
            request = request.header("accept-encoding", "gzip");
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        self.http.request(request).await.unwrap()
    }

    pub(crate) async fn raw(&self, method: &str, path: &str, body: Vec<u8>) -> (u16, Bytes) {
        let response = self.send(method, path, body, false).await;
        let status = response.status().as_u16();
        (
            status,
            response.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Refused<T> {
        let body = body
            .map(|b| serde_json::to_vec(b).unwrap())
            .unwrap_or_default();
        let (status, bytes) = self.raw(method, path, body).await;
        if (200..300).contains(&status) {
            let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            return Ok(serde_json::from_slice(text).unwrap());
        }
        let problem: Problem = serde_json::from_slice(&bytes)
            .unwrap_or_else(|e| panic!("{method} {path}: {status} {e}: {bytes:?}"));
        assert_eq!(problem.code.status(), status);
        Err(problem)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Refused<T> {
        self.call("GET", path, None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Refused<T> {
        self.call("POST", path, Some(body)).await
    }

    /// The answer, or nothing when the broker is gone before it came.
    pub(crate) async fn try_post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Option<T> {
        let body = Bytes::from(serde_json::to_vec(body).unwrap());
        let uri = format!("{}{path}", self.url);
        let request = Request::post(uri).body(Full::new(body)).unwrap();
        let response = self.http.request(request).await.ok()?;
        let status = response.status();
        let bytes = response.into_body().collect().await.ok()?.to_bytes();
        assert!(status.is_success(), "{status} {bytes:?}");
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) async fn delete(&self, path: &str) -> Refused<()> {
        self.call("DELETE", path, None::<&()>).await
    }

    pub(crate) async fn watch(&self, query: &str) -> Refused<Watch> {
        self.watch_with(query, false).await
    }

    pub(crate) async fn watch_with(&self, query: &str, gzip: bool) -> Refused<Watch> {
        let response = self
            .send("GET", &format!("/v1/watch{query}"), Vec::new(), gzip)
            .await;
        if !response.status().is_success() {
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            return Err(serde_json::from_slice(&bytes).unwrap());
        }
        let zipped = response
            .headers()
            .get("content-encoding")
            .is_some_and(|v| v == "gzip");
        assert_eq!(zipped, gzip);
        Ok(Watch {
            body: response.into_body(),
            gzip: gzip.then(|| MultiGzDecoder::new(Vec::new())),
            buffer: Vec::new(),
        })
    }
}

/// An open stream.
pub(crate) struct Watch {
    body: Incoming,
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame())
                .await
                .expect("no byte for 30 s")?
                .ok()?;
            let data = frame.into_data().unwrap();
            match &mut self.gzip {
                Some(decoder) => {
                    decoder.write_all(&data).unwrap();
                    decoder.flush().unwrap();
                    self.buffer.append(decoder.get_mut());
                }
                None => self.buffer.extend_from_slice(&data),
            }
        }
    }

    /// The next event that is no heartbeat.
    pub(crate) async fn news(&mut self) -> Option<WatchEvent> {
        loop {
            match self.next().await? {
                WatchEvent::Heartbeat { .. } => {}
                event @ (WatchEvent::Snapshot { .. } | WatchEvent::Delta { .. }) => {
                    return Some(event);
                }
            }
        }
    }
}

/// A node with its TLS key and WireGuard key.
pub(crate) struct Node {
    pub(crate) cluster: String,
    pub(crate) name: String,
    pub(crate) key: KeyPair,
    pub(crate) certificate: Option<String>,
    pub(crate) wireguard: x25519_dalek::StaticSecret,
}

impl Node {
    pub(crate) fn new(cluster: &str, name: &str) -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).unwrap();
        Self {
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            key: KeyPair::generate().unwrap(),
            certificate: None,
            wireguard: bytes.into(),
        }
    }

    pub(crate) fn csr(&self) -> String {
        CertificateParams::default()
            .serialize_request(&self.key)
            .unwrap()
            .pem()
            .unwrap()
    }

    pub(crate) fn join_body(&self, file: &JoinFile, cidrs: &Value) -> Value {
        json!({
            "fleet": file.fleet, "token": file.token.expose(), "cluster": self.cluster,
            "node": self.name, "csr_pem": self.csr(), "cidrs": cidrs,
        })
    }

    pub(crate) async fn join(
        &mut self,
        broker: &Broker,
        file: &JoinFile,
        cidrs: Value,
    ) -> Refused<JoinResponse> {
        let body = self.join_body(file, &cidrs);
        let response: JoinResponse = broker.anonymous().post("/v1/join", &body).await?;
        self.certificate = Some(response.certificate_pem.clone());
        Ok(response)
    }

    pub(crate) fn client(&self, broker: &Broker) -> Client {
        let identity = (self.certificate.clone().unwrap(), self.key.serialize_pem());
        Client::new(&broker.url, &broker.ca_pem, Some(&identity))
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(*x25519_dalek::PublicKey::from(&self.wireguard).as_bytes()).unwrap()
    }

    pub(crate) fn path(&self) -> String {
        format!("/v1/clusters/{}/gateways/{}", self.cluster, self.name)
    }

    /// A registration of `key`, proven with this node's own secret.
    pub(crate) async fn registration(
        &self,
        client: &Client,
        key: PublicKey,
        endpoint: &str,
    ) -> Value {
        let port: u16 = endpoint.rsplit(':').next().unwrap().parse().unwrap();
        let listener = json!({"id": "0", "public_key": key, "port": port, "stripe": 0, "slot": 7,
            "state": "active", "candidates": [endpoint]});
        json!({"listeners": [self.proven(client, listener, &self.wireguard).await]})
    }

    /// `listener` with a challenge of its own, answered with `secret`.
    pub(crate) async fn proven(
        &self,
        client: &Client,
        listener: Value,
        secret: &x25519_dalek::StaticSecret,
    ) -> Value {
        let challenge: Challenge = client.post("/v1/challenge", &()).await.unwrap();
        let message = proof_message(
            &"f1".parse().unwrap(),
            &self.cluster.parse().unwrap(),
            &self.name.parse().unwrap(),
            &serde_json::from_value(listener["public_key"].clone()).unwrap(),
            &challenge.nonce,
        );
        let broker = x25519_dalek::PublicKey::from(*challenge.broker_key.as_bytes());
        let shared = secret.diffie_hellman(&broker);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
        let proof = STANDARD.encode(hmac::sign(&mac, &message));
        json!({"listener": listener, "nonce": challenge.nonce, "proof": proof})
    }

    pub(crate) async fn register(&self, broker: &Broker, endpoint: &str) -> Refused<Gateway> {
        let client = self.client(broker);
        let body = self
            .registration(&client, self.public_key(), endpoint)
            .await;
        client.call("PUT", &self.path(), Some(&body)).await
    }
}
