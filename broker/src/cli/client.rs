//! The broker's admin API over mutual TLS. Shell.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use subsea_api::admin::AdminFile;
use subsea_api::{Code, Problem};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the broker may think, and how long a stream of bytes may pause.
const SILENCE: Duration = Duration::from_secs(30);
/// The largest JSON answer: far above a full fleet.
const MAX_ANSWER: usize = 256 << 20;
/// The largest admin file.
const MAX_ADMIN_FILE: u64 = 256 << 10;

/// Why the broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The admin file cannot be read.
    #[error("cannot read the admin file `{}`: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The admin file is no admin file; what is wrong is not quoted, for a private key is in it.
    #[error("`{}` is not a complete admin file: was it cut or edited?", path.display())]
    Malformed { path: PathBuf },
    /// No connection.
    #[error("the broker at {url} cannot be reached: {cause}")]
    Unreachable { url: String, cause: String },
    /// Somebody answers, but not the broker that wrote the admin file.
    #[error(
        "the broker at {url} is not the one that made `{}`: its certificate is of another authority",
        path.display()
    )]
    WrongCa { url: String, path: PathBuf },
    /// The broker's certificate is for other names.
    #[error("the broker at {url} does not go by that name: its certificate is for other hosts")]
    WrongName { url: String },
    /// The broker's TLS turned the admin certificate away.
    #[error(
        "the broker at {url} does not take the certificate in `{}`: {alert}",
        path.display()
    )]
    Refused {
        url: String,
        path: PathBuf,
        alert: rustls::Error,
    },
    /// TLS failed otherwise.
    #[error("no secure connection to the broker at {url}: {source}")]
    Tls { url: String, source: rustls::Error },
    /// The connection broke or stalled.
    #[error("the broker at {url} broke off: {cause}")]
    BrokenOff { url: String, cause: String },
    /// An answer that no broker gives.
    #[error("what answers at {url} is no Subsea broker, or of another version: {what}")]
    Protocol { url: String, what: String },
    /// The broker refused.
    #[error("{0}")]
    Problem(Problem),
    /// What was downloaded cannot be kept.
    #[error("cannot write what the broker sent: {0}")]
    Sink(std::io::Error),
}

impl ClientError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let reissue =
            "make a new one on the broker's host with `subsea-broker admin reissue --data-dir DIR`";
        match self {
            Self::File { .. } => Some(
                "the broker writes `admin.yaml` into its data directory at its first start; only its user can read it"
                    .into(),
            ),
            Self::Malformed { .. } | Self::Refused { .. } => Some(reissue.into()),
            Self::Unreachable { .. } => Some(
                "is `subsea-broker serve` running there, and does a firewall let this host in? The URL is in the admin file"
                    .into(),
            ),
            Self::WrongCa { .. } => Some(format!(
                "use the `admin.yaml` in the data directory of the broker that runs there, or {reissue}"
            )),
            Self::WrongName { .. } => {
                Some("start the broker with `--advertise` and this URL, or correct the URL in the admin file".into())
            }
            Self::Problem(problem) if problem.code == Code::CertificateExpired => {
                Some(format!("the certificate in the admin file has expired: {reissue}"))
            }
            Self::Problem(problem) => problem.hint.clone(),
            Self::BrokenOff { .. } => Some("see the broker's log; whether it did what was asked shows in `audit list`".into()),
            Self::Tls { .. } | Self::Protocol { .. } | Self::Sink(_) => None,
        }
    }
}

/// A client of one broker.
pub(crate) struct AdminClient {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    path: PathBuf,
}

impl AdminClient {
    /// Reads the admin file; connects with the first request.
    pub(crate) fn open(path: &Path) -> Result<Self, ClientError> {
        let file = read(path)?;
        let malformed = || ClientError::Malformed {
            path: path.to_owned(),
        };
        let tls = tls(&file).ok_or_else(malformed)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let uri: hyper::Uri = file.url.parse().map_err(|_| malformed())?;
        if uri.scheme_str() != Some("https") || uri.host().is_none_or(str::is_empty) {
            return Err(malformed());
        }
        Ok(Self {
            http: Client::builder(TokioExecutor::new()).build(https),
            url: file.url.trim_end_matches('/').to_owned(),
            path: path.to_owned(),
        })
    }

    /// `GET`, with a JSON answer.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.ask(Method::GET, path, None).await?).await
    }

    /// Sends `body` as JSON, with a JSON answer.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.protocol(&e))?;
        let body = Some(("application/json", Bytes::from(body)));
        self.json(self.ask(method, path, body).await?).await
    }

    /// Asks for something that has no answer but success.
    pub(crate) async fn order(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.ask(method, path, None).await.map(drop)
    }

    /// Copies the answer to `sink`; gives its length in bytes.
    pub(crate) async fn download(
        &self,
        path: &str,
        sink: &mut impl Write,
    ) -> Result<u64, ClientError> {
        let mut body = self.ask(Method::GET, path, None).await?.into_body();
        let mut length = 0;
        while let Some(frame) = timeout(SILENCE, body.frame())
            .await
            .map_err(|_| self.stalled())?
        {
            let frame = frame.map_err(|e| self.broken_off(&e))?;
            if let Some(data) = frame.data_ref() {
                sink.write_all(data).map_err(ClientError::Sink)?;
                length += data.len() as u64;
            }
        }
        Ok(length)
    }

    /// Sends a file, with a JSON answer.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: Vec<u8>,
    ) -> Result<T, ClientError> {
        let body = Some(("application/octet-stream", Bytes::from(bytes)));
        self.json(self.ask(Method::POST, path, body).await?).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some((content_type, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *content_type);
        }
        let body = Full::new(body.map(|(_, bytes)| bytes).unwrap_or_default());
        let request = request.body(body).map_err(|e| self.protocol(&e))?;
        let response = timeout(SILENCE, self.http.request(request))
            .await
            .map_err(|_| self.stalled())?
            .map_err(|e| self.explain(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await?;
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => self.protocol(&format_args!("status {status} without a reason")),
        })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, ClientError> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|e| self.protocol(&e))
    }

    /// The whole answer; zeroed after use, for a join file may be in it.
    async fn body(&self, response: Response<Incoming>) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        let body = timeout(SILENCE, body).await.map_err(|_| self.stalled())?;
        let body = body.map_err(|e| self.broken_off(e.as_ref()))?;
        Ok(Zeroizing::new(body.to_bytes().to_vec()))
    }

    fn explain(&self, error: &hyper_util::client::legacy::Error) -> ClientError {
        use rustls::{CertificateError as Bad, Error as Tls};
        let url = self.url.clone();
        match tls_cause(error) {
            Some(Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
                ClientError::WrongCa {
                    url,
                    path: self.path.clone(),
                }
            }
            Some(Tls::InvalidCertificate(
                Bad::NotValidForName | Bad::NotValidForNameContext { .. },
            )) => ClientError::WrongName { url },
            Some(alert @ Tls::AlertReceived(_)) => ClientError::Refused {
                url,
                path: self.path.clone(),
                alert: alert.clone(),
            },
            Some(source) => ClientError::Tls {
                url,
                source: source.clone(),
            },
            None if error.is_connect() => ClientError::Unreachable {
                url,
                cause: root_cause(error),
            },
            None => self.broken_off(error),
        }
    }

    fn broken_off(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::BrokenOff {
            url: self.url.clone(),
            cause: root_cause(error),
        }
    }

    fn stalled(&self) -> ClientError {
        ClientError::BrokenOff {
            url: self.url.clone(),
            cause: format!("nothing came for {} s", SILENCE.as_secs()),
        }
    }

    fn protocol(&self, what: &dyn std::fmt::Display) -> ClientError {
        ClientError::Protocol {
            url: self.url.clone(),
            what: what.to_string(),
        }
    }
}

fn read(path: &Path) -> Result<AdminFile, ClientError> {
    let unreadable = |source| ClientError::File {
        path: path.to_owned(),
        source,
    };
    let malformed = || ClientError::Malformed {
        path: path.to_owned(),
    };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_ADMIN_FILE {
        return Err(malformed());
    }
    let text = Zeroizing::new(std::fs::read(path).map_err(unreadable)?);
    let text = std::str::from_utf8(&text).map_err(|_| malformed())?;
    serde_saphyr::from_str(text).map_err(|_| malformed())
}

fn tls(file: &AdminFile) -> Option<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(file.ca_pem.as_bytes()) {
        roots.add(ca.ok()?).ok()?;
    }
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(file.certificate_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(file.key_pem.as_bytes()).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.ok()?, key)
        .ok()
}

/// The TLS error inside an error, if there is one; `io::Error` hides what it wraps from `source()`.
fn tls_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost cause: what the kernel or the resolver said.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    match error.downcast_ref::<std::io::Error>() {
        Some(e) if e.kind() == std::io::ErrorKind::TimedOut => {
            format!("no answer within {} s", CONNECT.as_secs())
        }
        Some(_) | None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_admin_certificate_is_to_be_reissued() {
        let problem = Problem::new(Code::CertificateExpired, "the certificate has expired");
        let error = ClientError::Problem(problem.hint("renew it"));
        assert_eq!(error.to_string(), "the certificate has expired");
        let hint = "the certificate in the admin file has expired: make a new one on the broker's host with \
                    `subsea-broker admin reissue --data-dir DIR`";
        assert_eq!(error.hint().as_deref(), Some(hint));
    }

    #[test]
    fn the_cause_is_what_the_kernel_said() {
        let refused = std::io::Error::from_raw_os_error(111);
        assert_eq!(root_cause(&refused), "Connection refused (os error 111)");
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "deadline has elapsed");
        assert_eq!(root_cause(&late), "no answer within 5 s");
    }
}
