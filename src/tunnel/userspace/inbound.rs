//! From the underlay to the device: what a lane decrypts, and the handshakes that it answers. Shell.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};
use subsea_api::PublicKey;

use super::admission::Refusal;
use super::cipher;
use super::inside::Inside;
use super::lane::Lane;
use super::outbox::Outbox;
use super::peer::{Peer, State};
use super::shared::Shared;
use super::table::{Entry, Table};
use super::verdict;
use super::wire::{self, Message};
use super::worker::PAUSE;
use crate::net::udp::Arrivals;
use crate::net::whole;
use crate::tunnel::Drop;

/// Batches of one socket before the other one and `stop` are looked at again.
const BATCHES: usize = 16;
/// What the thread works with.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    arrivals: Option<Arrivals>,
    /// Decrypted packets on their way to the device.
    inside: Inside,
    out: Outbox,
}

/// Which sockets of a lane may have something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sockets {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Sockets {
    pub(super) const NONE: Self = Self {
        v4: false,
        v6: false,
    };

    pub(super) fn add(&mut self, more: Self) {
        self.v4 |= more.v4;
        self.v6 |= more.v6;
    }

    pub(super) fn any(self) -> bool {
        self.v4 || self.v6
    }
}

/// The peer that the last packet was for, still locked.
type Locked<'t> = Option<(usize, Held<'t>, MutexGuard<'t, State>)>;

/// A peer with the gateway that it belongs to.
#[derive(Clone, Copy)]
struct Held<'t> {
    entry: &'t Entry,
    peer: &'t Arc<Peer>,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, lane: Arc<Lane>) -> Self {
        Self {
            arrivals: Some(Arrivals::default()),
            inside: Inside::new(lane.number),
            out: Outbox::new(Arc::clone(&lane.udp)),
            shared,
            lane,
        }
    }

    /// Handles what waits, though not for ever: `poll` tells when there is more.
    pub(super) fn drain(&mut self, mut sockets: Sockets) {
        for _ in 0..BATCHES {
            (sockets, _) = self.step(sockets);
            if !sockets.any() {
                return;
            }
        }
    }

    /// Handles a batch of each socket; gives which of them may have more, and whether there was anything.
    pub(super) fn step(&mut self, sockets: Sockets) -> (Sockets, bool) {
        let Some(mut arrivals) = self.arrivals.take() else {
            return (Sockets::NONE, false);
        };
        let lane = Arc::clone(&self.lane);
        let (v4, v6) = lane.udp.sockets();
        let mut worked = false;
        let mut one = |socket: Option<BorrowedFd<'_>>| match socket.map(|s| arrivals.receive(s)) {
            None => false,
            Some(Ok(more)) => {
                if !arrivals.is_empty() {
                    worked = true;
                    self.handle_batch(&arrivals);
                }
                more
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "reading the UDP socket");
                thread::sleep(PAUSE);
                false
            }
        };
        let more = Sockets {
            v4: one(Some(v4).filter(|_| sockets.v4)),
            v6: one(v6.filter(|_| sockets.v6)),
        };
        self.arrivals = Some(arrivals);
        (more, worked)
    }

    fn handle_batch(&mut self, arrivals: &Arrivals) {
        let table = self.shared.table();
        self.inside.turn_to(self.shared.device());
        let now = Instant::now();
        let mut locked: Locked<'_> = None;
        for (from, datagram) in arrivals.datagrams() {
            self.handle(&table, &mut locked, from, datagram, now);
        }
        drop(locked);
        // Nothing waits here for what may come later: coalescing adds no delay.
        self.inside.flush();
        self.out.flush();
    }

    fn handle<'t>(
        &mut self,
        table: &'t Table,
        locked: &mut Locked<'t>,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) {
        let lane = self.lane.number;
        let by_receiver = |receiver| table.by_receiver(lane, receiver).ok_or(Drop::Unknown);
        let found = match wire::classify(datagram) {
            // A kernel driver asks routers for their MTU; nobody expects an answer.
            None if datagram.starts_with(&whole::MAGIC) => return,
            None => Err(Drop::Unknown),
            Some(message @ (Message::Data { receiver } | Message::Cookie { receiver })) => {
                by_receiver(receiver).map(|peer| (peer, message))
            }
            Some(message @ Message::Response { receiver }) => {
                *locked = None;
                by_receiver(receiver)
                    .and_then(|peer| self.admit(table, from, datagram).map(|_| (peer, message)))
            }
            Some(message @ Message::Initiation) => {
                // Looking for the key takes time: nobody waits for the lock meanwhile.
                *locked = None;
                self.identify(table, from, datagram)
                    .map(|peer| (peer, message))
            }
        };
        let (position, message) = match found {
            Ok(found) => found,
            Err(reason) => return self.shared.drops.count(reason),
        };
        let previous = locked.take();
        *locked = match previous {
            Some((at, held, state)) if at == position => {
                Some((at, held, held.peer.give_way(state)))
            }
            other => {
                // Nobody holds two.
                drop(other);
                table.entries.get(position).and_then(|entry| {
                    let peer = entry.stripe(lane)?;
                    Some((position, Held { entry, peer }, peer.lock()))
                })
            }
        };
        let Some((_, held, state)) = locked else {
            return self.shared.drops.count(Drop::Unknown);
        };
        let done = match message {
            Message::Data { receiver } => {
                self.data(table, *held, state, (from, datagram, receiver), now)
            }
            Message::Initiation => self.handshake(held.peer, state, (from, datagram, None), now),
            Message::Response { receiver } | Message::Cookie { receiver } => {
                self.handshake(held.peer, state, (from, datagram, Some(receiver)), now)
            }
        };
        let peer = held.peer;
        match done {
            Ok(0) => {}
            Ok(len) => {
                peer.rx_bytes.fetch_add(len as u64, Ordering::Relaxed);
                if self.inside.joins(len, peer) {
                    return;
                }
                // To write to the device is to run the kernel's whole way to the pod: nobody waits for the lock
                // meanwhile.
                *locked = None;
                self.inside.begin(len, peer);
            }
            Err(reason) => peer.drops.count(reason),
        }
    }

    /// Admits a handshake message, or answers it with a cookie.
    fn admit<'d>(
        &mut self,
        table: &Table,
        from: SocketAddr,
        datagram: &'d [u8],
    ) -> Result<Packet<'d>, Drop> {
        let addr = from.ip();
        let known = table.knows(addr) || self.shared.heard(addr);
        let mut cookie = [0; 64];
        let admission = &self.lane.admission;
        match admission.admit(known, addr, datagram, &mut cookie) {
            Ok(packet) => Ok(packet),
            Err(Refusal::Drop(reason)) => Err(reason),
            Err(Refusal::Cookie(reply)) => {
                self.out.send_stranger(reply, from);
                Err(Drop::RateLimited)
            }
        }
    }

    /// Finds out whose initiation it is.
    fn identify(
        &mut self,
        table: &Table,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<usize, Drop> {
        let Packet::HandshakeInit(initiation) = self.admit(table, from, datagram)? else {
            return Err(Drop::Unknown);
        };
        let half = parse_handshake_anon(self.lane.private.secret(), &self.lane.public, &initiation)
            .map_err(|_| Drop::Unauthentic)?;
        let key = PublicKey::from_bytes(half.peer_static_public).map_err(|_| Drop::UnknownPeer)?;
        table
            .by_key(self.lane.number, &key)
            .ok_or(Drop::UnknownPeer)
    }

    /// Decrypts a packet to where the device's next one is made, and gives its length: 0 for a keepalive.
    fn data(
        &mut self,
        table: &Table,
        Held { entry, peer }: Held<'_>,
        state: &mut State,
        (from, datagram, receiver): (SocketAddr, &[u8], u32),
        now: Instant,
    ) -> Result<usize, Drop> {
        let room = self.inside.room();
        let opened = match cipher::open(&mut state.tunn, from.ip(), datagram, room) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                let passed = verdict::inbound(packet, &entry.sources, &table.local);
                passed.map(|inner| {
                    table.came_by(entry, packet, now);
                    inner.len
                })
            }
            TunnResult::Done | TunnResult::WriteToNetwork(_) => Ok(0),
            TunnResult::Err(error) => {
                self.inside.reject();
                return Err(refusal(&error));
            }
        };
        // Authentic, whatever is in it.
        state.heard_from(peer, from);
        state.proves(now);
        if state.confirm(peer, receiver, now) {
            let bytes = state.release_staged(peer, now, &mut self.out);
            peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if !opened.as_ref().is_ok_and(|len| *len > 0) {
            self.inside.reject();
        }
        opened
    }

    /// Handles an initiation (`receiver` is `None`), a response or a cookie.
    fn handshake(
        &mut self,
        peer: &Arc<Peer>,
        state: &mut State,
        (from, datagram, receiver): (SocketAddr, &[u8], Option<u32>),
        now: Instant,
    ) -> Result<usize, Drop> {
        let len = match state
            .tunn
            .decapsulate(Some(from.ip()), datagram, self.out.slot())
        {
            TunnResult::WriteToNetwork(reply) => reply.len(),
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return Ok(0),
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::WrongTai64nTimestamp) {
                    state.warn_of_clock(peer, now);
                }
                return Err(refusal(&error));
            }
        };
        self.out.commit(len, from, peer);
        state.heard_from(peer, from);
        state.drain(peer, from, &mut self.out);
        match receiver {
            None => state.answered(now),
            Some(receiver) => {
                state.proves(now);
                state.confirm(peer, receiver, now);
                let bytes = state.release_staged(peer, now, &mut self.out);
                peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
                // The new session's first message is in it, and other threads send in that session as soon as they can.
                self.out.flush();
            }
        }
        Ok(0)
    }
}

/// Why boringtun did not take a message of a known peer.
fn refusal(error: &WireGuardError) -> Drop {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp => Drop::Replay,
        WireGuardError::InvalidMac
        | WireGuardError::InvalidAeadTag
        | WireGuardError::WrongKey
        | WireGuardError::InvalidTai64nTimestamp => Drop::Unauthentic,
        // The datagram was read before: this is what was in it.
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => Drop::Malformed,
        WireGuardError::UnderLoad => Drop::RateLimited,
        WireGuardError::NoCurrentSession
        | WireGuardError::WrongIndex
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongPacketType
        | WireGuardError::DestinationBufferTooSmall
        | WireGuardError::LockFailed
        | WireGuardError::ConnectionExpired => Drop::Unknown,
    }
}
