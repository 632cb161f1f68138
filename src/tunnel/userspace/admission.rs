//! Which handshake messages are worth a Diffie-Hellman: the MACs and cookies of WireGuard's whitepaper, sections 5.3 and
//! 5.4.7, within a budget. Shell around boringtun's `RateLimiter`.
//!
//! ```text
//! budget of MACs -> first MAC -> budget of the source's kind -> few, and from a source that sent few: admitted
//!                                                            -> else only with a cookie: the address is real
//! ```
//!
//! Whoever knows our public key can make the first MAC, and send from any address: so nobody is turned away for what
//! others sent from his address, but asked for a cookie, which only he gets.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;

use super::budget::Budget;
use super::sources::Sources;
use crate::tunnel::Drop;

/// Handshake messages in a second from which on senders must show a cookie. A gateway of a large fleet that
/// restarts gets some hundred at once; each costs about 0.2 ms.
const BEFORE_COOKIES: u32 = 500;
/// Messages a second from one source without a cookie; many gateways may be behind one NAT.
const OF_A_SOURCE: u16 = 50;
/// Messages a second from an address of a peer that count as the peer's.
const OF_A_PEER: u16 = 200;

/// The gate of one listener.
pub(super) struct Admission {
    /// Checks the first MAC; never under load. The `Tunn`s use it too, so that nothing is asked for twice.
    pub(super) unlimited: Arc<RateLimiter>,
    /// Always under load: wants a cookie.
    strict: RateLimiter,
    budget: Budget,
    seen: AtomicU32,
    sources: Sources,
    /// Of those that showed a cookie.
    proven: Sources,
    peers: Sources,
}

/// Why a message was not admitted.
pub(super) enum Refusal<'c> {
    /// Counted and forgotten.
    Drop(Drop),
    /// It must come again with this cookie.
    Cookie(&'c [u8]),
}

impl Admission {
    pub(super) fn new(public: &x25519::PublicKey) -> Self {
        Self {
            unlimited: Arc::new(RateLimiter::new(public, u64::MAX)),
            strict: RateLimiter::new(public, 0),
            budget: Budget::default(),
            seen: AtomicU32::new(0),
            sources: Sources::new(OF_A_SOURCE),
            proven: Sources::new(OF_A_SOURCE),
            peers: Sources::new(OF_A_PEER),
        }
    }

    /// Admits a message or says why not; `known` when a peer is said, or was heard, to be at `from`.
    pub(super) fn admit<'d, 'c>(
        &self,
        known: bool,
        from: IpAddr,
        datagram: &'d [u8],
        cookie: &'c mut [u8; 64],
    ) -> Result<Packet<'d>, Refusal<'c>> {
        let limited = || Refusal::Drop(Drop::RateLimited);
        if !self.budget.take_mac() {
            return Err(limited());
        }
        // Cheap, and nothing else is spent on who does not know our key.
        let packet = match self.unlimited.verify_packet(Some(from), datagram, &mut []) {
            Ok(packet) => packet,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                return Err(Refusal::Drop(Drop::Unauthentic));
            }
            Err(_) => return Err(Refusal::Drop(Drop::Unknown)),
        };
        let known = known && self.peers.allows(from);
        if !self.budget.take(known) {
            return Err(limited());
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        if seen < BEFORE_COOKIES && self.sources.allows(from) {
            return Ok(packet);
        }
        match self.strict.verify_packet(Some(from), datagram, cookie) {
            Ok(packet) if self.proven.allows(from) => Ok(packet),
            Err(TunnResult::WriteToNetwork(reply)) => Err(Refusal::Cookie(reply)),
            Ok(_) | Err(_) => Err(limited()),
        }
    }

    /// To be called [`super::budget::REFILLS`] times a second, with true once a second.
    pub(super) fn tick(&self, new_second: bool) {
        self.budget.refill();
        if new_second {
            self.seen.store(0, Ordering::Relaxed);
            for sources in [&self.sources, &self.proven, &self.peers] {
                sources.reset();
            }
        }
    }
}
