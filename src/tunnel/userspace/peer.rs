//! One peer: its WireGuard state machine, where it is, and what waits for a session. Shell around `Tunn`.
//!
//! `Tunn` has no jitter, gives up for ever after 90 s, and queues packets without saying which it drops. So the
//! first initiation, trying again, keepalives and the queue are done here; `Tunn` keeps handshakes, retries within
//! the 90 s, renewals and ciphers.

use std::collections::VecDeque;
use std::hint;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use subsea_api::PublicKey;

use super::cipher::Sealer;
use super::counters::Drops;
use super::lane::Lane;
use super::offload::split::Split;
use super::outbox::Outbox;
use super::schedule::{Chance, Side};
use crate::tunnel::Drop;

mod pace;

/// Packets that wait for a session, as many as Linux keeps (`MAX_STAGED_PACKETS`); the oldest is dropped first.
const STAGED: usize = 128;
/// A session is known by its index; a peer can have as many at a time (`N_SESSIONS` of boringtun).
const SESSIONS: usize = 8;
/// Repeats of a first initiation that come after 1 s and not after 5: a lost datagram, or a peer that is just starting,
/// is the common case then.
const QUICK: u8 = 2;
/// A further session that was silent for so long is not used: three keepalives were lost.
const STRIPE_SILENCE: Duration = Duration::from_millis(3_500);
/// How often a clock that went back is warned of.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// A peer; it lives as long as it is configured without a break.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    /// Its 24 bits of every index.
    pub(super) index: u32,
    pub(super) side: Side,
    pub(super) drops: Drops,
    pub(super) rx_bytes: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
    /// A datagram was larger than the path takes, since this was last looked at.
    pub(super) too_big: AtomicBool,
    /// The path MTU towards it, once something was too big; 0 before.
    pub(super) path_mtu: AtomicU32,
    /// Whether it is a session beside that of lane 0.
    further: bool,
    state: Mutex<State>,
    /// Threads that spin for the lock now.
    waiting: AtomicU32,
}

/// How often a thread looks whether the lock is free before it sleeps: some microseconds. Who has it gives way after
/// each packet, which takes about one, unless its core was taken from it.
const SPINS: u32 = 150;

/// What changes with every packet.
pub(super) struct State {
    pub(super) tunn: Tunn,
    sealer: Sealer,
    endpoint: Option<SocketAddr>,
    keepalive: Option<Duration>,
    staged: VecDeque<Vec<u8>>,
    initiate: Option<Initiate>,
    /// When to repeat an initiation sooner than boringtun does, and how often still.
    again: Option<Instant>,
    quick: u8,
    /// Rounds of 90 s without an answer.
    failures: u32,
    next_tick: Instant,
    last_sent: Instant,
    /// When the peer last showed that it hears us, see [`State::proves`].
    proven: Option<Instant>,
    established: Option<(Instant, SystemTime)>,
    /// The newest sessions that both sides are known to have, newest first.
    confirmed: [Option<u32>; SESSIONS],
    warned: Option<Instant>,
    /// When a session was last renewed for a test.
    renewed: Option<Instant>,
}

/// A handshake that is to be begun.
#[derive(Debug, Clone, Copy)]
struct Initiate {
    at: Instant,
    /// Even when there is a session or another handshake under way.
    force: bool,
}

impl Peer {
    /// A peer in a lane, without a session.
    pub(super) fn new(
        lane: &Lane,
        (key, side): (PublicKey, Side),
        index: u32,
        now: Instant,
    ) -> Self {
        let theirs = x25519::PublicKey::from(*key.as_bytes());
        Self {
            key,
            index,
            side,
            drops: Drops::default(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            too_big: AtomicBool::new(false),
            path_mtu: AtomicU32::new(0),
            further: lane.number > 0,
            state: Mutex::new(State {
                tunn: Tunn::new(
                    lane.private.secret().clone(),
                    theirs,
                    None,
                    None,
                    index,
                    Some(Arc::clone(&lane.admission.unlimited)),
                ),
                sealer: Sealer::default(),
                endpoint: None,
                keepalive: None,
                staged: VecDeque::new(),
                initiate: None,
                again: None,
                quick: QUICK,
                failures: 0,
                next_tick: now,
                last_sent: now,
                proven: None,
                established: None,
                confirmed: [None; SESSIONS],
                warned: None,
                renewed: None,
            }),
            waiting: AtomicU32::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        if let Some(state) = self.try_lock() {
            return state;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.spin();
        // Nobody gives way to who sleeps: it may take long to come.
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state.unwrap_or_else(|| self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether another thread wants the lock: who holds it for many packets gives it up between two of them.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Gives up the lock if another thread wants it, and takes it again after that.
    pub(super) fn give_way<'s>(&'s self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        if !self.is_wanted() {
            return state;
        }
        drop(state);
        for _ in 0..SPINS {
            if !self.is_wanted() {
                break;
            }
            hint::spin_loop();
        }
        self.lock()
    }

    /// Encrypts a packet that is being cut, or keeps its segments until there is a session; it goes out by `lane`, and
    /// `whole` or not at all if that is asked. Gives the inner bytes that went. Other threads get at the peer between two
    /// segments.
    pub(super) fn send<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        (packet, split): (&mut [u8], &mut Split),
        now: Instant,
        chance: impl FnOnce() -> Chance,
        (lane, whole): (&Lane, bool),
    ) -> u64 {
        let open = || {
            let mut out = lane.outbox();
            out.set_whole(whole);
            out
        };
        let Some(endpoint) = state.endpoint else {
            let dropped = std::iter::from_fn(|| split.next(packet)).count();
            self.drops.add(Drop::NoSession, dropped as u64);
            return 0;
        };
        if !state.has_session() {
            while let Some(range) = split.next(packet) {
                state.stage(self, packet.get(range).unwrap_or_default());
            }
            state.want_session(self, now, chance(), &mut open());
            return 0;
        }
        let mut out = open();
        let mut bytes = state.send_staged(self, endpoint, &mut out);
        while let Some(range) = split.next(packet) {
            let segment = packet.get(range).unwrap_or_default();
            bytes += state.encrypt(self, segment, endpoint, &mut out);
            if self.is_wanted() {
                drop(out);
                state = self.give_way(state);
                out = open();
            }
        }
        state.last_sent = now;
        drop(state);
        // Between two packets of the device, never inside of one: what a large one became then arrives together, and is
        // put together again.
        out.flush_if_full();
        bytes
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn spin(&self) -> Option<MutexGuard<'_, State>> {
        for _ in 0..SPINS {
            hint::spin_loop();
            if let Some(state) = self.try_lock() {
                return Some(state);
            }
        }
        None
    }
}

impl State {
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    pub(super) fn latest_handshake(&self) -> Option<SystemTime> {
        self.established.map(|(_, wall)| wall)
    }

    pub(super) fn set_keepalive(&mut self, seconds: Option<u16>) {
        self.keepalive = seconds
            .filter(|s| *s > 0)
            .map(|s| Duration::from_secs(s.into()));
    }

    /// Whether a further session carries traffic: lately its other end was heard, and hears us. Both ends see to that
    /// by their keepalives ([`super::STRIPE_KEEPALIVE`]).
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        let lately = |at| now.saturating_duration_since(at) < STRIPE_SILENCE;
        self.proven.is_some_and(lately) && self.has_session()
    }

    /// The peer shows that it hears us: it answers our handshake, or sends something in a session. An end of a further
    /// session that hears nothing falls silent but for handshakes, so that the other end knows, too, where only one
    /// direction is blocked. That the peer begins a handshake says nothing of the kind.
    pub(super) fn proves(&mut self, now: Instant) {
        self.proven = Some(now);
    }

    /// Whether data can go out now.
    fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn stage(&mut self, peer: &Peer, packet: &[u8]) {
        if self.staged.len() >= STAGED {
            self.staged.pop_front();
            peer.drops.count(Drop::NoSession);
        }
        self.staged.push_back(packet.to_vec());
    }

    fn send_staged(&mut self, peer: &Arc<Peer>, endpoint: SocketAddr, out: &mut Outbox) -> u64 {
        let mut bytes = 0;
        while let Some(packet) = self.staged.pop_front() {
            bytes += self.encrypt(peer, &packet, endpoint, out);
        }
        bytes
    }

    fn encrypt(
        &mut self,
        peer: &Arc<Peer>,
        packet: &[u8],
        endpoint: SocketAddr,
        out: &mut Outbox,
    ) -> u64 {
        let Some(len) = self.sealer.seal(&mut self.tunn, packet, out.slot()) else {
            peer.drops.count(Drop::NoSession);
            return 0;
        };
        out.commit(len, endpoint, peer);
        packet.len() as u64
    }

    /// A message of the peer was authentic: it is where that came from.
    pub(super) fn heard_from(&mut self, peer: &Peer, from: SocketAddr) {
        if self.endpoint != Some(from) {
            tracing::debug!(peer = %peer.key, old = ?self.endpoint, new = %from, "the peer moved");
            self.endpoint = Some(from);
        }
    }

    /// Both sides have the session of our index `receiver`; true when that is news.
    pub(super) fn confirm(&mut self, peer: &Peer, receiver: u32, now: Instant) -> bool {
        if self.confirmed.contains(&Some(receiver)) {
            return false;
        }
        self.confirmed.rotate_right(1);
        self.confirmed[0] = Some(receiver);
        self.established = Some((now, SystemTime::now()));
        self.initiate = None;
        self.again = None;
        self.quick = QUICK;
        self.failures = 0;
        tracing::debug!(peer = %peer.key, "handshake completed");
        true
    }

    /// Sends what waited for a session, before anything newer can: the caller holds the lock.
    pub(super) fn release_staged(
        &mut self,
        peer: &Arc<Peer>,
        now: Instant,
        out: &mut Outbox,
    ) -> u64 {
        let Some(endpoint) = self
            .endpoint
            .filter(|_| !self.staged.is_empty() && self.has_session())
        else {
            return 0;
        };
        let bytes = self.send_staged(peer, endpoint, out);
        self.last_sent = now;
        out.flush();
        bytes
    }

    /// Sends what boringtun has after an answer, which it gives piece by piece.
    pub(super) fn drain(&mut self, peer: &Arc<Peer>, to: SocketAddr, out: &mut Outbox) {
        while let TunnResult::WriteToNetwork(datagram) =
            self.tunn.decapsulate(None, &[], out.slot())
        {
            let len = datagram.len();
            out.commit(len, to, peer);
        }
    }

    /// A handshake was older than one before it.
    pub(super) fn warn_of_clock(&mut self, peer: &Peer, now: Instant) {
        if self
            .warned
            .is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY)
        {
            self.warned = Some(now);
            tracing::warn!(
                peer = %peer.key,
                "a handshake is older than one before it: it was replayed, or the clock of the peer went back; \
                 if the tunnel stays down, set the peer's clock right or restart this gateway"
            );
        }
    }
}
