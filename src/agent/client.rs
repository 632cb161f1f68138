//! Keeps a session with the agent on the node of each gateway of the cluster. Shell.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use subsea_api::{Cidr, NodeName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::options::Options;
use super::seal::{End, Seal};
use super::tls::{self, Tls};
use super::words::{Hello, MAX_LINE, Word, mismatch};
use crate::control::feed::{Feed, HOLD};
use crate::membership::clock::random;
use crate::membership::{Link, backoff, chain};

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A gateway's node repeats its word more often than this; the echo tells of its end much sooner.
const SILENCE: Duration = Duration::from_secs(25);
/// How often we say again who we are.
const REPEAT: Duration = Duration::from_secs(10);
/// The shortest and the longest pause before the next attempt.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What is known of a gateway's node from the session with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard {
    /// Where it was reached last.
    pub(super) address: Option<IpAddr>,
    /// The keys of the newest session.
    pub(super) seal: Option<Arc<Seal>>,
    /// What its gateway said last; none when it said that there is none, or nothing yet.
    pub(super) feed: Option<Feed>,
    /// Why there is no session.
    pub(super) error: Option<String>,
    /// Until when what is known of it stands without a session and an echo: its agent has ended, its kernel said so, and goes on
    /// with what it was told.
    pub(super) held: Option<Instant>,
}

impl Heard {
    /// Whether what is known stands at `now`, though its agent says nothing.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.held.is_some_and(|until| now < until)
    }
}

impl PartialEq for Heard {
    fn eq(&self, other: &Self) -> bool {
        let seal = |heard: &Self| heard.seal.as_ref().map(Arc::as_ptr);
        let rest = |heard: &Self| (heard.address, heard.error.clone(), heard.held);
        seal(self) == seal(other) && rest(self) == rest(other) && self.feed == other.feed
    }
}

/// What all sessions have told.
pub(super) type AllHeard = watch::Sender<BTreeMap<NodeName, Heard>>;

/// What a session needs.
pub(super) struct Client {
    pub(super) link: Arc<Link>,
    pub(super) tls: watch::Receiver<Option<Tls>>,
    pub(super) options: Arc<Options>,
    /// The blocks of our pods, beside those of the options.
    pub(super) prefixes: watch::Receiver<Vec<Cidr>>,
    /// The gateway's node.
    pub(super) node: NodeName,
    pub(super) addresses: Vec<IpAddr>,
    /// Our address on the nodes' network; none while it is not known.
    pub(super) from: Option<IpAddr>,
    /// The mark of our own packets.
    pub(super) mark: u32,
    pub(super) heard: Arc<AllHeard>,
}

impl Client {
    /// Keeps the session until the task is dropped.
    pub(super) async fn run(self) {
        let mut failures = 0_u32;
        for turn in 0_usize.. {
            let Some(address) = self.addresses.get(turn % self.addresses.len().max(1)) else {
                let error = "its gateway has told the broker no address for agents";
                self.note(|heard| heard.error = Some(error.to_owned()));
                return;
            };
            let mut opened = false;
            let ended = self.session(*address, &mut opened).await;
            failures = if opened {
                0
            } else {
                failures.saturating_add(1)
            };
            let held = (opened && is_end(&ended)).then(|| Instant::now() + HOLD);
            let error = ended.map_or_else(|e| chain(&e), |()| "it ended the session".to_owned());
            tracing::debug!(node = %self.node, %address, error, "session with a gateway's node");
            self.note(|heard| {
                heard.error = Some(error);
                // One that is not used is waited for by nobody, and one that leaves has said so.
                let used = heard.feed.as_ref().is_some_and(|feed| !feed.inward_dead);
                heard.held = held.filter(|_| used).or(heard.held);
            });
            let pause = backoff::delay(failures, RETRY.0, RETRY.1, random());
            tokio::time::sleep(pause).await;
        }
    }

    /// Who we are: what is behind us now.
    fn hello(&self, known: &[Cidr]) -> Hello {
        Hello {
            prefixes: self.options.prefixes(known),
            encap: self.options.encap,
        }
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        self.heard.send_if_modified(|all| {
            let heard = all.entry(self.node.clone()).or_default();
            let before = heard.clone();
            change(heard);
            *heard != before
        });
    }

    async fn session(&self, address: IpAddr, opened: &mut bool) -> io::Result<()> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
        let opening = tokio::time::timeout(PATIENCE, self.connect(address));
        let stream = opening.await.map_err(late).flatten();
        let stream = stream.map_err(|error| {
            io::Error::other(format!(
                "{error}: does `subsea agent` run there, and does TCP {} get through?",
                self.options.session_port
            ))
        })?;
        let opening = tokio::time::timeout(PATIENCE, self.open(address, stream));
        let stream = opening.await.map_err(late)??;
        let seal = Arc::new(tls::seal(stream.get_ref().1, End::Client)?);
        let (reader, mut writer) = tokio::io::split(stream);
        let mut prefixes = self.prefixes.clone();
        let telling = async {
            // Again and again: what was refused then, because another node had it, may be free now.
            loop {
                let hello = self.hello(&prefixes.borrow_and_update());
                let mut hello = serde_json::to_vec(&hello)?;
                hello.push(b'\n');
                writer.write_all(&hello).await?;
                writer.flush().await?;
                tokio::select! {
                    () = tokio::time::sleep(REPEAT) => {}
                    Ok(()) = prefixes.changed() => {}
                }
            }
        };
        let mut tls = self.tls.clone();
        tls.mark_unchanged();
        tokio::select! {
            ended = self.listen(address, BufReader::new(reader), seal, opened) => ended,
            ended = telling => ended,
            Ok(()) = tls.changed() => Err(io::Error::other("what we trust has changed: it begins anew")),
        }
    }

    async fn listen(
        &self,
        address: IpAddr,
        mut reader: BufReader<impl tokio::io::AsyncRead + Unpin>,
        seal: Arc<Seal>,
        opened: &mut bool,
    ) -> io::Result<()> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
        let mut seal = Some(seal);
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(MAX_LINE);
            let reading = tokio::time::timeout(SILENCE, limited.read_until(b'\n', &mut line));
            if reading.await.map_err(late)?? == 0 {
                return Ok(());
            }
            let word: Word = serde_json::from_slice(&line)?;
            if let Some(mismatch) = mismatch(self.options.encap, word.encap) {
                return Err(io::Error::other(mismatch));
            }
            *opened = true;
            self.note(|heard| {
                // With the first word the other end has the keys, too.
                if let Some(seal) = seal.take() {
                    heard.seal = Some(seal);
                    tracing::info!(node = %self.node, %address, "session with a gateway's node");
                }
                heard.address = Some(address);
                heard.error = None;
                heard.held = None;
                heard.feed = word.gateway;
            });
        }
    }

    async fn connect(&self, address: IpAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Where the session comes from is where packets are expected from.
        if let Some(from) = self.from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        if self.mark != 0 {
            socket2::SockRef::from(&socket).set_mark(self.mark)?;
        }
        let to = SocketAddr::new(address, self.options.session_port);
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn open(
        &self,
        address: IpAddr,
        stream: TcpStream,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tls = self.tls.borrow().clone();
        let tls = tls.ok_or_else(|| {
            io::Error::other("we have no certificate that can be used: see the problems above")
        })?;
        let name = ServerName::IpAddress(address.into());
        let stream = TlsConnector::from(tls.client).connect(name, stream).await?;
        let member = &self.link.membership;
        let certificates = stream.get_ref().1.peer_certificates();
        let node = tls::holder(certificates, &member.fleet, &member.cluster)?;
        if node != self.node {
            let text = format!("node {node} answers there");
            return Err(tls::TlsError::Stranger(text).into());
        }
        Ok(stream)
    }
}

/// Whether the kernel of the other end has closed the session: a node that is down, or cannot be reached, says nothing.
fn is_end(ended: &io::Result<()>) -> bool {
    let closed = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
    ];
    ended
        .as_ref()
        .map_or_else(|error| closed.contains(&error.kind()), |()| true)
}
