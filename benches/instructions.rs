//! Fixed work for `scripts/bench-instructions`, which counts the instructions inside of each `measured_` function.
//!
//! `instructions STEP TRAINS`; without a step, all of them once.

use std::hint::black_box;

use boringtun::noise::{Tunn, TunnResult};
use subsea::tunnel::userspace::offload::coalesce::{Allowed, Coalescer, Offered};
use subsea::tunnel::userspace::offload::split::Split;
use subsea::tunnel::userspace::offload::vnet::Vnet;

use packets::OVERHEAD;

mod packets;

/// Full packets in a train.
const TRAIN: u16 = 45;
const STEPS: [&str; 4] = ["split", "encapsulate", "decapsulate", "coalesce"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Cargo adds one of its own.
    let mut args = args.iter().filter(|arg| *arg != "--bench");
    let step = args.next().map(String::as_str);
    let trains = args.next().map_or(1, |n| n.parse().expect("a number"));
    for one in STEPS {
        if step.is_none_or(|step| step == one) {
            run(one, trains);
        }
    }
}

fn run(step: &str, trains: usize) {
    let (vnet, packet) = packets::train(false, TRAIN);
    let all = packets::cut(&vnet, &packet);
    let (mut near, mut far) = packets::session();
    let mut coalescer = Coalescer::new(Allowed {
        tcp: true,
        udp: true,
    });
    let mut datagrams = vec![vec![0; all[0].len() + OVERHEAD]; all.len()];
    for _ in 0..trains {
        match step {
            "split" => measured_split(&vnet, &mut packet.clone()),
            "encapsulate" => measured_encapsulate(&mut near, &all, &mut datagrams),
            "decapsulate" => {
                seal(&mut near, &all, &mut datagrams);
                measured_decapsulate(&mut far, &datagrams);
            }
            "coalesce" => measured_coalesce(&mut coalescer, &all),
            _ => panic!("no such step: {step}"),
        }
    }
}

#[inline(never)]
fn measured_split(vnet: &Vnet, packet: &mut [u8]) {
    let mut split = Split::new(vnet, packet).expect("a train");
    while let Some(range) = split.next(packet) {
        black_box(&packet[range]);
    }
}

#[inline(never)]
fn measured_encapsulate(near: &mut Tunn, all: &[Vec<u8>], datagrams: &mut [Vec<u8>]) {
    seal(near, all, datagrams);
}

#[inline]
fn seal(near: &mut Tunn, all: &[Vec<u8>], datagrams: &mut [Vec<u8>]) {
    for (one, datagram) in all.iter().zip(datagrams) {
        let sealed = near.encapsulate(one, datagram);
        assert!(matches!(sealed, TunnResult::WriteToNetwork(_)));
    }
}

#[inline(never)]
fn measured_decapsulate(far: &mut Tunn, datagrams: &[Vec<u8>]) {
    let mut room = [0; 1_500];
    for datagram in datagrams {
        let opened = far.decapsulate(None, datagram, &mut room);
        assert!(matches!(opened, TunnResult::WriteToTunnelV4(..)));
    }
}

/// With a copy to where a packet would have been decrypted to.
#[inline(never)]
fn measured_coalesce(coalescer: &mut Coalescer, all: &[Vec<u8>]) {
    for one in all {
        coalescer.room()[..one.len()].copy_from_slice(one);
        assert_eq!(coalescer.offer(one.len()), Offered::Joined);
    }
    coalescer.finish(|packet| {
        black_box(packet);
    });
}
