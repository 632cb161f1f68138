//! The overlap rules and the index against brute force over pairs, with addresses as plain numbers.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use subsea_api::admin::Pool;
use subsea_api::conflict::{Claim, Owner, STANDARD_BLOCKS, What, conflicts};
use subsea_api::{AllocationIndex, Cidr, Kind};

/// The family and the first and last address of a block, as numbers.
fn range(cidr: Cidr) -> (bool, u128, u128) {
    let number = |addr: IpAddr| match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    (
        cidr.first().is_ipv4(),
        number(cidr.first()),
        number(cidr.last()),
    )
}

fn overlap(a: Cidr, b: Cidr) -> bool {
    let ((family_a, first_a, last_a), (family_b, first_b, last_b)) = (range(a), range(b));
    family_a == family_b && first_a <= last_b && first_b <= last_a
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// Blocks of a small part of both address spaces, so that many overlap; some are very wide or single addresses.
fn any_cidr() -> impl Strategy<Value = Cidr> {
    let v4 = (
        any::<u8>(),
        prop_oneof![16..=24_u8, Just(8), Just(0), Just(32)],
    )
        .prop_map(|(bits, len)| Cidr::containing(Ipv4Addr::new(10, 32, bits, 0).into(), len));
    let v6 = (
        any::<u8>(),
        prop_oneof![56..=64_u8, Just(16), Just(0), Just(128)],
    )
        .prop_map(|(bits, len)| {
            let addr = Ipv6Addr::new(0xfd00, 0, 0, bits.into(), 0, 0, 0, 0);
            Cidr::containing(addr.into(), len)
        });
    prop_oneof![3 => v4, 2 => v6]
}

fn any_what() -> impl Strategy<Value = What> {
    prop_oneof![
        Just(What::Pod),
        Just(What::Service),
        Just(What::Node),
        Just(What::Infra),
        Just(What::Global),
        Just(What::Endpoint),
        Just(What::Broker),
    ]
}

fn any_claim() -> impl Strategy<Value = Claim> {
    let id = prop_oneof![Just("east"), Just("west"), Just("north")];
    (any_cidr(), any_what(), id, 0..8_u8, any::<bool>()).prop_map(
        |(cidr, what, id, how, exported)| {
            let id = id.parse().unwrap();
            let owner = match how {
                0 => Owner::Reservation(id),
                1 => Owner::Broker,
                _ => Owner::Cluster(id),
            };
            // Only node blocks may be unexported.
            let exported = exported || what != What::Node;
            Claim {
                owner,
                what,
                cidr,
                exported,
            }
        },
    )
}

/// The rules of the design, section 6, said once more and otherwise.
fn allowed(a: &Claim, b: &Claim) -> bool {
    let local = |c: &Claim| c.what == What::Node && !c.exported;
    let address = |c: &Claim| c.what == What::Endpoint || c.what == What::Broker;
    let either = |f: &dyn Fn(&Claim, &Claim) -> bool| f(a, b) || f(b, a);
    either(&|r, c| match (&r.owner, &c.owner) {
        (Owner::Reservation(of), Owner::Cluster(id) | Owner::Reservation(id)) => of == id,
        _ => false,
    }) || (address(a) && address(b))
        || either(&|e, n| address(e) && local(n))
        || either(&|e, n| address(e) && n.what == What::Node && e.owner == n.owner)
        || (local(a) && local(b) && a.owner != b.owner)
}

fn index_of<'a>(claims: impl IntoIterator<Item = &'a Claim>) -> AllocationIndex {
    let mut index = AllocationIndex::default();
    claims.into_iter().for_each(|c| index.insert(c.clone()));
    index
}

fn sorted<'a>(claims: impl Iterator<Item = &'a Claim>) -> Vec<&'a Claim> {
    let mut claims: Vec<_> = claims.collect();
    claims.sort();
    claims
}

fn pools() -> Vec<Pool> {
    vec![
        Pool {
            kind: Kind::Pod,
            cidr: cidr("10.32.0.0/17"),
        },
        Pool {
            kind: Kind::Service,
            cidr: cidr("10.32.128.0/17"),
        },
        Pool {
            kind: Kind::Pod,
            cidr: cidr("fd00::/56"),
        },
    ]
}

proptest! {
    #[test]
    fn the_index_finds_what_a_scan_finds(
        claims in prop::collection::vec(any_claim(), 0..60),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        probe in any_cidr(),
    ) {
        let mut index = index_of(&claims);
        let mut left = claims;
        for which in removed {
            if !left.is_empty() {
                let claim = left.swap_remove(which.index(left.len()));
                prop_assert!(index.remove(&claim));
            }
        }
        prop_assert_eq!(index.len(), left.len());
        prop_assert_eq!(index.is_empty(), left.is_empty());
        let scanned = sorted(left.iter().filter(|c| overlap(c.cidr, probe)));
        prop_assert_eq!(sorted(index.overlapping(probe)), scanned);
        let gone = Claim { owner: Owner::Host, what: What::Pod, cidr: probe, exported: true };
        prop_assert!(!index.remove(&gone));
    }

    #[test]
    fn free_blocks_are_the_first_that_fit(
        claims in prop::collection::vec(any_claim(), 0..40),
        besides in prop::collection::vec(any_cidr(), 0..4),
        pool in any_cidr(),
        more in 0..=9_u8,
        count in 0..6_usize,
    ) {
        let index = index_of(claims.iter().filter(|c| c.cidr.prefix_len() > 8));
        let skip = |c: &Claim| c.what == What::Infra;
        let len = pool.prefix_len() + more;
        let mut expected = Vec::new();
        if len <= pool.family().bits() {
            // Every block of the pool in order, at most 512.
            let (v4, first, last) = range(pool);
            let step = 1_u128.checked_shl(u32::from(pool.family().bits() - len)).unwrap_or(0);
            let mut at = first;
            while expected.len() < count {
                let addr = match (v4, u32::try_from(at)) {
                    (true, Ok(addr)) => IpAddr::V4(addr.into()),
                    _ => IpAddr::V6(at.into()),
                };
                let block = Cidr::containing(addr, len);
                let met = claims.iter().filter(|c| c.cidr.prefix_len() > 8 && !skip(c)).map(|c| c.cidr)
                    .chain(besides.iter().copied())
                    .any(|c| overlap(c, block));
                if !met {
                    expected.push(block);
                }
                match at.checked_add(step) {
                    Some(next) if step > 0 && next <= last => at = next,
                    _ => break,
                }
            }
        }
        prop_assert_eq!(index.free_blocks_besides(pool, len, count, &besides, skip), expected);
    }

    #[test]
    fn conflicts_are_the_pairs_that_brute_force_finds(
        wanted in prop::collection::vec(any_claim(), 1..5),
        fleet in prop::collection::vec(any_claim(), 0..30),
    ) {
        let found: Vec<_> = conflicts(&wanted, &index_of(&fleet), &pools())
            .into_iter()
            .filter(|c| c.existing.owner != Owner::Standard)
            .map(|c| (c.wanted, c.existing, c.common))
            .collect();
        let mut expected = Vec::new();
        for (i, want) in wanted.iter().enumerate() {
            for existing in wanted[..i].iter().chain(&fleet) {
                if overlap(want.cidr, existing.cidr) && !allowed(want, existing) {
                    let longer = want.cidr.prefix_len() > existing.cidr.prefix_len();
                    let common = if longer { want.cidr } else { existing.cidr };
                    expected.push((want.clone(), existing.clone(), common));
                }
            }
        }
        let sort = |mut pairs: Vec<(Claim, Claim, Cidr)>| { pairs.sort(); pairs };
        prop_assert_eq!(sort(found), sort(expected));
    }

    #[test]
    fn a_suggestion_ends_the_conflict(
        wanted in prop::collection::vec(any_claim(), 1..4),
        fleet in prop::collection::vec(any_claim(), 0..30),
    ) {
        let index = index_of(&fleet);
        for conflict in conflicts(&wanted, &index, &pools()) {
            for free in conflict.free {
                prop_assert_eq!(free.prefix_len(), conflict.wanted.cidr.prefix_len());
                let mut again = wanted.clone();
                let at = again.iter().position(|c| *c == conflict.wanted).unwrap();
                let moved = Claim { cidr: free, ..again.remove(at) };
                again.push(moved.clone());
                let left = conflicts(&again, &index, &pools());
                prop_assert!(left.iter().all(|c| c.wanted != moved), "{:?} {:?}", moved, left);
            }
        }
    }
}

fn pod(id: &str, block: &str) -> Claim {
    Claim {
        owner: Owner::Cluster(id.parse().unwrap()),
        what: What::Pod,
        cidr: cidr(block),
        exported: true,
    }
}

#[test]
fn a_cluster_whose_own_blocks_overlap_is_refused_and_told_what_is_free() {
    let service = Claim {
        what: What::Service,
        ..pod("east", "10.100.0.0/16")
    };
    let wanted = [pod("east", "10.96.0.0/12"), service.clone()];
    let pools = [Pool {
        kind: Kind::Service,
        cidr: cidr("10.112.0.0/12"),
    }];
    let found = conflicts(&wanted, &AllocationIndex::default(), &pools);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&found[0].wanted, &found[0].existing),
        (&service, &wanted[0])
    );
    assert_eq!(found[0].common, cidr("10.100.0.0/16"));
    let free = ["10.112.0.0/16", "10.113.0.0/16", "10.114.0.0/16"].map(cidr);
    assert_eq!(found[0].free, free);
}

#[test]
fn the_same_block_twice_is_not_offered_again() {
    let wanted = [pod("east", "10.32.0.0/24"), pod("east", "10.32.0.0/24")];
    let found = conflicts(&wanted, &AllocationIndex::default(), &pools());
    assert_eq!(found.len(), 1);
    assert!(
        !found[0].free.contains(&wanted[0].cidr),
        "{:?}",
        found[0].free
    );
}

#[test]
fn reserved_blocks_are_refused_by_name() {
    for (block, name) in STANDARD_BLOCKS {
        let whole = cidr(block);
        let last = Cidr::host(whole.last());
        for wanted in [whole, last] {
            let found = conflicts(
                &[pod("east", &wanted.to_string())],
                &AllocationIndex::default(),
                &[],
            );
            assert_eq!(found.len(), 1, "{wanted}");
            assert_eq!(found[0].existing.owner, Owner::Standard);
            assert_eq!(found[0].existing.what.to_string(), name);
            assert_eq!(found[0].common, wanted);
            // Private space has no block wider than 10.0.0.0/8 or fd00::/8.
            assert_eq!(
                found[0].free.is_empty(),
                wanted.prefix_len() < 8,
                "{wanted}"
            );
        }
    }
    for block in [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "192.168.0.0/16",
        "fd00::/8",
        "2001:db8::/32",
    ] {
        let found = conflicts(&[pod("east", block)], &AllocationIndex::default(), &[]);
        assert!(found.is_empty(), "{block}: {found:?}");
    }
}

#[test]
fn a_full_pool_leads_to_private_space_outside_the_other_pools() {
    let pools = [
        Pool {
            kind: Kind::Pod,
            cidr: cidr("10.32.0.0/16"),
        },
        Pool {
            kind: Kind::Service,
            cidr: cidr("10.0.0.0/11"),
        },
    ];
    let index = index_of(&[pod("west", "10.32.0.0/16")]);
    let found = conflicts(&[pod("east", "10.32.0.0/16")], &index, &pools);
    let free = ["10.33.0.0/16", "10.34.0.0/16", "10.35.0.0/16"].map(cidr);
    assert_eq!(found[0].free, free);
}

#[test]
fn a_reservation_is_held_for_its_cluster_only() {
    let id = "east".parse().unwrap();
    let reserved = Claim {
        owner: Owner::Reservation(id),
        ..pod("east", "10.32.0.0/16")
    };
    let index = index_of(&[reserved]);
    assert!(conflicts(&[pod("east", "10.32.0.0/16")], &index, &[]).is_empty());
    let found = conflicts(&[pod("west", "10.32.4.0/24")], &index, &[]);
    assert_eq!(found[0].existing.owner.to_string(), "reserved for east");
    assert!(
        found[0]
            .free
            .iter()
            .all(|f| !overlap(*f, cidr("10.32.0.0/16")))
    );
}

#[test]
fn endpoints_may_lie_in_the_owners_node_block_only() {
    let endpoint = Claim {
        what: What::Endpoint,
        ..pod("east", "192.0.2.7/32")
    };
    let node = |id, exported| Claim {
        what: What::Node,
        exported,
        ..pod(id, "192.0.2.0/24")
    };
    let meet = |other: Claim| {
        !conflicts(std::slice::from_ref(&endpoint), &index_of(&[other]), &[]).is_empty()
    };
    assert!(!meet(node("east", true)));
    assert!(!meet(node("east", false)));
    assert!(!meet(node("west", false)));
    assert!(meet(node("west", true)));
    assert!(meet(pod("west", "192.0.2.0/24")));
    assert!(meet(pod("east", "192.0.2.0/24")));
}
