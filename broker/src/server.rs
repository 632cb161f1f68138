//! Accepts connections within bounds: so many at once, so many from one address, so long for each step. Shell.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::auth::ClientCertificate;
use crate::http::Peer;
use crate::stall::StallGuard;

/// The bounds of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address (IPv6: one /64).
    pub per_source: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request; a connection without one is idle and closed after it, too.
    pub head: Duration,
    /// For a write to make progress.
    pub write: Duration,
    /// For requests under way at the end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            per_source: 2048,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            write: Duration::from_secs(20),
            drain: Duration::from_secs(3),
        }
    }
}

/// The largest head of a request.
const MAX_HEAD: usize = 32 * 1024;
/// A pause when the system has no room for a further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long sent data may stay unacknowledged before the peer counts as gone, in milliseconds.
const UNACKNOWLEDGED: u32 = 30_000;

/// Serves until `stop` turns true, then lets requests under way end.
pub(crate) async fn run(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    stop: watch::Receiver<bool>,
) {
    let sources = Arc::new(Sources::default());
    let mut connections = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= limits.connections {
            tracing::debug!(%address, "connection refused: too many");
            continue;
        }
        let Some(place) = sources.enter(address.ip(), limits.per_source) else {
            tracing::debug!(%address, "connection refused: too many from one address");
            continue;
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            serve(stream, address, acceptor, router, limits, stop).await;
            drop(place);
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::debug!(left = connections.len(), "connections cut at the end");
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let options = stream.set_nodelay(true).and_then(|()| {
        rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED).map_err(Into::into)
    });
    if let Err(error) = options {
        tracing::debug!(%address, %error, "could not set socket options");
    }
    let stream = StallGuard::new(stream, limits.write);
    let tls = match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "no TLS");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "the TLS handshake took too long");
            return;
        }
    };
    let certificate = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(|der| ClientCertificate::from_der(der));
    let peer = Arc::new(Peer {
        address,
        certificate,
    });
    let service =
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request)
        });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(tls), service);
    let mut connection = std::pin::pin!(connection);
    let stopping = async {
        // Its sender gone means the same.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopping => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// How many connections each source has.
#[derive(Debug, Default)]
struct Sources(Mutex<BTreeMap<IpAddr, usize>>);

/// A connection's place among those of its source; dropping it gives it back.
#[derive(Debug)]
struct Place {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    fn enter(self: &Arc<Self>, ip: IpAddr, most: usize) -> Option<Place> {
        let source = source_of(ip);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place {
            sources: self.clone(),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self
            .sources
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// An IPv6 host has a /64 of addresses to come from.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        v6 @ IpAddr::V6(_) => subsea_api::Cidr::containing(v6, 64).first(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_so_many_places_and_gets_them_back() {
        let sources = Arc::new(Sources::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = sources.enter(ip("fd00::1"), 2).unwrap();
        let _second = sources.enter(ip("fd00::2"), 2).unwrap();
        assert!(sources.enter(ip("fd00::3"), 2).is_none(), "one /64");
        assert!(sources.enter(ip("10.0.0.1"), 2).is_some());
        drop(first);
        assert!(sources.enter(ip("fd00::3"), 2).is_some());
    }
}
