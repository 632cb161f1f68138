//! The control socket of a running gateway: one JSON line asked, one JSON line answered. Shell.
//!
//! The socket lies in the state directory with mode 0600, so who may read the keys may ask. A socket left by
//! a dead process is replaced: the caller holds the state directory's lock.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use super::status::Status;
use crate::task::Task;

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
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// How are you?
    Status,
    /// End, leaving the kernel's state in place.
    Stop,
}

/// What the gateway answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Verb::Status`].
    Status(Box<Status>),
    /// To [`Verb::Stop`]: it ends now; the process with this id is gone when the state directory's lock is free.
    Stopping {
        /// The process.
        pid: u32,
    },
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
    #[error("no gateway runs on this state directory (nobody listens on `{}`)", .path.display())]
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
    /// The gateway did not answer in time.
    #[error("the gateway did not answer on `{}` within 5 s", .path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The answer makes no sense, for example because the gateway is of another version.
    #[error("the gateway's answer is not understood: {0}")]
    Protocol(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    verb: Verb,
}

/// Asks the gateway behind the socket `path`.
///
/// # Errors
/// See [`ControlError`]; [`ControlError::NotRunning`] when there is no gateway to ask.
pub async fn request(path: &Path, verb: Verb) -> Result<Answer, ControlError> {
    let timeout = || ControlError::Timeout {
        path: path.to_owned(),
    };
    tokio::time::timeout(PATIENCE, exchange(path, verb))
        .await
        .map_err(|_| timeout())?
}

async fn exchange(path: &Path, verb: Verb) -> Result<Answer, ControlError> {
    let io = |what| {
        move |source| ControlError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let protocol = |error: serde_json::Error| ControlError::Protocol(error.to_string());
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => {
            return Err(ControlError::NotRunning {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(io("connect to")(error)),
    };
    let mut line = serde_json::to_vec(&Request { verb }).map_err(protocol)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(io("write to"))?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream.take(MAX_ANSWER));
    reader
        .read_until(b'\n', &mut answer)
        .await
        .map_err(io("read from"))?;
    if answer.last() != Some(&b'\n') {
        return Err(ControlError::Protocol("it was cut short".to_owned()));
    }
    match serde_json::from_slice(&answer).map_err(protocol)? {
        Answer::Error { message } => Err(ControlError::Protocol(message)),
        answer @ (Answer::Status(_) | Answer::Stopping { .. }) => Ok(answer),
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

impl Server {
    /// Listens on `path`. `status` makes the answer to [`Verb::Status`]; `stop` is notified on [`Verb::Stop`].
    ///
    /// # Errors
    /// [`ControlError::Io`] when the socket cannot be made.
    pub fn start<F, S>(path: &Path, status: S, stop: Arc<Notify>) -> Result<Self, ControlError>
    where
        S: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Status> + Send + 'static,
    {
        let io = |what| {
            move |source| ControlError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("replace")(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(io("create"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(io("protect"))?;
        let task = Task::spawn("control", accept(listener, Arc::new(status), stop));
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

async fn accept<F, S>(listener: UnixListener, status: Arc<S>, stop: Arc<Notify>)
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Status> + Send + 'static,
{
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
        let (status, stop) = (Arc::clone(&status), Arc::clone(&stop));
        clients.push(Task::spawn("control-client", async move {
            let _permit = permit;
            if let Ok(Err(error)) =
                tokio::time::timeout(PATIENCE, serve(stream, &*status, &stop)).await
            {
                tracing::debug!(%error, "control client");
            }
        }));
    }
}

async fn serve<F, S>(stream: UnixStream, status: &S, stop: &Notify) -> io::Result<()>
where
    S: Fn() -> F,
    F: Future<Output = Status>,
{
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    (&mut reader)
        .take(MAX_REQUEST)
        .read_until(b'\n', &mut line)
        .await?;
    let answer = match serde_json::from_slice(&line) {
        Ok(Request { verb: Verb::Status }) => Answer::Status(Box::new(status().await)),
        Ok(Request { verb: Verb::Stop }) => Answer::Stopping {
            pid: std::process::id(),
        },
        Err(error) => Answer::Error {
            message: format!("the request is not understood: {error}"),
        },
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    let mut stream = reader.into_inner();
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    if matches!(answer, Answer::Stopping { .. }) {
        stop.notify_one();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(path: &Path) -> (Server, Arc<Notify>) {
        let stop = Arc::new(Notify::new());
        let status = || async { super::super::status::tests::example() };
        (
            Server::start(path, status, Arc::clone(&stop)).unwrap(),
            stop,
        )
    }

    #[tokio::test]
    async fn status_and_stop_are_answered_over_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subsea.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(
            request(&path, Verb::Status).await,
            Err(ControlError::NotRunning { .. })
        ));
        let (server, stop) = server(&path);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let Answer::Status(status) = request(&path, Verb::Status).await.unwrap() else {
            panic!("not a status");
        };
        assert_eq!(*status, super::super::status::tests::example());
        assert!(matches!(
            request(&path, Verb::Stop).await.unwrap(),
            Answer::Stopping { .. }
        ));
        stop.notified().await;
        drop(server);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn rubbish_is_refused_and_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subsea.sock");
        let (_server, _stop) = server(&path);
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
        assert!(request(&path, Verb::Status).await.is_ok());
    }
}
