//! The thread that time passes on. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::budget::REFILLS;
use super::lane::Lane;
use super::outbox::Outbox;
use super::peer::Peer;
use super::shared::Shared;
use super::table::{Entry, Table};
use crate::net::udp::{Refusals, Refused};
use crate::net::wake::wait_readable;

/// How often peers are looked at; each decides by itself when it is due.
const STEP: Duration = Duration::from_millis(50);
const _: () = assert!(STEP.as_millis() * REFILLS as u128 == 1_000);
/// How often the path MTU towards a peer is read again that was too small once: the kernel forgets it after 10 minutes.
const MTU_AGAIN: Duration = Duration::from_secs(10);
/// A pause after something was heard of refused datagrams: anybody can send such, and a flood is to cost little.
const HEARD: Duration = Duration::from_millis(2);

/// Runs until `shared.stop` is raised.
pub(super) fn run(shared: &Shared) {
    let mut outboxes: BTreeMap<usize, Outbox> = BTreeMap::new();
    let mut second = Instant::now();
    let mut mtus = Instant::now();
    let mut due = Instant::now() + STEP;
    let refusals = Refusals::open();
    loop {
        let stop = shared.stop.as_fd();
        let [v4, v6] = refusals.sockets().map(|socket| socket.unwrap_or(stop));
        let left = due.saturating_duration_since(Instant::now());
        match wait_readable([stop, v4, v6], Some(left)) {
            Ok([true, ..]) => return,
            Ok([false, false, false]) => {}
            Ok(_) => {
                hear(shared, &shared.table(), &refusals.take());
                std::thread::sleep(HEARD);
            }
            Err(_) => std::thread::sleep(STEP),
        }
        let now = Instant::now();
        // What was heard of is no step: handshakes are budgeted by steps.
        if now < due {
            continue;
        }
        due = now + STEP;
        let new_second = now.duration_since(second) >= Duration::from_secs(1);
        if new_second {
            second = now;
        }
        let all_mtus = now.duration_since(mtus) >= MTU_AGAIN;
        if all_mtus {
            mtus = now;
        }
        let table = shared.table();
        if new_second {
            let peers = table.entries.iter().flat_map(Entry::peers);
            shared.set_heard(peers.filter_map(|(_, peer)| Some(peer.lock().endpoint()?.ip())));
        }
        if let Some(flows) = table.flows().filter(|_| new_second) {
            flows.sweep(flows.tick(now));
        }
        for lane in &*shared.lanes() {
            lane.admission.tick(new_second);
            let out = outboxes
                .entry(lane.number)
                .or_insert_with(|| Outbox::new(Arc::clone(&lane.udp)));
            for entry in &table.entries {
                if let Some(peer) = entry.stripe(lane.number) {
                    let mut state = peer.lock();
                    if let Some(age) = shared.rekey_after.get() {
                        state.renew_at(*age, peer, now);
                    }
                    state.tick(peer, now, shared.chance(), out);
                    // Before another thread sends in the same session.
                    out.flush();
                    drop(state);
                    look_at_mtu(lane, peer, all_mtus);
                }
            }
        }
    }
}

/// Counts refused datagrams at the peers that they were for, and says so.
fn hear(shared: &Shared, table: &Table, refused: &BTreeSet<Refused>) {
    let lanes = shared.lanes();
    let is_ours = |refused: &&Refused| lanes.iter().any(|lane| lane.udp.port() == refused.port);
    // Those of other programs are heard of, too.
    if !refused.iter().any(|one| is_ours(&one)) {
        return;
    }
    let is_refused = |(lane, peer): (usize, &Arc<Peer>)| {
        let port = lanes.get(lane).map(|lane| lane.udp.port());
        let to = peer.lock().endpoint();
        port.zip(to)
            .is_some_and(|(port, to)| refused.contains(&Refused { port, to }))
    };
    let entries = table.entries.iter();
    let hit: Vec<_> = entries
        .filter(|entry| entry.peers().any(is_refused))
        .map(|entry| entry.first().key)
        .collect();
    shared.refusals.send_if_modified(|counts| {
        counts.retain(|key, _| table.entry(key).is_some());
        for key in &hit {
            *counts.entry(*key).or_default() += 1;
        }
        !hit.is_empty()
    });
}

/// Reads the path MTU towards a peer when something was too big for it, and from then on every now and then.
fn look_at_mtu(lane: &Lane, peer: &Peer, again: bool) {
    let known = peer.path_mtu.load(Ordering::Relaxed);
    let was_too_big = peer.too_big.swap(false, Ordering::Relaxed);
    if !was_too_big && (!again || known == 0) {
        return;
    }
    let Some(endpoint) = peer.lock().endpoint() else {
        return;
    };
    match lane.udp.path_mtu(endpoint) {
        Ok(mtu) if mtu != known => {
            tracing::info!(peer = %peer.key, %endpoint, mtu, "the path MTU changed");
            peer.path_mtu.store(mtu, Ordering::Relaxed);
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(peer = %peer.key, %error, "path MTU not read"),
    }
}
