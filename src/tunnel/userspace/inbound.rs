//! From the underlay to the device: the thread that decrypts and answers handshakes. Shell.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};
use subsea_api::PublicKey;

use super::outbox::Outbox;
use super::peer::State;
use super::shared::Shared;
use super::table::{Entry, Table};
use super::verdict;
use super::wire::{self, Message};
use crate::net::batch::{Batch, CAPACITY};
use crate::net::tun::is_lost;
use crate::net::udp::{ReceiveBatch, UdpReceiver};
use crate::net::wake::wait_readable;
use crate::tunnel::Drop;

/// Batches of one socket before the other one and `stop` are looked at again.
const BATCHES: usize = 16;
/// A pause after an error that would otherwise come again at once.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until `shared.stop` is raised.
pub(super) fn run(shared: &Shared) {
    let mut inbound = Inbound {
        shared,
        inside: Batch::new(),
        out: Outbox::new(&shared.udp),
    };
    let mut datagrams = Batch::new();
    let mut v4 = shared.udp.receiver_v4();
    let mut v6 = shared.udp.receiver_v6();
    loop {
        let stop = shared.stop.as_fd();
        let second = v6.as_ref().map_or(stop, AsFd::as_fd);
        let Ok([stopped, from_v4, from_v6]) = wait_readable([stop, v4.as_fd(), second], None)
        else {
            thread::sleep(PAUSE);
            continue;
        };
        if stopped {
            return;
        }
        if from_v4 {
            inbound.drain(&mut v4, &mut datagrams);
        }
        if let Some(v6) = v6.as_mut().filter(|_| from_v6) {
            inbound.drain(v6, &mut datagrams);
        }
    }
}

struct Inbound<'a> {
    shared: &'a Shared,
    /// Decrypted packets, each with the position of its peer.
    inside: Batch<usize>,
    out: Outbox<'a>,
}

/// The peer that the last packet was for, still locked.
type Locked<'t> = Option<(usize, &'t Entry, MutexGuard<'t, State>)>;

impl Inbound<'_> {
    fn drain(&mut self, receiver: &mut UdpReceiver<'_>, datagrams: &mut Batch<SocketAddr>) {
        for _ in 0..BATCHES {
            datagrams.clear();
            match receiver.recv_batch(datagrams) {
                Ok(got) => {
                    self.handle_batch(datagrams);
                    if got < CAPACITY {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the UDP socket");
                    thread::sleep(PAUSE);
                    return;
                }
            }
        }
    }

    fn handle_batch(&mut self, datagrams: &Batch<SocketAddr>) {
        let table = self.shared.table();
        let now = Instant::now();
        let mut locked: Locked<'_> = None;
        for (from, datagram) in datagrams.iter() {
            self.handle(&table, &mut locked, *from, datagram, now);
        }
        drop(locked);
        self.out.flush();
        self.write_inside(&table);
    }

    fn handle<'t>(
        &mut self,
        table: &'t Table,
        locked: &mut Locked<'t>,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) {
        let found = match wire::classify(datagram) {
            None => Err(Drop::Unknown),
            Some(message @ (Message::Data { receiver } | Message::Cookie { receiver })) => table
                .by_receiver(receiver)
                .map(|peer| (peer, message))
                .ok_or(Drop::Unknown),
            Some(message @ Message::Response { receiver }) => table
                .by_receiver(receiver)
                .ok_or(Drop::Unknown)
                .and_then(|peer| self.admit(from, datagram).map(|_| (peer, message))),
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
        if locked.as_ref().is_none_or(|(held, ..)| *held != position) {
            *locked = None;
            *locked = table
                .entries
                .get(position)
                .map(|entry| (position, entry, entry.peer.lock()));
        }
        let Some((_, entry, state)) = locked else {
            return;
        };
        let done = match message {
            Message::Data { receiver } => self.data(
                table,
                (position, entry),
                state,
                (from, datagram, receiver),
                now,
            ),
            Message::Initiation => self.handshake(entry, state, (from, datagram, None), now),
            Message::Response { receiver } | Message::Cookie { receiver } => {
                self.handshake(entry, state, (from, datagram, Some(receiver)), now)
            }
        };
        if let Err(reason) = done {
            entry.peer.drops.count(reason);
        }
    }

    /// Checks the first MAC of a handshake message, counts it, and asks for a cookie under load.
    fn admit<'d>(&mut self, from: SocketAddr, datagram: &'d [u8]) -> Result<Packet<'d>, Drop> {
        let mut cookie = [0; 64];
        match self
            .shared
            .gate
            .verify_packet(Some(from.ip()), datagram, &mut cookie)
        {
            Ok(packet) => Ok(packet),
            Err(TunnResult::WriteToNetwork(reply)) => {
                self.out.send_stranger(reply, from);
                Err(Drop::RateLimited)
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Err(Drop::Unauthentic),
            Err(_) => Err(Drop::Unknown),
        }
    }

    /// Finds out whose initiation it is.
    fn identify(
        &mut self,
        table: &Table,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<usize, Drop> {
        let Packet::HandshakeInit(initiation) = self.admit(from, datagram)? else {
            return Err(Drop::Unknown);
        };
        if !self.shared.sources.allows(from.ip()) {
            return Err(Drop::RateLimited);
        }
        let half = parse_handshake_anon(
            self.shared.private.secret(),
            &self.shared.public,
            &initiation,
        )
        .map_err(|_| Drop::Unauthentic)?;
        let key = PublicKey::from_bytes(half.peer_static_public).map_err(|_| Drop::UnknownPeer)?;
        table.by_key(&key).ok_or(Drop::UnknownPeer)
    }

    fn data(
        &mut self,
        table: &Table,
        (position, entry): (usize, &Entry),
        state: &mut State,
        (from, datagram, receiver): (SocketAddr, &[u8], u32),
        now: Instant,
    ) -> Result<(), Drop> {
        let peer = &entry.peer;
        if self.inside.is_full() {
            self.write_inside(table);
        }
        let slot = self.inside.spare().unwrap_or_default();
        let len = match state.tunn.decapsulate(Some(from.ip()), datagram, slot) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                packet.len()
            }
            TunnResult::Done | TunnResult::WriteToNetwork(_) => 0,
            TunnResult::Err(error) => return Err(refusal(&error)),
        };
        state.heard_from(peer, from);
        if state.confirm(peer, receiver, now) {
            let bytes = state.release_staged(peer, now, &mut self.out);
            peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        if len > 0 {
            let packet = slot.get(..len).unwrap_or_default();
            let inner = verdict::inbound(packet, &entry.sources, &table.local)?;
            self.inside.commit(inner.len, position);
            peer.rx_bytes.fetch_add(inner.len as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Handles an initiation (`receiver` is `None`), a response or a cookie.
    fn handshake(
        &mut self,
        entry: &Entry,
        state: &mut State,
        (from, datagram, receiver): (SocketAddr, &[u8], Option<u32>),
        now: Instant,
    ) -> Result<(), Drop> {
        let peer = &entry.peer;
        let len = match state
            .tunn
            .decapsulate(Some(from.ip()), datagram, self.out.slot())
        {
            TunnResult::WriteToNetwork(reply) => reply.len(),
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return Ok(()),
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
                state.confirm(peer, receiver, now);
                let bytes = state.release_staged(peer, now, &mut self.out);
                peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Gives the decrypted packets to the device.
    fn write_inside(&mut self, table: &Table) {
        if self.inside.is_empty() {
            return;
        }
        let device = self.shared.device();
        for refused in device.tun.send_batch(&self.inside) {
            if is_lost(&refused.error) {
                device.lose(&refused.error);
            }
            let owner = self
                .inside
                .get(refused.position)
                .and_then(|(position, _)| table.entries.get(*position));
            if let Some(entry) = owner {
                entry.peer.drops.count(Drop::Kernel);
            }
        }
        self.inside.clear();
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
