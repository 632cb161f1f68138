//! Accepts the agents of the other nodes, on the node of a gateway: notes what is behind them, and tells them how the
//! gateway is. Shell.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use subsea_api::{Cidr, NodeName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::encap::Encap;
use super::local::Own;
use super::roster::Roster;
use super::seal::{End, Seal};
use super::tls::{self, Tls};
use super::words::{Hello, MAX_LINE, MAX_PREFIXES, Word, mismatch};
use crate::membership::{Link, chain, lock};
use crate::task::Task;

/// How long a node may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Handshakes at once; more wait in the backlog.
const HANDSHAKES: usize = 128;
/// After a connection that could not be accepted.
const AGAIN: Duration = Duration::from_millis(100);
/// A word is repeated so often, so that a dead connection is noticed.
const REPEAT: Duration = Duration::from_secs(10);
/// A node that repeats nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(25);

/// What the server publishes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Who there is.
    pub(super) roster: watch::Sender<Roster>,
    /// The keys of the newest session of each node that has one.
    pub(super) seals: watch::Sender<BTreeMap<NodeName, Arc<Seal>>>,
    /// What ends the session of each node.
    sessions: Mutex<BTreeMap<NodeName, Arc<Notify>>>,
}

impl Nodes {
    /// Notes a session, and its keys where packets can pass: a node that comes again has lost the one of before. Only who has
    /// shown that it is that node ends it.
    fn begin(self: &Arc<Self>, node: &NodeName, seal: Option<Arc<Seal>>) -> Noted {
        let ended = Arc::new(Notify::new());
        // Held until the keys are there: they are always those of the session that is noted.
        let mut sessions = lock(&self.sessions);
        if let Some(before) = sessions.insert(node.clone(), Arc::clone(&ended)) {
            before.notify_one();
        }
        self.seals.send_modify(|seals| match seal {
            Some(seal) => _ = seals.insert(node.clone(), seal),
            None => _ = seals.remove(node),
        });
        Noted {
            nodes: Arc::clone(self),
            node: node.clone(),
            ended,
        }
    }

    /// The nodes that have a session.
    pub(super) fn with_session(&self) -> Vec<NodeName> {
        lock(&self.sessions).keys().cloned().collect()
    }
}

/// A session that is noted. With its end, also by being dropped, its keys go: who has left is not waited for by echo.
struct Noted {
    nodes: Arc<Nodes>,
    node: NodeName,
    ended: Arc<Notify>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut sessions = lock(&self.nodes.sessions);
        let noted = sessions.get(&self.node);
        if noted.is_some_and(|noted| Arc::ptr_eq(noted, &self.ended)) {
            sessions.remove(&self.node);
            self.nodes.seals.send_modify(|seals| {
                seals.remove(&self.node);
            });
        }
    }
}

/// What the server needs.
pub(super) struct Server {
    pub(super) link: Arc<Link>,
    pub(super) tls: watch::Receiver<Option<Tls>>,
    pub(super) own: watch::Receiver<Own>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) listen: SocketAddr,
    /// How packets get to us.
    pub(super) encap: Encap,
}

impl Server {
    /// Accepts until the task is dropped.
    pub(super) async fn run(self) {
        let server = Arc::new(self);
        loop {
            let failed = match server.bind() {
                Ok(listener) => {
                    server.link.problem("sessions", None);
                    server.accept(listener).await
                }
                Err(error) => error,
            };
            let what = format!(
                "no agents of other nodes are accepted on {}: {failed}",
                server.listen
            );
            server.link.problem("sessions", Some(what));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn bind(&self) -> io::Result<TcpListener> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(self.listen),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&self.listen.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    }

    async fn accept(self: &Arc<Self>, listener: TcpListener) -> io::Error {
        let room = Arc::new(Semaphore::new(HANDSHAKES));
        let mut sessions: Vec<Task> = Vec::new();
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return io::Error::other("the server ends");
            };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The socket itself is no more.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL)) => {
                    return error;
                }
                Err(error) => {
                    tracing::debug!(%error, "no session accepted");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            sessions.retain(|session| !session.is_finished());
            let server = Arc::clone(self);
            let session = async move {
                let opened = tokio::time::timeout(PATIENCE, server.open(stream, from)).await;
                drop(permit);
                let ended = match opened {
                    Ok(Ok(session)) => {
                        let noted = server.nodes.begin(&session.node, session.seal.clone());
                        tokio::select! {
                            ended = server.serve(session) => ended,
                            () = noted.ended.notified() => Ok(()),
                        }
                    }
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                if let Err(error) = ended {
                    tracing::debug!(%from, error = chain(&error), "session of an agent");
                }
            };
            sessions.push(Task::spawn("session", session));
        }
    }

    async fn open(&self, stream: TcpStream, from: SocketAddr) -> io::Result<Session> {
        stream.set_nodelay(true)?;
        let tls = self.tls.borrow().clone();
        let tls = tls.ok_or_else(|| io::Error::other("there is no certificate"))?;
        let stream = TlsAcceptor::from(tls.server).accept(stream).await?;
        let (_, session) = stream.get_ref();
        let member = &self.link.membership;
        let node = tls::holder(session.peer_certificates(), &member.fleet, &member.cluster)?;
        let seal = Arc::new(tls::seal(session, End::Server)?);
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = BufReader::new(reader);
        let hello = hello(&mut reader).await?;
        let hello = hello.ok_or(io::ErrorKind::UnexpectedEof)?;
        if let Some(mismatch) = mismatch(self.encap, hello.encap) {
            // It hears the same of us, and shows it to whom it concerns.
            tracing::warn!(%node, mismatch, "a node is not with us");
            return Ok(Session {
                node,
                address: from.ip().to_canonical(),
                reader,
                writer,
                seal: None,
            });
        }
        self.admit(&node, from.ip().to_canonical(), &hello);
        tracing::info!(%node, %from, "the agent of a node is with us");
        Ok(Session {
            node,
            address: from.ip().to_canonical(),
            reader,
            writer,
            seal: Some(seal),
        })
    }

    fn admit(&self, node: &NodeName, address: IpAddr, hello: &Hello) {
        let pods = pod_blocks(&self.link);
        let now = self.link.clock.now().wall;
        let mut refused = Vec::new();
        self.nodes.roster.send_if_modified(|roster| {
            let (before, count) = (roster.place(node), roster.nodes().len());
            refused = roster.admit(node, address, &hello.prefixes, &pods, now);
            // That it was heard again is nobody's news.
            roster.place(node) != before || roster.nodes().len() != count
        });
        for refused in refused {
            tracing::warn!(problem = %refused, "a node's prefix is not routed");
        }
    }

    /// Serves one node until it or we end.
    async fn serve(&self, session: Session) -> io::Result<()> {
        let Session {
            node,
            address,
            mut reader,
            mut writer,
            seal,
        } = session;
        let mut own = self.own.clone();
        let mut tls = self.tls.clone();
        tls.mark_unchanged();
        let encap = self.encap;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let listening = async {
            loop {
                let heard = tokio::time::timeout(SILENCE, hello(&mut reader));
                match heard.await.map_err(late)?? {
                    Some(hello) if seal.is_some() => self.admit(&node, address, &hello),
                    Some(_) => {}
                    None => return Ok(()),
                }
            }
        };
        let telling = async {
            loop {
                let gateway = own.borrow_and_update().as_deref().cloned();
                let mut line = serde_json::to_vec(&Word { gateway, encap })?;
                line.push(b'\n');
                let written = async {
                    writer.write_all(&line).await?;
                    writer.flush().await
                };
                tokio::time::timeout(PATIENCE, written)
                    .await
                    .map_err(late)??;
                tokio::select! {
                    changed = own.changed() => if changed.is_err() {
                        return Ok(());
                    },
                    () = tokio::time::sleep(REPEAT) => {}
                }
            }
        };
        tokio::select! {
            ended = listening => ended,
            ended = telling => ended,
            // Who was trusted with what was valid then shows anew what is valid now.
            Ok(()) = tls.changed() => Ok(()),
        }
    }
}

struct Session {
    node: NodeName,
    address: IpAddr,
    reader: BufReader<tokio::io::ReadHalf<tokio_rustls::server::TlsStream<TcpStream>>>,
    writer: tokio::io::WriteHalf<tokio_rustls::server::TlsStream<TcpStream>>,
    /// Its keys, if packets can pass between it and us.
    seal: Option<Arc<Seal>>,
}

async fn hello(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Option<Hello>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    let hello: Hello = serde_json::from_slice(&line)?;
    if hello.prefixes.len() > MAX_PREFIXES {
        return Err(io::Error::other("it has too many prefixes"));
    }
    Ok(Some(hello))
}

/// The pod blocks of our cluster.
pub(super) fn pod_blocks(link: &Link) -> Vec<Cidr> {
    let view = link.view.borrow();
    let allocations = view.own().map(|record| record.allocations.clone());
    let allocations = allocations.unwrap_or_else(|| link.membership.allocations.clone());
    let pods = allocations
        .iter()
        .filter(|a| a.kind == subsea_api::Kind::Pod);
    pods.map(|allocation| allocation.cidr).collect()
}
