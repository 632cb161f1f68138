//! What a packet costs on its way, step by step, without the kernel; the cipher alone is the floor.
//!
//! `cargo bench --bench dataplane`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use subsea::tunnel::userspace::offload::coalesce::{Allowed, Coalescer, Offered};
use subsea::tunnel::userspace::offload::split::Split;
use subsea::tunnel::userspace::offload::{checksum, flow};
use subsea::tunnel::userspace::prefixes::Prefixes;
use subsea::tunnel::userspace::queue::FairQueue;
use subsea_api::Cidr;

use packets::OVERHEAD;

mod packets;

/// Full packets in the largest train.
const TRAIN: u16 = 47;
/// Packets that are handled at once, about as many as come in one system call.
const BATCH: u16 = 45;
/// A full packet of the device.
const PACKET: usize = 1_420;

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    group
}

fn split(c: &mut Criterion) {
    let mut group = group(c, "split");
    for (name, v6) in [("64 KiB, IPv4", false), ("64 KiB, IPv6", true)] {
        let (vnet, mut packet) = packets::train(v6, TRAIN);
        let headers = packet[..100].to_vec();
        group.throughput(Throughput::Elements(TRAIN.into()));
        group.bench_function(name, |b| {
            b.iter(|| {
                packet[..100].copy_from_slice(&headers);
                let mut split = Split::new(&vnet, &mut packet).expect("a train");
                let mut count = 0;
                while let Some(range) = split.next(&mut packet) {
                    black_box(&packet[range]);
                    count += 1;
                }
                assert_eq!(count, TRAIN);
            });
        });
    }
    group.finish();
}

/// With a copy to where a packet would have been decrypted to.
fn coalesce(c: &mut Criterion) {
    let mut group = group(c, "coalesce");
    for (name, v6) in [("45 packets, IPv4", false), ("45 packets, IPv6", true)] {
        let (vnet, packet) = packets::train(v6, BATCH);
        let all = packets::cut(&vnet, &packet);
        let mut coalescer = Coalescer::new(Allowed {
            tcp: true,
            udp: true,
        });
        group.throughput(Throughput::Elements(BATCH.into()));
        group.bench_function(name, |b| {
            b.iter(|| {
                for one in &all {
                    coalescer.room()[..one.len()].copy_from_slice(one);
                    assert_eq!(coalescer.offer(one.len()), Offered::Joined);
                }
                coalescer.finish(|packet| {
                    black_box(packet);
                });
            });
        });
    }
    group.finish();
}

fn sums(c: &mut Criterion) {
    let mut group = group(c, "checksum");
    for len in [20, PACKET] {
        let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter(|| checksum::sum(black_box(&bytes)));
        });
    }
    group.finish();
}

/// Ten thousand blocks of each family, and addresses in an order that no branch predictor learns.
fn allowed_ips(c: &mut Criterion) {
    let v4 = |n: u32, low: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + (n << 9) + low));
    let v6 = |n: u32, low: u32| {
        let high = 0xfd00_0000_0000 + u128::from(n) * 2;
        IpAddr::V6(Ipv6Addr::from((high << 80) + u128::from(low)))
    };
    let blocks = (0..10_000).flat_map(|n| {
        [
            Cidr::containing(v4(n, 0), 24),
            Cidr::containing(v6(n, 0), 48),
        ]
    });
    let table = Prefixes::new(blocks.zip(0_u32..));
    let some = |of: &dyn Fn(u32, u32) -> IpAddr, low: u32| -> Vec<IpAddr> {
        (0..4_096_u32)
            .map(|n| of(n.wrapping_mul(2_654_435_761) % 10_000, low))
            .collect()
    };
    let mut group = group(c, "look-up in 10,000 prefixes");
    for (name, addresses, found) in [
        ("IPv4, hit", some(&v4, 9), true),
        ("IPv4, miss", some(&v4, 256), false),
        ("IPv6, hit", some(&v6, 9), true),
    ] {
        assert!(addresses.iter().all(|addr| table.contains(*addr) == found));
        let mut next = addresses.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| table.get(*next.next().expect("it has no end")));
        });
    }
    group.finish();
}

fn order(c: &mut Criterion) {
    let mut group = group(c, "order");
    for (name, v6) in [("flow hash, IPv4", false), ("flow hash, IPv6", true)] {
        let (_, packet) = packets::train(v6, 1);
        group.bench_function(name, |b| b.iter(|| flow::hash(black_box(&packet))));
    }
    let mut queue = FairQueue::default();
    // Some wait all the time, of sixteen flows.
    (0..32).for_each(|n| queue.push(u64::from(n % 16), 0, n, 1_420));
    let mut hash = 0_u64;
    group.bench_function("fair queue, push and pop", |b| {
        b.iter(|| {
            hash = (hash + 1) % 16;
            queue.push(black_box(hash), 0, 7, 1_420);
            queue.pop()
        });
    });
    group.finish();
}

fn encapsulate(tunn: &mut Tunn, packet: &[u8], room: &mut [u8]) -> usize {
    let TunnResult::WriteToNetwork(datagram) = tunn.encapsulate(packet, room) else {
        panic!("not encrypted");
    };
    datagram.len()
}

fn tunnel(c: &mut Criterion) {
    let (mut near, mut far) = packets::session();
    let (vnet, packet) = packets::train(false, BATCH);
    let all = packets::cut(&vnet, &packet);
    let mut group = group(c, "tunnel, 45 packets of 1,420 bytes");
    group.throughput(Throughput::Elements(BATCH.into()));
    let mut out = vec![0; usize::from(BATCH) * (PACKET + OVERHEAD)];
    group.bench_function("encapsulate", |b| {
        b.iter(|| {
            let mut used = 0;
            for one in &all {
                used += encapsulate(&mut near, one, &mut out[used..]);
            }
            assert_eq!(used, out.len());
        });
    });
    let mut room = vec![0; PACKET + OVERHEAD];
    group.bench_function("decapsulate", |b| {
        // A datagram is taken once only.
        let fresh = || {
            let mut batch = vec![0; usize::from(BATCH) * (PACKET + OVERHEAD)];
            for (one, datagram) in all.iter().zip(batch.chunks_mut(PACKET + OVERHEAD)) {
                encapsulate(&mut near, one, datagram);
            }
            batch
        };
        let open = |batch: Vec<u8>| {
            for datagram in batch.chunks(PACKET + OVERHEAD) {
                let opened = far.decapsulate(None, datagram, &mut room);
                assert!(matches!(opened, TunnResult::WriteToTunnelV4(..)));
            }
            batch
        };
        b.iter_batched(fresh, open, BatchSize::PerIteration);
    });
    group.finish();
}

fn cipher(c: &mut Criterion) {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key of 32 bytes");
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut sealed = vec![9; PACKET];
    key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)
        .expect("a short message");
    let mut group = group(c, "ChaCha20-Poly1305 of ring, 1,420 bytes");
    group.throughput(Throughput::Bytes(PACKET as u64));
    let mut bytes = vec![9; PACKET];
    group.bench_function("seal", |b| {
        b.iter(|| key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut bytes));
    });
    // With a copy, since what was opened cannot be opened again.
    let mut bytes = sealed.clone();
    group.bench_function("open", |b| {
        b.iter(|| {
            bytes.copy_from_slice(&sealed);
            let opened = key.open_in_place(nonce(), Aad::empty(), &mut bytes);
            opened.expect("it is authentic").len()
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    split,
    coalesce,
    sums,
    allowed_ips,
    order,
    tunnel,
    cipher
);
criterion_main!(benches);
