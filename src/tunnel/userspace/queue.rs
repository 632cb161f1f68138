//! The order in which packets that wait are served: fair between flows, new flows first (RFC 8290, section 4, with
//! the drop from the heaviest flow of section 4.1 and no `CoDel`). PURE: it orders numbers, which stand for packets.

use std::collections::VecDeque;

/// Flows that are told apart, as many as `fq_codel` has; others share a place, and what a heavy one loses.
const FLOWS: usize = 1_024;
/// What a flow may send in one turn, in bytes.
const QUANTUM: i64 = 16 << 10;
/// What a packet costs beside its bytes: a flood of small ones is heavy, too.
const PACKET: u32 = 256;
/// Most packets that are dropped at once (RFC 8290, section 4.1.2): finding the heaviest flow costs more than dropping.
const DROPS: usize = 64;
/// Packets are of classes, which have room of their own each.
const CLASSES: usize = 2;

/// Packets that wait, by number.
#[derive(Debug)]
pub struct FairQueue {
    flows: Vec<Flow>,
    new: VecDeque<u16>,
    old: VecDeque<u16>,
    packets: usize,
}

#[derive(Debug, Default)]
struct Flow {
    waiting: VecDeque<Waiting>,
    /// The sum of what waits in each class, with [`PACKET`] for each.
    weights: [u64; CLASSES],
    credit: i64,
    /// Whether it stands in one of the lists.
    listed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    class: usize,
    packet: u32,
    bytes: u32,
}

impl Default for FairQueue {
    fn default() -> Self {
        Self {
            flows: (0..FLOWS).map(|_| Flow::default()).collect(),
            new: VecDeque::with_capacity(FLOWS),
            old: VecDeque::with_capacity(FLOWS),
            packets: 0,
        }
    }
}

impl FairQueue {
    /// How many packets wait.
    pub fn len(&self) -> usize {
        self.packets
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    /// Puts packet number `packet`, of a class and of `bytes`, at the end of the flow with this hash.
    pub fn push(&mut self, hash: u64, class: usize, packet: u32, bytes: u32) {
        let place = u16::try_from(hash % FLOWS as u64).unwrap_or_default();
        let Some(flow) = self.flows.get_mut(usize::from(place)) else {
            return;
        };
        let class = class.min(CLASSES - 1);
        let waiting = Waiting {
            class,
            packet,
            bytes,
        };
        flow.waiting.push_back(waiting);
        flow.weights[class] += waiting.weight();
        self.packets += 1;
        if !flow.listed {
            flow.listed = true;
            flow.credit = QUANTUM;
            self.new.push_back(place);
        }
    }

    /// The packet whose turn it is.
    pub fn pop(&mut self) -> Option<u32> {
        loop {
            let is_new = !self.new.is_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            let place = *list.front()?;
            let flow = self.flows.get_mut(usize::from(place))?;
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                list.pop_front();
                self.old.push_back(place);
                continue;
            }
            let Some(Waiting { packet, bytes, .. }) = flow.take(0) else {
                list.pop_front();
                // A flow that was new stays listed once, so that it cannot be new again at once.
                if is_new && !self.old.is_empty() {
                    self.old.push_back(place);
                } else {
                    flow.listed = false;
                }
                continue;
            };
            flow.credit -= i64::from(bytes);
            self.packets -= 1;
            return Some(packet);
        }
    }

    /// Takes packets of a class from the flow that has the most of it waiting, the oldest first, to be dropped: half of
    /// what it has, at most 64 and at least one.
    pub fn drop_of_heaviest(&mut self, class: usize, mut dropped: impl FnMut(u32)) {
        let class = class.min(CLASSES - 1);
        let heaviest = self.flows.iter_mut().max_by_key(|flow| flow.weights[class]);
        let Some(flow) = heaviest.filter(|flow| flow.weights[class] > 0) else {
            return;
        };
        let half = flow.weights[class] / 2;
        let mut at = 0;
        for _ in 0..DROPS {
            while flow
                .waiting
                .get(at)
                .is_some_and(|waiting| waiting.class != class)
            {
                at += 1;
            }
            let Some(waiting) = flow.take(at) else { return };
            self.packets -= 1;
            dropped(waiting.packet);
            if flow.weights[class] <= half {
                return;
            }
        }
    }
}

impl Flow {
    fn take(&mut self, at: usize) -> Option<Waiting> {
        let waiting = self.waiting.remove(at)?;
        self.weights[waiting.class] -= waiting.weight();
        Some(waiting)
    }
}

impl Waiting {
    fn weight(self) -> u64 {
        u64::from(self.bytes) + u64::from(PACKET)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn drain(queue: &mut FairQueue) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    fn dropped(queue: &mut FairQueue, class: usize) -> Vec<u32> {
        let mut dropped = Vec::new();
        queue.drop_of_heaviest(class, |packet| dropped.push(packet));
        dropped
    }

    #[test]
    fn a_new_flow_does_not_wait_behind_a_heavy_one() {
        let mut queue = FairQueue::default();
        (0..20).for_each(|n| queue.push(1, 0, n, 60_000));
        assert_eq!(queue.pop(), Some(0));
        queue.push(2, 0, 100, 64);
        assert_eq!(queue.pop(), Some(100));
        assert_eq!(drain(&mut queue), (1..20).collect::<Vec<_>>());
    }

    #[test]
    fn two_heavy_flows_share_by_bytes() {
        let mut queue = FairQueue::default();
        (0..10).for_each(|n| queue.push(1, 0, n, 60_000));
        (100..600).for_each(|n| queue.push(2, 0, n, 1_200));
        let first: Vec<u32> = (0..200).filter_map(|_| queue.pop()).collect();
        let large = first.iter().filter(|n| **n < 100).count();
        // 200 packets are then about as many bytes of either.
        assert!((3..=5).contains(&large), "{large} of the large ones");
    }

    #[test]
    fn what_is_dropped_is_of_the_heaviest_flow() {
        let mut queue = FairQueue::default();
        queue.push(1, 0, 0, 1_000);
        (10..20).for_each(|n| queue.push(2, 0, n, 1_000));
        // Many small packets weigh more than their bytes.
        (100..140).for_each(|n| queue.push(3, 0, n, 64));
        assert_eq!(dropped(&mut queue, 0), (100..120).collect::<Vec<_>>());
        assert_eq!(queue.len(), 31);
        // Now the other one is, and of that class nobody has anything.
        assert_eq!(dropped(&mut queue, 0), (10..15).collect::<Vec<_>>());
        assert!(dropped(&mut queue, 1).is_empty());
        (200..500).for_each(|n| queue.push(4, 1, n, 1_000));
        queue.push(1, 1, 500, 1_000);
        assert_eq!(dropped(&mut queue, 1), (200..264).collect::<Vec<_>>());
        assert!(dropped(&mut FairQueue::default(), 0).is_empty());
        let mut lone = FairQueue::default();
        lone.push(1, 0, 7, 1_000);
        assert_eq!(dropped(&mut lone, 0), [7]);
    }

    proptest! {
        #[test]
        fn every_packet_comes_out_once_and_in_the_order_of_its_flow(
            steps in proptest::collection::vec((0_u8..8, 0_u64..6, 1_u32..65_536), 1..400),
        ) {
            let (mut queue, mut out) = (FairQueue::default(), Vec::new());
            let mut flow_of = BTreeMap::new();
            for (n, (step, flow, bytes)) in (0_u32..).zip(steps) {
                match step {
                    0..6 => {
                        queue.push(flow, 0, n, bytes);
                        flow_of.insert(n, flow);
                    }
                    6 => out.extend(queue.pop()),
                    _ => out.extend(dropped(&mut queue, 0)),
                }
                prop_assert_eq!(queue.len(), flow_of.len() - out.len());
            }
            out.extend(drain(&mut queue));
            prop_assert!(queue.is_empty());
            prop_assert_eq!(out.len(), flow_of.len());
            for flow in 0..6 {
                let of_flow: Vec<u32> = out.iter().copied().filter(|n| flow_of[n] == flow).collect();
                prop_assert!(of_flow.is_sorted_by(|a, b| a < b));
            }
        }
    }
}
