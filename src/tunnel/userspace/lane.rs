//! A lane: one listener of ours, which is a key, a port and what keeps its handshakes within bounds. Shell.
//!
//! Lane 0 is the one that every peer can use. A peer that has as many listeners gets a session in each (a *stripe*);
//! every lane has its own two threads, so that sessions do not share a core.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boringtun::x25519;

use super::admission::Admission;
use super::meter::Gauge;
use super::outbox::Outbox;
use crate::key::PrivateKey;
use crate::net::udp::{Udp, UdpError, UdpSettings};

/// One listener.
pub(super) struct Lane {
    /// Its number, which is that of the stripe.
    pub(super) number: usize,
    pub(super) private: PrivateKey,
    pub(super) public: x25519::PublicKey,
    pub(super) udp: Arc<Udp>,
    /// Which handshake messages are looked at.
    pub(super) admission: Admission,
    /// How busy its two threads are.
    pub(super) threads: [Gauge; 2],
    /// What comes from the device and leaves by this lane. Threads of other lanes send by lane 0 as well: what they
    /// encrypt in one session leaves in the order of its counters, as it stands here.
    outbox: Mutex<Outbox>,
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
        let udp = Arc::new(Udp::bind(udp)?);
        Ok(Self {
            number,
            public,
            outbox: Mutex::new(Outbox::new(Arc::clone(&udp))),
            udp,
            admission: Admission::new(&public),
            threads: Default::default(),
            private,
        })
    }

    /// Who locks a peer, too, does that first.
    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
