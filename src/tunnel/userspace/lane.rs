//! A lane: one listener of ours, which is a key, a port and what keeps its handshakes within bounds. Shell.
//!
//! Lane 0 is the one that every peer can use. A peer that has as many listeners gets a session in each (a *stripe*);
//! every lane has its own two threads, so that sessions do not share a core.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use super::budget::Budget;
use super::meter::Gauge;
use super::sources::Sources;
use crate::key::PrivateKey;
use crate::net::udp::{Udp, UdpError, UdpSettings};

/// Handshake messages in a second from which on senders must show a cookie. A gateway of a large fleet that
/// restarts gets some hundred at once; each costs about 0.2 ms.
const HANDSHAKES_BEFORE_COOKIES: u64 = 500;

/// One listener.
pub(super) struct Lane {
    /// Its number, which is that of the stripe.
    pub(super) number: usize,
    pub(super) private: PrivateKey,
    pub(super) public: x25519::PublicKey,
    pub(super) udp: Arc<Udp>,
    /// Counts every handshake message once, and asks for cookies under load.
    pub(super) gate: RateLimiter,
    /// For the `Tunn`s, which would count a second time: never under load.
    pub(super) unlimited: Arc<RateLimiter>,
    pub(super) sources: Sources,
    pub(super) budget: Budget,
    /// How busy its two threads are.
    pub(super) threads: [Gauge; 2],
}

impl Lane {
    /// Opens the port. A busy one is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`UdpError`].
    pub(super) fn open(
        number: usize,
        private: PrivateKey,
        udp: UdpSettings,
    ) -> Result<Self, UdpError> {
        let public = x25519::PublicKey::from(private.secret());
        Ok(Self {
            number,
            public,
            udp: Arc::new(Udp::bind(udp)?),
            gate: RateLimiter::new(&public, HANDSHAKES_BEFORE_COOKIES),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            sources: Sources::default(),
            budget: Budget::default(),
            threads: Default::default(),
            private,
        })
    }
}
