//! Packets that come and go: each goes once, in the order of its flow, the heaviest flow loses, and none starves.

use std::collections::VecDeque;

use subsea::tunnel::userspace::queue::FairQueue;

use super::input::Input;

const FLOWS: usize = 8;
const STEPS: usize = 2_000;
/// What the others may get while a flow waits for its turn: some rounds of a turn and of the largest packet each.
const PATIENCE: u64 = 8 * FLOWS as u64 * (16_384 + 65_536);

/// What waits in a flow.
type Waiting = VecDeque<Packet>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    number: u32,
    class: usize,
    bytes: u32,
}

/// Runs it.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut queue = FairQueue::default();
    let mut flows: [Waiting; FLOWS] = Default::default();
    for number in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        match step {
            0..=63 => {
                let served = queue.pop();
                let model = served.map(|number| take(&mut flows, number));
                assert!(model.is_some() || flows.iter().all(VecDeque::is_empty));
            }
            64..=95 => drop_one(&mut queue, &mut flows, usize::from(step % 3)),
            96..=255 => {
                let flow = usize::from(step) % FLOWS;
                let packet = Packet {
                    number: u32::try_from(number).unwrap_or_default(),
                    class: usize::from(step >> 3) % 3,
                    bytes: u32::from(input.number()),
                };
                // All that share a place are a flow.
                let hash = flow as u64 + 1_024 * u64::from(step);
                queue.push(hash, packet.class, packet.number, packet.bytes);
                flows[flow].push_back(packet);
            }
        }
        let waiting: usize = flows.iter().map(VecDeque::len).sum();
        assert_eq!(queue.len(), waiting);
        assert_eq!(queue.is_empty(), waiting == 0);
    }
    drain(&mut queue, &mut flows);
}

/// The packet that was served: it must have been the first of a flow.
fn take(flows: &mut [Waiting; FLOWS], number: u32) -> (usize, Packet) {
    let of = |flow: &Waiting| flow.front().is_some_and(|first| first.number == number);
    let at = flows.iter().position(of).expect("the first of a flow");
    let packet = flows[at].pop_front().expect("it was there");
    (at, packet)
}

fn drop_one(queue: &mut FairQueue, flows: &mut [Waiting; FLOWS], class: usize) {
    let of_class = |packet: &&Packet| packet.class.min(1) == class.min(1);
    let weight = |flow: &Waiting| -> u64 {
        let all = flow.iter().filter(of_class);
        all.map(|packet| u64::from(packet.bytes) + 256).sum()
    };
    let most = flows.iter().map(weight).max().unwrap_or_default();
    let mut dropped = VecDeque::new();
    queue.drop_of_heaviest(class, |number| dropped.push_back(number));
    assert_eq!(dropped.is_empty(), most == 0);
    let Some(first) = dropped.front().copied() else {
        return;
    };
    let is_first = |flow: &Waiting| {
        flow.iter()
            .find(of_class)
            .is_some_and(|p| p.number == first)
    };
    let heaviest = flows
        .iter_mut()
        .find(|flow| weight(flow) == most && is_first(flow));
    let heaviest = heaviest.expect("the oldest of a heaviest flow");
    let count = dropped.len();
    while let Some(number) = dropped.pop_front() {
        let oldest = heaviest.iter().position(|packet| of_class(&packet));
        let oldest = oldest.and_then(|at| heaviest.remove(at));
        assert_eq!(oldest.map(|packet| packet.number), Some(number));
        let left = weight(heaviest);
        assert_eq!(left <= most / 2 || dropped.is_empty(), dropped.is_empty());
    }
    assert!(weight(heaviest) <= most / 2 || count == 64, "too few");
}

fn drain(queue: &mut FairQueue, flows: &mut [Waiting; FLOWS]) {
    let mut others = [0_u64; FLOWS];
    while let Some(number) = queue.pop() {
        let (at, packet) = take(flows, number);
        for (flow, others) in others.iter_mut().enumerate() {
            *others = if flow == at || flows[flow].is_empty() {
                0
            } else {
                *others + u64::from(packet.bytes)
            };
            assert!(*others <= PATIENCE, "flow {flow} starves");
        }
    }
    assert!(flows.iter().all(VecDeque::is_empty));
}
