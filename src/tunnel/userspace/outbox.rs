//! Datagrams on their way out, each with the peer that it is for. Shell.

use std::net::SocketAddr;
use std::sync::Arc;

use super::peer::Peer;
use crate::net::batch::Batch;
use crate::net::udp::{SendBatch, Udp, UdpSender};
use crate::tunnel::Drop;

/// A batch that sends itself when it is full.
pub(super) struct Outbox<'a> {
    sender: UdpSender<'a>,
    batch: Batch<SocketAddr>,
    /// Runs of datagrams of one peer: where each ends, and whose it is.
    owners: Vec<(usize, Arc<Peer>)>,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(udp: &'a Udp) -> Self {
        Self {
            sender: udp.sender(),
            batch: Batch::new(),
            owners: Vec::new(),
        }
    }

    /// The buffer for the next datagram: always room for the largest one.
    pub(super) fn slot(&mut self) -> &mut [u8] {
        if self.batch.is_full() {
            self.flush();
        }
        self.batch.spare().unwrap_or_default()
    }

    /// Makes the buffer of [`Self::slot`] a datagram.
    pub(super) fn commit(&mut self, len: usize, to: SocketAddr, owner: &Arc<Peer>) {
        self.batch.commit(len, to);
        let end = self.batch.len();
        match self.owners.last_mut() {
            Some((last, peer)) if Arc::ptr_eq(peer, owner) => *last = end,
            _ => self.owners.push((end, Arc::clone(owner))),
        }
    }

    /// Sends one datagram that is for no peer, at once and without caring for its fate.
    pub(super) fn send_stranger(&mut self, bytes: &[u8], to: SocketAddr) {
        self.flush();
        self.batch.push(bytes, to);
        self.flush();
    }

    /// How many datagrams wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether none waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Sends what waits; counts what the kernel refused.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        for refusal in self.sender.send_batch(&self.batch) {
            if let Some((_, peer)) = self.owners.iter().find(|(end, _)| refusal.position < *end) {
                peer.drops.count(Drop::Kernel);
                tracing::trace!(peer = %peer.key, error = %refusal.error, "the kernel refused a datagram");
            }
        }
        self.batch.clear();
        self.owners.clear();
    }
}
