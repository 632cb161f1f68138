//! A lane: one listener of ours, which is a key, a port and what keeps its handshakes within bounds. Shell.
//!
//! Lane 0 is the one that every peer can use. A peer that has as many listeners gets a session in each (a *stripe*);
//! every lane has its own two threads, so that sessions do not share a core.

use std::sync::Arc;

use boringtun::x25519;

use super::admission::Admission;
use super::meter::Gauge;
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
            admission: Admission::new(&public),
            threads: Default::default(),
            private,
        })
    }
}
