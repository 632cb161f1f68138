//! Answers over HTTP, within bounds. Shell.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Subject;
use super::families::CONTENT_TYPE;
use super::limits::Connections;
use super::verdict::{Report, Verdict};
use crate::membership::lock;
use crate::task::Task;

/// For the head of a request; a connection without one is idle, and closed after it, too.
const HEAD: Duration = Duration::from_secs(5);
/// For a connection with all its requests.
const WHOLE: Duration = Duration::from_mins(1);
/// The largest head of a request; hyper takes no less.
const MAX_HEAD: usize = 8 * 1024;
/// A pause when the system has no room for a further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The serving side; gone when dropped.
#[derive(Debug)]
pub struct Server {
    _task: Task,
    address: SocketAddr,
}

impl Server {
    /// Listens on `address` and answers for `subject`.
    ///
    /// # Errors
    /// When the address is not ours, or the port is taken.
    pub async fn start<S: Report>(address: SocketAddr, subject: Subject<S>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let task = Task::spawn("monitor", accept(listener, router(Arc::new(subject))));
        tracing::info!(%address, "health and metrics are served");
        Ok(Self {
            _task: task,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn router<S: Report>(subject: Arc<Subject<S>>) -> Router {
    Router::new()
        .route("/healthz", get(health::<S>))
        .route("/readyz", get(readiness::<S>))
        .route("/metrics", get(metrics::<S>))
        .with_state(subject)
        .layer(middleware::from_fn(bodiless))
}

/// Refuses what has a body: nothing here takes one.
async fn bodiless(request: axum::extract::Request, next: Next) -> Response {
    let headers = request.headers();
    let empty = HeaderValue::from_static("0");
    let length = headers.get(header::CONTENT_LENGTH);
    if headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|l| *l != empty) {
        let close = [(header::CONNECTION, "close")];
        let refused = "a request has no body here\n";
        return (StatusCode::PAYLOAD_TOO_LARGE, close, refused).into_response();
    }
    let head = *request.method() == Method::HEAD;
    let response = next.run(request).await;
    if head {
        return response.map(|_| Body::empty());
    }
    response
}

async fn health<S: Report>(State(subject): State<Arc<Subject<S>>>) -> Response {
    answer(subject.health().await)
}

async fn readiness<S: Report>(State(subject): State<Arc<Subject<S>>>) -> Response {
    answer(subject.readiness().await)
}

fn answer(verdict: Verdict) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(why) => unavailable(&why),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

async fn metrics<S: Report>(State(subject): State<Arc<Subject<S>>>) -> Response {
    match subject.metrics().await {
        Ok(text) => {
            let kind = HeaderValue::from_static(CONTENT_TYPE);
            (HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]), text).into_response()
        }
        Err(why) => unavailable(&why),
    }
}

async fn accept(listener: TcpListener, router: Router) {
    // Those of the node itself, as the kubelet, are counted apart: others cannot take their room.
    let (of_node, of_others) = (Arc::default(), Arc::default());
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = serving.join_next(), if !serving.is_empty() => continue,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                tracing::warn!(%error, "a connection for health or metrics was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let at = stream.local_addr();
        let own = at.is_ok_and(|at| at.ip().to_canonical() == from.to_canonical());
        let open: &Arc<Mutex<Connections>> = if own { &of_node } else { &of_others };
        if !lock(open).enter(from) {
            tracing::debug!(%from, "connection refused: too many");
            continue;
        }
        let (open, router) = (Arc::clone(open), router.clone());
        serving.spawn(async move {
            serve(stream, router).await;
            lock(&open).leave(from);
        });
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(WHOLE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection for health or metrics"),
        Err(_) => tracing::debug!("connection for health or metrics closed after its time"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::super::limits::EACH;
    use super::super::verdict::Stage;
    use super::*;
    use crate::control::Answers;
    use crate::control::around::Door;
    use crate::control::feed::Feed;
    use crate::gateway::status::Status;

    struct Daemon {
        passes: bool,
        hangs: bool,
    }

    impl Answers for Daemon {
        type Status = Status;

        fn status(&self) -> Status {
            if self.hangs {
                std::thread::sleep(Duration::from_secs(4));
            }
            let mut status = crate::gateway::status::tests::example();
            status.kernel.last_reconcile = self.passes.then_some(subsea_api::UnixMillis(1));
            status
        }

        fn stop(&self) {}

        fn drain(&self) -> bool {
            false
        }

        fn inward(&self, _dead: Option<bool>) {}

        fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>> {
            None
        }
    }

    struct World {
        server: Server,
        door: Door<Status>,
        stage: watch::Sender<Stage>,
    }

    async fn world() -> World {
        let (door, stage) = (Door::default(), watch::Sender::default());
        let subject = Subject::new(door.clone(), stage.subscribe());
        let server = Server::start(([127, 0, 0, 1], 0).into(), subject).await;
        World {
            server: server.unwrap(),
            door,
            stage,
        }
    }

    impl World {
        async fn say(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn get(&self, path: &str) -> String {
            let host = "Host: node\r\nConnection: close\r\n\r\n";
            self.say(&format!("GET {path} HTTP/1.1\r\n{host}")).await
        }
    }

    #[tokio::test]
    async fn a_daemon_becomes_ready_once_it_has_gone_over_the_kernel() {
        let world = world().await;
        let waiting = Stage::Waiting("the Secret is empty".to_owned());
        world.stage.send_replace(waiting);
        assert!(world.get("/healthz").await.starts_with("HTTP/1.1 200 "));
        let answer = world.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthe daemon has no identity yet: the Secret is empty\n"));
        assert!(world.get("/metrics").await.contains("\nsubsea_up 0.0\n"));

        let open = world.door.open(Arc::new(Daemon {
            passes: false,
            hangs: false,
        }));
        let answer = world.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("kernel"));
        drop(open);
        let _open = world.door.open(Arc::new(Daemon {
            passes: true,
            hangs: false,
        }));
        let answer = world.get("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok\n"));
        let metrics = world.get("/metrics").await;
        assert!(
            metrics.contains(&format!("content-type: {CONTENT_TYPE}\r\n")),
            "{metrics}"
        );
        assert!(metrics.contains("\nsubsea_path_up{cluster=\"west\",gateway=\"gw-1\"} 0.0\n"));
        assert!(metrics.ends_with("# EOF\n"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_daemon_that_hangs_is_not_alive_and_says_so_in_time() {
        let world = world().await;
        let _open = world.door.open(Arc::new(Daemon {
            passes: true,
            hangs: true,
        }));
        let answer = world.get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("within 2 s"), "{answer}");
    }

    #[tokio::test]
    async fn what_is_not_asked_for_properly_is_refused() {
        let world = world().await;
        let close = "Host: node\r\nConnection: close\r\n";
        for (request, code) in [
            (format!("GET / HTTP/1.1\r\n{close}\r\n"), "404"),
            (
                format!("POST /metrics HTTP/1.1\r\n{close}Content-Length: 0\r\n\r\n"),
                "405",
            ),
            (
                format!("GET /metrics HTTP/1.1\r\n{close}Content-Length: 5\r\n\r\nhello"),
                "413",
            ),
            (
                format!(
                    "GET /metrics HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                ),
                "413",
            ),
            (
                format!("GET /{} HTTP/1.1\r\n{close}\r\n", "a".repeat(9_000)),
                "431",
            ),
            (
                format!("GET / HTTP/1.1\r\n{close}x: {}\r\n\r\n", "a".repeat(9_000)),
                "431",
            ),
            ("nonsense\r\n\r\n".to_owned(), "400"),
        ] {
            let answer = world.say(&request).await;
            let short: String = request.chars().take(40).collect();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code} ")),
                "{short}: {answer}"
            );
        }
    }

    #[tokio::test]
    async fn who_says_nothing_is_dropped_and_keeps_nobody_out_for_ever() {
        let world = world().await;
        let mut silent = Vec::new();
        for _ in 0..EACH {
            silent.push(TcpStream::connect(world.server.address()).await.unwrap());
        }
        let start = Instant::now();
        // One more from the same address is closed without a word.
        let mut further = TcpStream::connect(world.server.address()).await.unwrap();
        let mut answer = Vec::new();
        further.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
        for stream in &mut silent {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(40), "{took:?}");
        assert!(world.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    }
}
