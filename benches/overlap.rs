//! The overlap check against 5,000 allocations must take less than a millisecond, free blocks included.
//!
//! `cargo bench --bench overlap`

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use subsea_api::admin::Pool;
use subsea_api::conflict::{Claim, Owner, What, conflicts};
use subsea_api::{AllocationIndex, Cidr, Kind};

/// 2,500 clusters, each with a pod /24 and a service /24, fill the front of both pools without a gap.
const CLUSTERS: u32 = 2_500;

fn claim(cluster: u32, what: What, cidr: Cidr) -> Claim {
    #[expect(clippy::expect_used, reason = "the ids are made here")]
    let id = format!("c{cluster}").parse().expect("a cluster id");
    Claim {
        owner: Owner::Cluster(id),
        what,
        cidr,
        exported: true,
    }
}

fn block(base: [u8; 4], n: u32) -> Cidr {
    let addr = u32::from(Ipv4Addr::from(base)) + (n << 8);
    Cidr::containing(Ipv4Addr::from(addr).into(), 24)
}

fn fleet() -> AllocationIndex {
    let mut index = AllocationIndex::default();
    for n in 0..CLUSTERS {
        index.insert(claim(n, What::Pod, block([10, 32, 0, 0], n)));
        index.insert(claim(n, What::Service, block([10, 112, 0, 0], n)));
    }
    index
}

fn pools() -> [Pool; 2] {
    let pool = |kind, base, len| Pool {
        kind,
        cidr: Cidr::containing(Ipv4Addr::from(base).into(), len),
    };
    [
        pool(Kind::Pod, [10, 32, 0, 0], 11),
        pool(Kind::Service, [10, 112, 0, 0], 12),
    ]
}

fn overlap(c: &mut Criterion) {
    let (index, pools) = (fleet(), pools());
    assert_eq!(index.len(), 5_000);
    let mut group = c.benchmark_group("overlap, 5,000 allocations");
    let mut check = |name: &str, pod: Cidr, service: Cidr, expected: usize| {
        let wanted = [
            claim(CLUSTERS, What::Pod, pod),
            claim(CLUSTERS, What::Service, service),
        ];
        let found = conflicts(&wanted, &index, &pools);
        assert_eq!(found.len(), expected, "{name}");
        assert!(found.iter().all(|c| c.free.len() == 3), "{name}");
        group.bench_function(name, |b| {
            b.iter(|| conflicts(black_box(&wanted), &index, &pools));
        });
    };
    let free = block([10, 60, 0, 0], 0);
    check("no conflict", free, block([10, 127, 0, 0], 0), 0);
    let (pod, service) = (block([10, 32, 0, 0], 2_499), block([10, 112, 0, 0], 2_499));
    check("two conflicts, with free blocks", pod, service, 2);
    let wide = Cidr::containing(Ipv4Addr::new(10, 32, 0, 0).into(), 16);
    check(
        "256 conflicts of one wide block",
        wide,
        block([10, 127, 0, 0], 0),
        256,
    );
    group.bench_function("first fit behind 2,500 blocks", |b| {
        b.iter(|| index.free_blocks(pools[0].cidr, 24, 1, |_| false));
    });
    group.finish();
}

criterion_group!(benches, overlap);
criterion_main!(benches);
