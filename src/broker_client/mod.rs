//! The node's side of the broker's HTTPS API. Shell.
//!
//! Strict: only TLS, and only the authorities of the fleet's bundle. The URLs are tried in order, beginning with
//! the one that answered last. Everything that is sent may be sent twice: the broker takes a repeat of a join,
//! a registration or a leave for what it is.

mod admin;
mod connect;
mod error;
mod frames;
mod watch;

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use subsea_api::enrolment::{
    AdmitRequest, AdmitResponse, EnrolRequest, ServiceAccountKeys, WithdrawRequest,
};
use subsea_api::member::{
    Challenge, GatewayRegistration, JoinRequest, JoinResponse, Lease, PreflightReport,
    PreflightRequest, RenewRequest, RenewResponse,
};
use subsea_api::snapshot::{BrokerInfo, Gateway};
use subsea_api::{ClusterId, NodeName, Problem};
use zeroize::Zeroizing;

use self::connect::Connector;
pub use self::error::ClientError;
pub use self::watch::WatchStream;

/// How long a request may take, its answer included; the watch stream is exempt after its head.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest answer that is read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// A client of one fleet's broker.
#[derive(Debug)]
pub struct BrokerClient {
    urls: Vec<Uri>,
    preferred: AtomicUsize,
    http: Client<HttpsConnector<Connector>, Full<Bytes>>,
    mark: Option<u32>,
}

impl BrokerClient {
    /// A client without a certificate: for the pre-flight and the join. Every socket gets the mark.
    ///
    /// # Errors
    /// [`ClientError::Bundle`] when the broker's URLs or authorities cannot be used.
    pub fn anonymous(broker: &BrokerInfo, mark: Option<u32>) -> Result<Self, ClientError> {
        Self::new(broker, None, mark)
    }

    /// A client with the node's certificate and key, both PEM.
    ///
    /// # Errors
    /// [`ClientError::Bundle`] as above; [`ClientError::Identity`] when certificate and key cannot be used.
    pub fn with_identity(
        broker: &BrokerInfo,
        certificate_pem: &str,
        key_pem: &str,
        mark: Option<u32>,
    ) -> Result<Self, ClientError> {
        Self::new(broker, Some((certificate_pem, key_pem)), mark)
    }

    fn new(
        broker: &BrokerInfo,
        identity: Option<(&str, &str)>,
        mark: Option<u32>,
    ) -> Result<Self, ClientError> {
        let urls: Vec<Uri> = broker
            .urls
            .iter()
            .map(|url| connect::parse_url(url))
            .collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err(ClientError::Bundle(
                "there is no URL of the broker".to_owned(),
            ));
        }
        let tls = connect::tls_config(&broker.ca_pem, identity)?;
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(Connector::new(mark));
        let http = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(2)
            .build(https);
        Ok(Self {
            urls,
            preferred: AtomicUsize::new(0),
            http,
            mark,
        })
    }

    /// The URL that answered last, or the first that is tried.
    pub fn url(&self) -> String {
        self.urls
            .get(self.preferred.load(Ordering::Relaxed))
            .map_or_else(String::new, connect::show_url)
    }

    /// Whether a broker that the bundle vouches for answers at all.
    pub async fn reach(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/healthz", Bytes::new())
            .await
            .map(|_| ())
    }

    /// Asks whether a join would succeed; burns nothing.
    pub async fn preflight(
        &self,
        request: &PreflightRequest,
    ) -> Result<PreflightReport, ClientError> {
        self.json(Method::POST, "/v1/preflight", Some(request))
            .await
    }

    /// Joins a cluster, or enrols a node of one.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinResponse, ClientError> {
        self.json(Method::POST, "/v1/join", Some(request)).await
    }

    /// Asks for a new certificate; an expired one is enough for 30 days.
    pub async fn renew(&self, request: &RenewRequest) -> Result<RenewResponse, ClientError> {
        self.json(Method::POST, "/v1/renew", Some(request)).await
    }

    /// Asks for what the proofs of a registration are made with.
    pub async fn challenge(&self) -> Result<Challenge, ClientError> {
        self.json(Method::POST, "/v1/challenge", None::<&()>).await
    }

    /// Registers a gateway's whole set of listeners.
    pub async fn register_gateway(
        &self,
        cluster: &ClusterId,
        node: &NodeName,
        registration: &GatewayRegistration,
    ) -> Result<Gateway, ClientError> {
        let path = format!("/v1/clusters/{cluster}/gateways/{node}");
        self.json(Method::PUT, &path, Some(registration)).await
    }

    /// Renews the lease of a registered gateway.
    pub async fn renew_lease(
        &self,
        cluster: &ClusterId,
        node: &NodeName,
    ) -> Result<Lease, ClientError> {
        let path = format!("/v1/clusters/{cluster}/gateways/{node}/lease");
        self.json(Method::POST, &path, None::<&()>).await
    }

    /// Admits a cluster whose nodes enrol by their service accounts, or changes it.
    pub async fn admit(&self, request: &AdmitRequest) -> Result<AdmitResponse, ClientError> {
        self.json(Method::POST, "/v1/admit", Some(request)).await
    }

    /// Enrols the node that a service account token proves.
    pub async fn enrol(&self, request: &EnrolRequest) -> Result<JoinResponse, ClientError> {
        self.json(Method::POST, "/v1/enrol", Some(request)).await
    }

    /// Takes an admitted cluster out of the fleet; done too when it is no member.
    pub async fn withdraw(&self, request: &WithdrawRequest) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/withdraw", body(request)?)
            .await
            .map(|_| ())
    }

    /// Tells the broker which keys our cluster's service account tokens are signed with from now on.
    pub async fn put_service_accounts(
        &self,
        request: &ServiceAccountKeys,
    ) -> Result<(), ClientError> {
        self.call(Method::PUT, "/v1/service-accounts", body(request)?)
            .await
            .map(|_| ())
    }

    /// Ends the enrolment of an agent.
    pub async fn remove_agent(
        &self,
        cluster: &ClusterId,
        node: &NodeName,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/clusters/{cluster}/agents/{node}");
        self.call(Method::DELETE, &path, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Takes a gateway's record out of the fleet: our own, or one of our cluster whose lease is over.
    pub async fn remove_gateway(
        &self,
        cluster: &ClusterId,
        node: &NodeName,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/clusters/{cluster}/gateways/{node}");
        self.call(Method::DELETE, &path, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Takes the whole cluster out of the fleet and releases its blocks.
    pub async fn leave(&self, cluster: &ClusterId, force: bool) -> Result<(), ClientError> {
        let path = format!("/v1/clusters/{cluster}?force={force}");
        self.call(Method::DELETE, &path, Bytes::new())
            .await
            .map(|_| ())
    }

    /// Opens the watch: the whole state, or, when the broker's history is `epoch`, what came after `since`.
    pub async fn watch(&self, epoch: Option<&str>, since: u64) -> Result<WatchStream, ClientError> {
        let path = match epoch {
            Some(epoch) => format!("/v1/watch?epoch={}&since={since}", connect::escape(epoch)),
            None => "/v1/watch".to_owned(),
        };
        let (url, answer) = self.send(&Method::GET, &path, &Bytes::new()).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(&url, answer).await);
        }
        WatchStream::new(connect::show_url(&url), answer)
    }

    /// The address that this host speaks to the broker from, by its routes.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when no URL resolves or has a route.
    pub async fn local_address_towards(&self) -> Result<IpAddr, ClientError> {
        let mut failure = None;
        for (_, url) in self.in_order() {
            match connect::local_address(url, self.mark).await {
                Ok(address) => return Ok(address),
                Err(error) => {
                    failure.get_or_insert(ClientError::Unreachable {
                        url: connect::show_url(url),
                        source: error.into(),
                    });
                }
            }
        }
        Err(failure.unwrap_or_else(|| ClientError::Bundle("there is no URL of the broker".into())))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        given: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let bytes = match given {
            Some(given) => body(given)?,
            None => Bytes::new(),
        };
        let (url, answer) = self.call(method, path, bytes).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            ClientError::Protocol(format!(
                "the broker at {} answered {path} with something else than expected: {error}",
                connect::show_url(&url)
            ))
        })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Uri, Bytes), ClientError> {
        let (url, answer) = self.send(&method, path, &body).await?;
        if !answer.status().is_success() {
            return Err(self.refusal(&url, answer).await);
        }
        let bytes = read_whole(&url, answer).await?;
        Ok((url, bytes))
    }

    /// Sends to one URL after the other until one answers, whatever it answers.
    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<(Uri, Response<Incoming>), ClientError> {
        let mut failure: Option<ClientError> = None;
        for (index, url) in self.in_order() {
            match self.send_to(url, method, path, body).await {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((url.clone(), answer));
                }
                // Of several failures the most telling is reported: an impostor rather than an unplugged cable.
                Err(error) => match &failure {
                    Some(earlier) if !matches!(earlier, ClientError::Unreachable { .. }) => {}
                    Some(_) if matches!(error, ClientError::Unreachable { .. }) => {}
                    Some(_) | None => failure = Some(error),
                },
            }
        }
        Err(failure.unwrap_or_else(|| ClientError::Bundle("there is no URL of the broker".into())))
    }

    async fn send_to(
        &self,
        url: &Uri,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let target = format!("{}{path}", connect::show_url(url));
        let mut request = Request::builder().method(method).uri(&target).header(
            header::USER_AGENT,
            concat!("subsea/", env!("CARGO_PKG_VERSION")),
        );
        if path.starts_with("/v1/watch") {
            request = request.header(header::ACCEPT_ENCODING, "gzip");
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.clone()))
            .map_err(|e| ClientError::Protocol(format!("`{target}` cannot be asked for: {e}")))?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.http.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error::classify(connect::show_url(url), &error)),
            Err(_) => Err(error::silent(connect::show_url(url), REQUEST_TIMEOUT)),
        }
    }

    /// What a broker says when it refuses: its [`Problem`], or that it is none of ours.
    async fn refusal(&self, url: &Uri, answer: Response<Incoming>) -> ClientError {
        let status = answer.status();
        let bytes = match read_whole(url, answer).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => ClientError::Protocol(format!(
                "{} answered HTTP {status} as no broker does",
                connect::show_url(url)
            )),
        }
    }

    /// All URLs, beginning with the one that answered last.
    fn in_order(&self) -> impl Iterator<Item = (usize, &Uri)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let (before, after) = self.urls.split_at(first.min(self.urls.len()));
        after
            .iter()
            .enumerate()
            .map(move |(i, u)| (first + i, u))
            .chain(before.iter().enumerate())
    }
}

/// A body that may hold a secret: it is zeroed once sent. The copies of the TLS stack are out of reach.
fn body(given: &impl Serialize) -> Result<Bytes, ClientError> {
    let bytes = serde_json::to_vec(given).map_err(|e| ClientError::Protocol(e.to_string()))?;
    Ok(Bytes::from_owner(Zeroizing::new(bytes)))
}

async fn read_whole(url: &Uri, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
    match tokio::time::timeout(REQUEST_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(
            ClientError::Protocol("the answer is larger than a broker's can be".to_owned()),
        ),
        Ok(Err(error)) => Err(error::classify(connect::show_url(url), &*error)),
        Err(_) => Err(error::silent(connect::show_url(url), REQUEST_TIMEOUT)),
    }
}

/// A new TLS key (ECDSA P-256), PEM.
///
/// # Errors
/// [`ClientError::Identity`] when the random source fails.
pub fn new_tls_key() -> Result<Zeroizing<String>, ClientError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| ClientError::Identity(format!("no TLS key can be made: {e}")))?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// A certificate request made with a TLS key, both PEM. The broker writes the subject.
///
/// # Errors
/// [`ClientError::Identity`] when the key cannot be read.
pub fn csr_pem(tls_key_pem: &str) -> Result<String, ClientError> {
    let bad = |e: rcgen::Error| ClientError::Identity(format!("the TLS key cannot be used: {e}"));
    let key = rcgen::KeyPair::from_pem(tls_key_pem).map_err(bad)?;
    let params = rcgen::CertificateParams::new(Vec::<String>::new()).map_err(bad)?;
    params
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(bad)
}

#[cfg(test)]
mod tests;
