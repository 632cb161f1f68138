//! Asks addresses by ICMP: those behind stock WireGuard peers through the tunnel, those in our own cluster beside it.
//! Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::icmp::Ping;
use super::shared::{lock, set};
use crate::membership::clock::{Clock, random};
use crate::task::Task;

/// Between two requests to a stock peer's probe address: it belongs to somebody who did not ask for more.
pub(super) const STOCK: Duration = Duration::from_secs(1);
/// How long an answer says anything.
const FRESH: Duration = Duration::from_millis(3_500);

/// Whom to ask, from where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// Counts the devices of the same names.
    pub(super) generation: u64,
    /// Our own inner addresses, to ask from through a tunnel.
    pub(super) own: Vec<IpAddr>,
    /// The probe addresses.
    pub(super) probes: BTreeSet<Probe>,
}

/// A probe address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Probe {
    /// The address.
    pub(super) addr: IpAddr,
    /// The tunnel device that leads to it; none for one that the kernel's routes lead to.
    pub(super) device: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Duration,
    rtt: Duration,
}

/// The requests to all probe addresses; ends when dropped.
pub(super) struct Pinger {
    _task: Task,
    targets: watch::Sender<Arc<Targets>>,
    answers: Arc<Mutex<BTreeMap<IpAddr, Answer>>>,
}

impl Pinger {
    /// Starts without targets; each is asked every `interval`.
    pub(super) fn start(clock: Clock, interval: Duration) -> Self {
        let (targets, todo) = watch::channel(Arc::new(Targets::default()));
        let answers = Arc::new(Mutex::new(BTreeMap::new()));
        let work = run(clock, interval, todo, Arc::clone(&answers));
        Self {
            _task: Task::spawn("ping", work),
            targets,
            answers,
        }
    }

    /// Changes whom to ask.
    pub(super) fn aim(&self, targets: Targets) {
        set(&self.targets, Arc::new(targets));
    }

    /// The round trip to `probe`, if it answered lately.
    pub(super) fn answered(&self, probe: IpAddr, now: Duration) -> Option<Duration> {
        let answers = lock(&self.answers);
        let answer = answers.get(&probe)?;
        (now.saturating_sub(answer.at) <= FRESH).then_some(answer.rtt)
    }

    /// When any of the addresses answered last.
    pub(super) fn last_answer(&self) -> Option<Duration> {
        let answers = lock(&self.answers);
        answers.values().map(|answer| answer.at).max()
    }
}

/// The sockets by device, if any, and whether they are for IPv4, while there is somebody to ask.
#[derive(Default)]
struct Sockets(BTreeMap<(Option<String>, bool), UdpSocket>);

async fn run(
    clock: Clock,
    interval: Duration,
    mut todo: watch::Receiver<Arc<Targets>>,
    answers: Arc<Mutex<BTreeMap<IpAddr, Answer>>>,
) {
    let id = u16::try_from(random() & 0xffff).unwrap_or_default();
    let mut sequence = 0u16;
    let mut sockets = Sockets::default();
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let targets = Arc::clone(&todo.borrow_and_update());
        let idle = targets.probes.is_empty();
        tokio::select! {
            changed = todo.changed() => {
                if changed.is_err() {
                    return;
                }
                // Perhaps for a new device: a socket that is bound to the old one is deaf.
                sockets = Sockets::default();
                let known = todo.borrow().probes.clone();
                lock(&answers).retain(|addr, _| known.iter().any(|probe| probe.addr == *addr));
            }
            (v4, got) = sockets.receive() => {
                let now = clock.now().mono;
                let Some((ping, from)) = got else { continue };
                if ping.id == id && targets.probes.iter().any(|probe| probe.addr == from) && v4 == from.is_ipv4() {
                    let rtt = now.saturating_sub(Duration::from_micros(ping.sent));
                    lock(&answers).insert(from, Answer { at: now, rtt });
                }
            }
            _ = tick.tick(), if !idle => {
                sequence = sequence.wrapping_add(1);
                let sent = u64::try_from(clock.now().mono.as_micros()).unwrap_or(u64::MAX);
                sockets.ask(&targets, &Ping { id, sequence, sent });
            }
        }
    }
}

impl Sockets {
    fn ask(&mut self, targets: &Targets, ping: &Ping) {
        for Probe { addr, device } in &targets.probes {
            let v4 = addr.is_ipv4();
            let id = (device.clone(), v4);
            if !self.0.contains_key(&id) {
                match open(&targets.own, device.as_deref(), v4) {
                    Ok(Some(opened)) => {
                        self.0.insert(id.clone(), opened);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::debug!(?device, %error, "no ping socket"),
                }
            }
            let Some(socket) = self.0.get(&id) else {
                continue;
            };
            if let Err(error) = socket.try_send_to(&ping.encode(v4), SocketAddr::new(*addr, 0)) {
                tracing::trace!(%addr, %error, "ping not sent");
            }
        }
    }

    /// The next message, with its family; `None` for what is no answer. A socket that fails is opened anew.
    async fn receive(&mut self) -> (bool, Option<(Ping, IpAddr)>) {
        let mut bytes = [0; 256];
        let ((device, v4), got) = poll_fn(|context| {
            for (id, socket) in &self.0 {
                let mut buffer = ReadBuf::new(&mut bytes);
                if let Poll::Ready(outcome) = socket.poll_recv_from(context, &mut buffer) {
                    let length = buffer.filled().len();
                    return Poll::Ready((id.clone(), outcome.map(|from| (length, from))));
                }
            }
            Poll::Pending
        })
        .await;
        let got = match got {
            Ok((length, from)) => bytes
                .get(..length)
                .and_then(|bytes| Some((Ping::decode(bytes, v4)?, from.ip()))),
            Err(error) => {
                tracing::debug!(?device, %error, "ping socket");
                self.0.remove(&(device, v4));
                None
            }
        };
        (v4, got)
    }
}

/// A raw ICMP socket: on our inner address and the tunnel device, `None` without an address of the family; without a
/// device, on none of both. It carries no mark, so that it takes the road that all traffic takes. Tokio's type for
/// datagrams serves raw sockets alike: both speak `sendto` and `recvfrom`, and the port is ignored.
fn open(own: &[IpAddr], device: Option<&str>, v4: bool) -> io::Result<Option<UdpSocket>> {
    let (domain, protocol) = if v4 {
        (Domain::IPV4, Protocol::ICMPV4)
    } else {
        (Domain::IPV6, Protocol::ICMPV6)
    };
    let own = own.iter().find(|addr| addr.is_ipv4() == v4);
    if device.is_some() && own.is_none() {
        return Ok(None);
    }
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if let (Some(device), Some(own)) = (device, own) {
        socket.bind_device(Some(device.as_bytes()))?;
        socket.bind(&SocketAddr::new(*own, 0).into())?;
    }
    UdpSocket::from_std(socket.into()).map(Some)
}
