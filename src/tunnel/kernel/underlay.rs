//! What the underlay takes whole on the way to each peer. WireGuard of the kernel sends without DF: what is too big goes in
//! fragments, and nobody tells it. So a datagram of our own with DF, as large as the largest of the tunnel, goes to each
//! peer now and then; the kernel keeps what a router says to that. Shell.
//!
//! Nobody answers it, so of a router that drops in silence nothing is known; that one does no harm either, as far as it
//! passes fragments.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use subsea_api::PublicKey;

use crate::net::whole::Probe;

/// Between two datagrams to the same peer. What a router said is forgotten by the kernel after 10 minutes.
const EVERY: Duration = Duration::from_secs(20);
/// For so long a router may take to say something.
const ANSWER: Duration = Duration::from_secs(1);
/// So many go out at a time, and wait at most twice as many.
const BURST: usize = 32;

/// What is known of all peers.
#[derive(Debug, Default)]
pub(super) struct Underlay {
    paths: BTreeMap<PublicKey, Path>,
}

#[derive(Debug)]
struct Path {
    endpoint: SocketAddr,
    next: Instant,
    sent: Option<(Instant, Probe)>,
    known: Option<u32>,
}

impl Underlay {
    /// Looks after the peers; to be called about every second. `largest` gives the largest packet that the tunnel sends to
    /// an endpoint, in bytes.
    pub(super) fn look(
        &mut self,
        peers: &BTreeMap<PublicKey, SocketAddr>,
        mark: u32,
        largest: impl Fn(SocketAddr) -> u32,
        now: Instant,
    ) {
        self.paths
            .retain(|key, path| peers.get(key) == Some(&path.endpoint));
        for (key, endpoint) in peers {
            self.paths.entry(*key).or_insert_with(|| Path {
                endpoint: *endpoint,
                next: now,
                sent: None,
                known: None,
            });
        }
        for (key, path) in &mut self.paths {
            let size = largest(path.endpoint);
            if let Some((_, probe)) = path.sent.take_if(|(at, _)| now >= *at + ANSWER) {
                match probe.known() {
                    Ok(mtu) => {
                        let known = Some(mtu).filter(|mtu| *mtu < size);
                        if known != path.known {
                            tracing::info!(peer = %key, endpoint = %path.endpoint, mtu, "the path MTU changed");
                        }
                        path.known = known;
                    }
                    Err(error) => tracing::debug!(peer = %key, %error, "path MTU not read"),
                }
            }
        }
        let paths = self.paths.iter_mut();
        let mut due: Vec<_> = paths
            .filter(|(_, path)| path.sent.is_none() && path.next <= now)
            .collect();
        // Who waits longest comes first: in a large fleet all wait longer, and nobody for ever.
        due.sort_by_key(|(_, path)| path.next);
        for (key, path) in due.into_iter().take(BURST) {
            path.next = now + EVERY;
            match Probe::send(path.endpoint, mark, largest(path.endpoint)) {
                Ok(probe) => path.sent = Some((now, probe)),
                Err(error) => {
                    tracing::debug!(peer = %key, endpoint = %path.endpoint, %error, "path MTU not asked for");
                }
            }
        }
    }

    /// The largest packet that gets there whole, if the largest of the tunnel does not.
    pub(super) fn known(&self, key: &PublicKey) -> Option<u32> {
        self.paths.get(key)?.known
    }
}
