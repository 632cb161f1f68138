//! Which gateway of a group carries a flow: the one that did, as long as it is in use, else one by rendezvous. PURE: time
//! is an argument.
//!
//! Rendezvous gives each flow an order of all members, and the first that is in use carries it: so a member that goes
//! takes only its own flows along. One that comes back would take them from where they are now. Therefore what carries
//! a flow is remembered, and forgotten when the flow was idle for a minute. A flow that comes in by some member is
//! remembered, too, so that its answers take the same road: a gateway that translates addresses, or a filter behind it,
//! must see both halves.
//!
//! The memory is a fixed table without locks. In each set the flow that was idle longest makes room, and goes by
//! rendezvous when it comes again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use subsea_api::PublicKey;

use super::offload::flow::mix;

/// Flows of a set: a cache line of them.
const WAYS: usize = 8;
/// 512 KiB in all.
const SETS: usize = 8_192;
/// What time is counted in.
const UNIT: Duration = Duration::from_secs(4);
/// After so many units without a packet a flow is forgotten: 60 to 64 s.
const IDLE: u8 = 16;
/// A thread may have looked at the clock a little before another one: what is of as many units ahead is of now.
const AHEAD: u8 = 16;
/// Sets that are looked through each second, so that none is old enough to look young: all of them take 128 s, and the
/// units begin anew after 1,024 s.
const SWEPT: usize = SETS / 128;
const _: () = assert!(SETS.is_power_of_two() && size_of::<[Set; SETS]>() == 512 << 10);

/// The index of a peer has 24 bits; one that has not is never found again.
const INDEX: u64 = 0xff_ffff;

/// One member of a group.
#[derive(Debug)]
pub(super) struct Member {
    /// Its position in the table.
    at: usize,
    /// Its index, which stays as long as the peer does.
    index: u32,
    /// What tells it from others in all gateways alike.
    weight: u64,
    in_use: Arc<AtomicBool>,
}

impl Member {
    /// The peer of a key at a position of the table.
    pub(super) fn new(at: usize, index: u32, key: &PublicKey, in_use: &Arc<AtomicBool>) -> Self {
        let words = key.as_bytes().as_chunks::<8>().0.iter();
        Self {
            at,
            index,
            weight: words.fold(0, |hash, word| mix(hash ^ u64::from_le_bytes(*word))),
            in_use: Arc::clone(in_use),
        }
    }

    fn is_in_use(&self) -> bool {
        // Who sees that one went sees also that another came before it.
        self.in_use.load(Ordering::Acquire)
    }
}

/// The gateways that can carry the same blocks; more than one.
#[derive(Debug)]
pub(super) struct Group(Vec<Member>);

impl Group {
    /// Members in the order of their keys.
    pub(super) fn new(members: Vec<Member>) -> Self {
        Self(members)
    }

    /// The position of the member that carries a flow now; `None` when none is in use. The flow is known by `hash` here,
    /// and by what `everywhere` gives in all gateways, which is asked for only when it is not remembered.
    pub(super) fn carrier(
        &self,
        flows: &Flows,
        hash: u64,
        now: Tick,
        everywhere: impl FnOnce() -> u64,
    ) -> Option<usize> {
        if let Some((index, is_of_now)) = flows.get(hash, now) {
            let kept = self.0.iter().find(|member| member.index == index);
            if let Some(kept) = kept.filter(|member| member.is_in_use()) {
                if !is_of_now {
                    flows.put(hash, index, now);
                }
                return Some(kept.at);
            }
        }
        let chosen = self.by_rendezvous(everywhere())?;
        flows.put(hash, chosen.index, now);
        Some(chosen.at)
    }

    fn by_rendezvous(&self, hash: u64) -> Option<&Member> {
        let in_use = self.0.iter().filter(|member| member.is_in_use());
        in_use.max_by_key(|member| mix(hash ^ member.weight))
    }
}

/// A time, in units that begin anew after 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(u8);

impl Tick {
    /// For how many units something of `then` was idle.
    fn since(self, then: u8) -> u8 {
        let age = self.0.wrapping_sub(then);
        if age > u8::MAX - AHEAD { 0 } else { age }
    }
}

/// What carried which flow lately.
#[derive(Debug)]
pub(super) struct Flows {
    sets: Box<[Set]>,
    key: u64,
    start: Instant,
    /// The set to be swept next.
    hand: AtomicUsize,
}

/// Words of a tag (32 bits), an index (24) and a time (8); 0 is nobody's.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

impl Flows {
    /// Without any. `key` is a secret by which flows are hashed, so that nobody can well choose one that falls together
    /// with another one's.
    pub(super) fn new(key: u64, start: Instant) -> Self {
        Self {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            key,
            start,
            hand: AtomicUsize::new(0),
        }
    }

    /// The key to hash flows with.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// The time in units.
    pub(super) fn tick(&self, now: Instant) -> Tick {
        let units = now.saturating_duration_since(self.start).as_secs() / UNIT.as_secs();
        Tick(units.to_le_bytes()[0])
    }

    /// The index of the peer that carried a flow, and whether that was noted in this unit of time.
    fn get(&self, hash: u64, now: Tick) -> Option<(u32, bool)> {
        let mut words = self
            .set(hash)?
            .iter()
            .map(|way| way.load(Ordering::Relaxed));
        let word = words.find(|word| is_of(*word, hash))?;
        let [time, ..] = word.to_le_bytes();
        let index = u32::try_from((word >> 8) & INDEX).ok()?;
        (now.since(time) < IDLE).then_some((index, time == now.0))
    }

    /// Remembers which peer carries a flow. Writes only what is news.
    pub(super) fn put(&self, hash: u64, index: u32, now: Tick) {
        let Some(set) = self.set(hash) else { return };
        let wanted = tag(hash) | (u64::from(index) & INDEX) << 8 | u64::from(now.0);
        let mut oldest: Option<(u16, &AtomicU64, u64)> = None;
        for way in set {
            let word = way.load(Ordering::Relaxed);
            let [time, ..] = word.to_le_bytes();
            let age = if is_of(word, hash) {
                // Its own place goes before all others.
                u16::MAX
            } else if word == 0 {
                u16::MAX - 1
            } else {
                now.since(time).into()
            };
            if oldest.is_none_or(|(oldest, ..)| age > oldest) {
                oldest = Some((age, way, word));
            }
            if age == u16::MAX {
                break;
            }
        }
        let Some((_, way, word)) = oldest.filter(|(_, _, word)| *word != wanted) else {
            return;
        };
        // Where another thread was faster, its word stands: the next packet of this flow tries again.
        let _ = way.compare_exchange(word, wanted, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Forgets what was idle for too long, in a part of the table; to be called every second.
    pub(super) fn sweep(&self, now: Tick) {
        let start = self.hand.fetch_add(SWEPT, Ordering::Relaxed) % SETS;
        for way in self
            .sets
            .iter()
            .skip(start)
            .take(SWEPT)
            .flat_map(|set| &set.0)
        {
            let word = way.load(Ordering::Relaxed);
            let [time, ..] = word.to_le_bytes();
            if word != 0 && now.since(time) >= IDLE {
                // One that was used meanwhile stays.
                let _ = way.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    fn set(&self, hash: u64) -> Option<&[AtomicU64; WAYS]> {
        let at = usize::try_from(hash % SETS as u64).ok()?;
        self.sets.get(at).map(|set| &set.0)
    }

    /// How many flows are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        let ways = self.sets.iter().flat_map(|set| &set.0);
        ways.filter(|way| way.load(Ordering::Relaxed) != 0).count()
    }
}

/// The upper bits of a hash, never all 0: those below have chosen the set.
fn tag(hash: u64) -> u64 {
    (hash | 1 << 32) & !0xffff_ffff
}

fn is_of(word: u64, hash: u64) -> bool {
    word & !0xffff_ffff == tag(hash)
}

#[cfg(test)]
mod tests;
