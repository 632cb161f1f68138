//! The control socket of a running daemon: one JSON line asked, one JSON line answered; to [`Verb::Follow`] a line for each
//! change. Shell.
//!
//! The socket lies in the state directory with mode 0600, so who may read the keys may ask; or in a directory of its own, to which
//! the state directory leads, for those who may ask and not read the keys. A socket left by
//! a dead process is replaced: the caller holds the state directory's lock.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use self::feed::Feed;
use crate::task::Task;

pub mod around;
pub mod feed;
pub mod network;

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are served at once; more wait in the socket's backlog.
const CLIENTS: usize = 16;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// How are you?
    Status,
    /// End; what is in the kernel is taken out next.
    Stop,
    /// Hand your traffic to the other gateways of the cluster, then end.
    Drain,
    /// Say how you are for traffic, now and whenever it changes.
    Follow,
    /// The nodes of your cluster are reached from yours; holds for [`feed::HOLD`].
    Inward,
    /// None of them is, until they are said to be.
    InwardDead,
    /// There is none: what was said before is forgotten.
    InwardNone,
}

/// What a daemon answers; `S` is its status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<S> {
    /// To [`Verb::Status`].
    Status(Box<S>),
    /// To [`Verb::Stop`] and [`Verb::Drain`]: it ends, to the latter when its traffic is gone; the process with this id is gone when the state directory's lock is free.
    Stopping {
        /// The process.
        pid: u32,
    },
    /// To what needs no answer.
    Noted,
    /// The request was not understood.
    Error {
        /// Why.
        message: String,
    },
}

/// Why the control socket did not serve.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon runs on this state directory (nobody listens on `{}`)", .path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("could not {what} the control socket `{}`", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon did not answer in time.
    #[error("the daemon did not answer on `{}` within 5 s", .path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The answer makes no sense, for example because the daemon is of another version.
    #[error("the daemon's answer is not understood: {0}")]
    Protocol(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    verb: Verb,
}

/// Asks the daemon behind the socket `path`.
///
/// # Errors
/// See [`ControlError`]; [`ControlError::NotRunning`] when there is no daemon to ask.
pub async fn request<S: DeserializeOwned>(
    path: &Path,
    verb: Verb,
) -> Result<Answer<S>, ControlError> {
    let timeout = || ControlError::Timeout {
        path: path.to_owned(),
    };
    tokio::time::timeout(PATIENCE, exchange(path, verb))
        .await
        .map_err(|_| timeout())?
}

async fn exchange<S: DeserializeOwned>(path: &Path, verb: Verb) -> Result<Answer<S>, ControlError> {
    let mut lines = ask(path, verb).await?;
    let answer = lines.next(MAX_ANSWER).await?;
    let answer = answer.ok_or_else(|| ControlError::Protocol("it was cut short".to_owned()))?;
    match serde_json::from_slice(&answer).map_err(|e| ControlError::Protocol(e.to_string()))? {
        Answer::Error { message } => Err(ControlError::Protocol(message)),
        answer @ (Answer::Status(_) | Answer::Stopping { .. } | Answer::Noted) => Ok(answer),
    }
}

/// The answers of a daemon, line by line.
#[derive(Debug)]
struct Lines {
    reader: BufReader<UnixStream>,
    path: PathBuf,
}

impl Lines {
    /// The next line; none at the end, or when it is longer than `limit`.
    async fn next(&mut self, limit: u64) -> Result<Option<Vec<u8>>, ControlError> {
        let mut line = Vec::new();
        (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .await
            .map_err(failed("read from", &self.path))?;
        Ok((line.last() == Some(&b'\n')).then_some(line))
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    let path = path.to_owned();
    move |source| ControlError::Io { what, path, source }
}

async fn ask(path: &Path, verb: Verb) -> Result<Lines, ControlError> {
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => {
            return Err(ControlError::NotRunning {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(failed("connect to", path)(error)),
    };
    let mut line = serde_json::to_vec(&Request { verb })
        .map_err(|error| ControlError::Protocol(error.to_string()))?;
    line.push(b'\n');
    stream
        .write_all(&line)
        .await
        .map_err(failed("write to", path))?;
    Ok(Lines {
        reader: BufReader::new(stream),
        path: path.to_owned(),
    })
}

/// What a gateway says of itself, as it changes; ends with the gateway.
#[derive(Debug)]
pub struct Following {
    lines: Lines,
}

impl Following {
    /// Begins to follow the gateway behind the socket `path`.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] when there is none.
    pub async fn begin(path: &Path) -> Result<Self, ControlError> {
        let lines = ask(path, Verb::Follow).await?;
        Ok(Self { lines })
    }

    /// The next word; none when the gateway has ended. It speaks at least every [`feed::BEAT`].
    ///
    /// # Errors
    /// When its word is not understood, or the socket fails. Not safe to cancel but to give up.
    pub async fn next(&mut self) -> Result<Option<Feed>, ControlError> {
        let Some(line) = self.lines.next(MAX_ANSWER).await? else {
            return Ok(None);
        };
        let feed = serde_json::from_slice(&line);
        feed.map(Some)
            .map_err(|error| ControlError::Protocol(error.to_string()))
    }
}

/// No socket, or one that a dead process left.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The serving side; gone when dropped.
#[derive(Debug)]
pub struct Server {
    _task: Task,
    path: PathBuf,
}

/// What a daemon does for those who ask.
pub trait Answers: Send + Sync + 'static {
    /// Its status.
    type Status: Serialize + Send + Sync;

    /// The answer to [`Verb::Status`].
    fn status(&self) -> Self::Status;

    /// It was asked to end, leaving the kernel's state in place.
    fn stop(&self);

    /// The answer to [`Verb::Stop`]: it was asked to end, and what it has put into the kernel will not stay.
    fn leave(&self) {
        self.stop();
    }

    /// It was asked to hand its traffic over and then to end; false when it cannot.
    fn drain(&self) -> bool;

    /// The agent of this node says whether none of the nodes of the cluster is reached; none: there are none.
    fn inward(&self, dead: Option<bool>);

    /// How it is for traffic; none when it carries none between clusters.
    fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>>;
}

impl Server {
    /// Listens on `path`.
    ///
    /// # Errors
    /// [`ControlError::Io`] when the socket cannot be made.
    pub fn start(path: &Path, daemon: Arc<impl Answers>) -> Result<Self, ControlError> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace", path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("create", path))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("protect", path))?;
        let task = Task::spawn("control", accept(listener, daemon));
        Ok(Self {
            _task: task,
            path: path.to_owned(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket not removed");
        }
    }
}

async fn accept(listener: UnixListener, daemon: Arc<impl Answers>) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    let mut clients: Vec<Task> = Vec::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "control socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        clients.retain(|client| !client.is_finished());
        let daemon = Arc::clone(&daemon);
        clients.push(Task::spawn("control-client", async move {
            let _permit = permit;
            if let Err(error) = serve(stream, &*daemon).await {
                tracing::debug!(%error, "control client");
            }
        }));
    }
}

async fn serve<D: Answers>(stream: UnixStream, daemon: &D) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut request = (&mut reader).take(MAX_REQUEST);
    in_time(request.read_until(b'\n', &mut line)).await?;
    let mut stream = reader.into_inner();
    let stopping = || Answer::Stopping {
        pid: std::process::id(),
    };
    let refused = |message: String| Answer::Error { message };
    let verb = serde_json::from_slice(&line).map(|Request { verb }| verb);
    let answer: Answer<D::Status> = match &verb {
        Ok(Verb::Status) => Answer::Status(Box::new(daemon.status())),
        Ok(Verb::Stop) => stopping(),
        Ok(Verb::Drain) if daemon.drain() => stopping(),
        Ok(Verb::Drain) => {
            refused("only a gateway carries traffic that could go to others".to_owned())
        }
        Ok(Verb::InwardNone) => {
            daemon.inward(None);
            Answer::Noted
        }
        Ok(word @ (Verb::Inward | Verb::InwardDead)) => {
            daemon.inward(Some(*word == Verb::InwardDead));
            Answer::Noted
        }
        Ok(Verb::Follow) => match daemon.feed() {
            Some(feed) => return follow(stream, feed).await,
            None => refused("only a gateway can be followed".to_owned()),
        },
        Err(error) => refused(format!("the request is not understood: {error}")),
    };
    in_time(write(&mut stream, &answer)).await?;
    in_time(stream.shutdown()).await?;
    if matches!(verb, Ok(Verb::Stop)) {
        daemon.leave();
    }
    Ok(())
}

/// Says how the gateway is, whenever that changes and at every beat, for as long as somebody listens.
async fn follow(mut stream: UnixStream, mut feed: watch::Receiver<Arc<Feed>>) -> io::Result<()> {
    loop {
        let now = Arc::clone(&feed.borrow_and_update());
        in_time(write(&mut stream, &*now)).await?;
        tokio::select! {
            changed = feed.changed() => if changed.is_err() {
                return Ok(());
            },
            () = tokio::time::sleep(feed::BEAT) => {}
        }
    }
}

async fn write(stream: &mut UnixStream, line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(PATIENCE, work).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use subsea_api::ClusterId;
    use tokio::sync::Notify;

    use super::*;

    struct Daemon {
        stop: Notify,
        drain: Notify,
        feed: watch::Sender<Arc<Feed>>,
    }

    impl Answers for Daemon {
        type Status = String;

        fn status(&self) -> String {
            "well".to_owned()
        }

        fn stop(&self) {
            self.stop.notify_one();
        }

        fn drain(&self) -> bool {
            self.drain.notify_one();
            true
        }

        fn inward(&self, dead: Option<bool>) {
            assert_eq!(dead, Some(true));
            self.stop.notify_one();
        }

        fn feed(&self) -> Option<watch::Receiver<Arc<Feed>>> {
            Some(self.feed.subscribe())
        }
    }

    fn server(path: &Path) -> (Server, Arc<Daemon>) {
        let daemon = Arc::new(Daemon {
            stop: Notify::new(),
            drain: Notify::new(),
            feed: watch::Sender::default(),
        });
        (Server::start(path, Arc::clone(&daemon)).unwrap(), daemon)
    }

    #[tokio::test]
    async fn status_drain_and_stop_are_answered_over_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subsea.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(
            request::<String>(&path, Verb::Status).await,
            Err(ControlError::NotRunning { .. })
        ));
        let (server, daemon) = server(&path);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let answer = request::<String>(&path, Verb::Status).await.unwrap();
        assert_eq!(answer, Answer::Status(Box::new("well".to_owned())));
        let noted = request::<String>(&path, Verb::InwardDead).await.unwrap();
        assert_eq!(noted, Answer::Noted);
        daemon.stop.notified().await;
        for verb in [Verb::Drain, Verb::Stop] {
            assert!(matches!(
                request::<String>(&path, verb).await.unwrap(),
                Answer::Stopping { .. }
            ));
        }
        daemon.drain.notified().await;
        daemon.stop.notified().await;
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_follows_hears_changes_beats_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subsea.sock");
        let (server, daemon) = server(&path);
        let mut following = Following::begin(&path).await.unwrap();
        let first = following.next().await.unwrap().unwrap();
        assert_eq!(first, Feed::default());
        assert_eq!(following.next().await.unwrap(), Some(first), "a beat");
        let west: ClusterId = "west".parse().unwrap();
        let changed = Feed {
            draining: true,
            reaches: [(west, 1420)].into(),
            ..Feed::default()
        };
        daemon.feed.send_replace(Arc::new(changed.clone()));
        while following.next().await.unwrap() != Some(changed.clone()) {}
        drop(server);
        while following.next().await.unwrap().is_some() {}
    }

    #[tokio::test]
    async fn rubbish_is_refused_and_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subsea.sock");
        let (_server, _daemon) = server(&path);
        for rubbish in [
            &b"{}\n"[..],
            b"\xff\n",
            b"{\"verb\":\"dance\"}\n",
            vec![b' '; 70_000].leak(),
        ] {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            // The far end may close before it has read all of an oversized request.
            let _ = stream.write_all(rubbish).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(
                answer.is_empty() || String::from_utf8_lossy(&answer).contains("not understood"),
                "{answer:?}"
            );
        }
        assert!(request::<String>(&path, Verb::Status).await.is_ok());
    }
}
