//! From the device to the underlay: the thread that encrypts. Shell.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::shared::Shared;
use super::verdict;
use crate::net::batch::Batch;
use crate::net::tun::is_lost;
use crate::net::wake::wait_readable;

/// A pause after an error that would otherwise come again at once.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until `shared.stop` is raised.
pub(super) fn run(shared: &Shared) {
    let mut batch = Batch::new();
    let mut out = Outbox::new(&shared.udp);
    let mut targets = Vec::new();
    loop {
        let device = shared.device();
        let (stop, changed) = (shared.stop.as_fd(), shared.device_changed.as_fd());
        // A lost device would make poll return for ever: only a new one is waited for.
        let lost = device.lost.load(Ordering::Relaxed);
        let source = if lost { changed } else { device.tun.as_fd() };
        let Ok([stopped, changed, readable]) = wait_readable([stop, changed, source], None) else {
            thread::sleep(PAUSE);
            continue;
        };
        if stopped {
            return;
        }
        if changed {
            shared.device_changed.lower();
            continue;
        }
        if !readable || lost {
            continue;
        }
        batch.clear();
        match device.tun.recv_batch(&mut batch) {
            Ok(_) => send(shared, &batch, &mut targets, &mut out),
            Err(error) if is_lost(&error) => device.lose(&error),
            Err(error) => {
                tracing::debug!(%error, "reading the tunnel device");
                thread::sleep(PAUSE);
            }
        }
    }
}

/// Finds the peer of each packet, then takes each peer's lock once for a run of packets.
fn send(
    shared: &Shared,
    batch: &Batch<()>,
    targets: &mut Vec<Option<(usize, usize)>>,
    out: &mut Outbox<'_>,
) {
    let table = shared.table();
    targets.clear();
    targets.extend(batch.iter().map(|((), packet)| {
        match verdict::outbound(packet, &table.local, &table.routes) {
            Ok((peer, inner)) => Some((peer, inner.len)),
            Err(reason) => {
                if !verdict::is_chatter(packet) {
                    shared.drops.count(reason);
                }
                None
            }
        }
    }));
    let now = Instant::now();
    let mut at = 0;
    for run in targets.chunk_by(|a, b| a.map(|(peer, _)| peer) == b.map(|(peer, _)| peer)) {
        let entry = run
            .first()
            .copied()
            .flatten()
            .and_then(|(peer, _)| table.entries.get(peer));
        if let Some(entry) = entry {
            let packets = run.iter().enumerate().filter_map(|(offset, target)| {
                let (_, len) = (*target)?;
                batch.get(at + offset)?.1.get(..len)
            });
            let bytes = entry
                .peer
                .lock()
                .send(&entry.peer, packets, now, shared.chance(), out);
            entry.peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        at += run.len();
    }
    out.flush();
}
