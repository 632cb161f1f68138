//! Sockets and TLS towards the broker. Shell.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::error::ClientError;

/// How long one address may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads `https://host[:port]`, and nothing else.
pub(super) fn parse_url(text: &str) -> Result<Uri, ClientError> {
    let bad = || {
        ClientError::Bundle(format!(
            "`{text}` is no URL of a broker (https://HOST:PORT)"
        ))
    };
    let url: Uri = text.parse().map_err(|_| bad())?;
    let plain = url.path() == "/" && url.query().is_none();
    match url.authority() {
        Some(a) if url.scheme_str() == Some("https") && plain && !a.as_str().contains('@') => {
            Ok(url)
        }
        Some(_) | None => Err(bad()),
    }
}

/// `https://host:port`, without a slash at the end.
pub(super) fn show_url(url: &Uri) -> String {
    format!("https://{}", url.authority().map_or("", |a| a.as_str()))
}

/// Percent-encodes everything that is not plain in a query.
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// TLS that trusts the bundle and nothing else.
pub(super) fn tls_config(
    ca_pem: &str,
    identity: Option<(&str, &str)>,
) -> Result<rustls::ClientConfig, ClientError> {
    let bundle = |e: &dyn std::fmt::Display| {
        ClientError::Bundle(format!(
            "the CA certificates of the broker cannot be read: {e}"
        ))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| bundle(&e))?;
        roots.add(certificate).map_err(|e| bundle(&e))?;
    }
    if roots.is_empty() {
        return Err(bundle(&"there is none"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bundle(&e))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else {
        return Ok(config.with_no_client_auth());
    };
    let bad = |e: &dyn std::fmt::Display| {
        ClientError::Identity(format!(
            "this node's certificate and key cannot be used: {e}"
        ))
    };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| bad(&e))?;
    config
        .with_client_auth_cert(chain, key)
        .map_err(|e| bad(&e))
}

/// Makes marked TCP connections for hyper.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connector {
    mark: Option<u32>,
}

impl Connector {
    pub(super) fn new(mark: Option<u32>) -> Self {
        Self { mark }
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Connecting {
        let mark = self.mark;
        Box::pin(async move { connect(&url, mark).await.map(|s| TokioIo::new(Stream(s))) })
    }
}

async fn connect(url: &Uri, mark: Option<u32>) -> io::Result<TcpStream> {
    let mut failure = None;
    for address in resolve(url).await? {
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, connect_to(address, mark)).await;
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure.get_or_insert(error),
            Err(_) => failure.get_or_insert(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{address} did not accept a connection within 5 s"),
            )),
        };
    }
    Err(failure.unwrap_or_else(|| io::Error::other("the name has no address")))
}

async fn connect_to(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = marked(address, Type::STREAM, Protocol::TCP, mark)?;
    socket.set_tcp_nodelay(true)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await
}

/// A non-blocking socket for `address`. Without the mark, what we send to the broker could be routed into
/// the tunnel that it describes, so a mark that cannot be set is an error.
fn marked(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    mark: Option<u32>,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("the mark {mark:#x} cannot be set on a socket: {e}"),
            )
        })?;
    }
    Ok(socket)
}

/// The addresses of a URL's host.
async fn resolve(url: &Uri) -> io::Result<Vec<SocketAddr>> {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(443);
    let look_up = tokio::net::lookup_host((host, port));
    let addresses = tokio::time::timeout(CONNECT_TIMEOUT, look_up)
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("`{host}` did not resolve within 5 s"),
            )
        })?
        .map_err(|e| io::Error::new(e.kind(), format!("`{host}` does not resolve: {e}")))?;
    Ok(addresses.take(8).collect())
}

/// The source address of a datagram to the URL's host. Nothing is sent.
pub(super) async fn local_address(url: &Uri, mark: Option<u32>) -> io::Result<IpAddr> {
    let mut failure = None;
    for address in resolve(url).await? {
        let socket = marked(address, Type::DGRAM, Protocol::UDP, mark)?;
        match socket.connect(&address.into()) {
            Ok(()) => {
                let local = socket.local_addr()?.as_socket();
                return local
                    .map(|a| a.ip())
                    .ok_or_else(|| io::Error::other("no IP address"));
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::Error::other("the name has no address")))
}

/// A TCP stream in the shape that hyper's pool asks for.
#[derive(Debug)]
pub(super) struct Stream(TcpStream);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
