//! From the device to the underlay: what a lane encrypts. Shell.
//!
//! It takes from the kernel whatever waits there and serves it in a fair order, so that what is dropped under overload
//! is of the flow that sends most, and a lone packet does not wait behind a bulk transfer.
//!
//! A flow keeps to one lane: the kernel gives its packets to the queue on which packets of the other direction were
//! written last, in the last 3 s (drivers/net/tun.c, automq), and before there are any to one chosen by a hash. So both
//! directions settle on the lane by which the first packet came. A lane that does not work for a peer sends its packets
//! by lane 0 instead; the peer's answers come by that, and so the flow moves over there as a whole.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::inner;
use super::lane::Lane;
use super::offload::flow;
use super::offload::split::Split;
use super::offload::vnet::{self, Vnet};
use super::pool::{Pool, Size};
use super::queue::FairQueue;
use super::shared::{Device, Shared};
use super::table::Table;
use super::verdict;
use super::worker::PAUSE;
use crate::net::tun::is_lost;
use crate::tunnel::{Drop, ECHO_PORT};

/// Packets that are read before some are served: about as many as there is room for.
const READS: usize = 1024;
/// Bytes that are served before the device is looked at again, unless reading took longer.
const SERVED: usize = 16 << 10;
/// What a packet costs beside its bytes.
const PACKET: usize = 256;
/// Echo of up to so many bytes is no question for the path's MTU.
const UNPADDED: usize = 512;

/// What the thread works with.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    pool: Pool,
    queue: FairQueue,
    /// Towards peers without a session in this lane: by lane 0.
    fallback: Option<Fallback>,
}

struct Fallback {
    first: Arc<Lane>,
    /// Something of ours may wait there.
    used: bool,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, lane: Arc<Lane>) -> Self {
        let first = shared.lanes().first().cloned();
        let first = first.filter(|_| lane.number > 0);
        Self {
            shared,
            lane,
            pool: Pool::new(),
            queue: FairQueue::default(),
            fallback: first.map(|first| Fallback { first, used: false }),
        }
    }

    /// Reads and serves some; gives whether more waits, and whether there was anything.
    ///
    /// What the device has no room for is lost, whoever sent it; here the heaviest flow loses. So all that waits there
    /// is read before anything is served. Serving gets at least as much time as reading: else a flood would leave none.
    pub(super) fn step(&mut self, device: &Device) -> (bool, bool) {
        let start = Instant::now();
        let empty = match self.read(device) {
            Ok(empty) => empty,
            Err(error) if is_lost(&error) => {
                device.lose(&error);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "reading the tunnel device");
                thread::sleep(PAUSE);
                true
            }
        };
        let worked = !self.queue.is_empty();
        self.serve(start.elapsed());
        let more = !empty || !self.queue.is_empty();
        if !more {
            self.flush();
        }
        (more, worked)
    }

    /// Sends what was collected.
    pub(super) fn flush(&mut self) {
        self.lane.outbox().flush();
        if let Some(fallback) = self.fallback.as_mut().filter(|fallback| fallback.used) {
            fallback.first.outbox().flush();
            fallback.used = false;
        }
    }

    /// Takes what waits in the kernel, not too much at a time; gives whether nothing is left there.
    fn read(&mut self, device: &Device) -> std::io::Result<bool> {
        for _ in 0..READS {
            while let Some(size) = self.pool.lacks() {
                self.make_room(size);
            }
            let Some(packet) = self.pool.read(&device.tun, self.lane.number)? else {
                return Ok(true);
            };
            let bytes = self
                .pool
                .get_mut(packet)
                .get(vnet::LEN..)
                .unwrap_or_default();
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let class = Pool::size(packet) as usize;
            self.queue.push(flow::hash(bytes), class, packet, len);
        }
        Ok(false)
    }

    /// Makes room at the cost of the heaviest flow.
    fn make_room(&mut self, size: Size) {
        let Self { queue, pool, .. } = self;
        let mut packets = 0_u64;
        queue.drop_of_heaviest(size as usize, |packet| {
            packets += count(pool.get_mut(packet));
            pool.free(packet);
        });
        self.shared.drops.add(Drop::Queue, packets);
    }

    /// Sends what waits, in a fair order: some of it, and more for as long as reading it took.
    fn serve(&mut self, reading: Duration) {
        let start = Instant::now();
        loop {
            let (table, now) = (self.shared.table(), Instant::now());
            if now.saturating_duration_since(start) > reading {
                return;
            }
            let mut served = 0;
            while served < SERVED {
                let Some(packet) = self.queue.pop() else {
                    return;
                };
                served += self.send(&table, packet, now) + PACKET;
                self.pool.free(packet);
            }
        }
    }

    /// Sends one packet of the device, which may be many of the wire; gives its length.
    fn send(&mut self, table: &Table, packet: u32, now: Instant) -> usize {
        let bytes = self.pool.get_mut(packet);
        let (total, packets) = (bytes.len(), count(bytes));
        if let Err(reason) = self.try_send(table, packet, now) {
            self.shared.drops.add(reason, packets);
        }
        total
    }

    fn try_send(&mut self, table: &Table, packet: u32, now: Instant) -> Result<(), Drop> {
        let bytes = self.pool.get_mut(packet);
        let (header, packet) = bytes.split_first_chunk_mut().ok_or(Drop::Malformed)?;
        let header = Vnet::read(header).ok_or(Drop::Malformed)?;
        let Some((target, inner)) = verdict::outbound(packet, &table.local, &table.routes)? else {
            return Ok(());
        };
        let packet = packet.get_mut(..inner.len).ok_or(Drop::Malformed)?;
        let entry = table.carrier(target, packet, now).ok_or(Drop::NoPeer)?;
        let mut split = Split::new(&header, packet).ok_or(Drop::Malformed)?;
        // Echo is about the path as a whole, which lane 0 stands for: a further one that fails is no dead path.
        let echo = inner::is_udp_to(packet, ECHO_PORT);
        // It asks whether the path takes a packet of its size.
        let padded = echo && packet.len() > UNPADDED;
        let mine = entry
            .stripe(self.lane.number)
            .filter(|_| self.fallback.is_some() && !echo)
            .map(|peer| (peer, peer.lock()))
            .filter(|(_, state)| state.is_alive(now));
        let chance = || self.shared.chance();
        let piece = (packet, &mut split);
        let (peer, bytes) = if let Some((peer, state)) = mine {
            let out = (&*self.lane, false);
            (peer, peer.send(state, piece, now, chance, out))
        } else {
            let peer = entry.first();
            let first = match &mut self.fallback {
                Some(fallback) => {
                    fallback.used = true;
                    &fallback.first
                }
                None => &self.lane,
            };
            let out = (&**first, padded);
            (peer, peer.send(peer.lock(), piece, now, chance, out))
        };
        peer.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// How many packets of the wire a packet of the device, behind its header, stands for.
fn count(bytes: &[u8]) -> u64 {
    let vnet = bytes.first_chunk().and_then(Vnet::read);
    let train = vnet.and_then(|vnet| Some((vnet.gso?.size.max(1), vnet.header)));
    train.map_or(1, |(size, headers)| {
        let payload = bytes.len().saturating_sub(vnet::LEN + usize::from(headers));
        payload.div_ceil(usize::from(size)).max(1) as u64
    })
}
