//! Whatever happens, no two routed blocks meet.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::auth::service_account::signer::Signer;

/// What can happen to a fleet.
#[derive(Debug, Clone)]
enum Happening {
    Join(u8, Vec<String>),
    Admit(u8, Vec<String>),
    Leave(u8),
    Revoke(u8),
    Forget(u8),
    Reserve(u8, String),
    Release(String),
    Gateway(u8, u8),
    Stock(u8, String),
    Wait(u64),
}

fn block() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u8..4, 12u8..26).prop_map(|(n, len)| Cidr::containing(
            [10, 32 + n, n << 6, 0].into(),
            len
        )
        .to_string()),
        (14u8..20).prop_map(|len| format!("auto/{len}")),
        (0u8..4, 40u8..60).prop_map(|(n, len)| Cidr::containing(
            [0xfd00, u16::from(n), 0, 0, 0, 0, 0, 0].into(),
            len
        )
        .to_string()),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0u8..6, prop::collection::vec(block(), 1..4)).prop_map(|(c, b)| Happening::Join(c, b)),
        2 => (0u8..6, prop::collection::vec(block(), 1..4)).prop_map(|(c, b)| Happening::Admit(c, b)),
        1 => (0u8..6).prop_map(Happening::Leave),
        1 => (0u8..6).prop_map(Happening::Revoke),
        1 => (0u8..6).prop_map(Happening::Forget),
        2 => (0u8..6, block()).prop_map(|(c, b)| Happening::Reserve(c, b)),
        1 => block().prop_map(Happening::Release),
        2 => (0u8..6, 0u8..40).prop_map(|(c, e)| Happening::Gateway(c, e)),
        1 => (0u8..6, block()).prop_map(|(c, b)| Happening::Stock(c, b)),
        1 => (0u64..20).prop_map(Happening::Wait),
    ]
}

fn happens(b: &mut Bench, what: &Happening) {
    let name = |c: u8| format!("c{c}");
    match what {
        Happening::Join(c, blocks) => {
            if b.state.revoked.contains_key(&id(&name(*c))) {
                return;
            }
            let token = b.token(&name(*c), Role::Member);
            let texts: Vec<&str> = blocks.iter().map(String::as_str).collect();
            let _ = b.join(&token, (&name(*c), "gw-1"), &name(*c), &pods(&texts));
        }
        Happening::Admit(c, blocks) => {
            if b.state.revoked.contains_key(&id(&name(*c))) {
                return;
            }
            let (token, signer) = (b.token(&name(*c), Role::Member), Signer::ec("k"));
            let texts: Vec<&str> = blocks.iter().map(String::as_str).collect();
            let _ = b.admit(&token, &name(*c), *c, &[&signer], &pods(&texts));
        }
        Happening::Leave(c) => {
            let decision = leave(&b.state, &id(&name(*c)), &node("gw-1"), true, b.now);
            let _ = b.commit(decision);
        }
        Happening::Revoke(c) => {
            let decision = revoke(&b.state, &id(&name(*c)), b.now);
            let _ = b.commit(decision);
        }
        Happening::Forget(c) => {
            let decision = forget(&b.state, &id(&name(*c)), b.now);
            let _ = b.commit(decision);
        }
        Happening::Reserve(c, block) => {
            let request = Reservation {
                cluster: id(&name(*c)),
                kind: Kind::Pod,
                cidr: block.parse().unwrap(),
            };
            let decision = reserve(&b.state, &request);
            let _ = b.commit(decision);
        }
        Happening::Release(block) => {
            if let Ok(block) = block.parse() {
                let decision = release(&b.state, block);
                let _ = b.commit(decision);
            }
        }
        Happening::Gateway(c, e) => {
            let _ = b.register(
                (&name(*c), "gw-1"),
                c + 1,
                &format!("10.{}.0.1:51820", 30 + e),
            );
        }
        Happening::Stock(c, block) => {
            let Ok(block) = block.parse::<Cidr>() else {
                return;
            };
            let request = StockGateway {
                public_key: key(c + 100),
                endpoint: format!("192.0.2.{c}:51820").parse().unwrap(),
                probe: None,
                allocations: vec![Allocation {
                    kind: Kind::Pod,
                    cidr: block,
                    exported: true,
                }],
            };
            let decision =
                add_stock_gateway(&b.state, &id(&name(*c)), &node("wg"), &request, b.now);
            let _ = b.commit(decision);
        }
        Happening::Wait(minutes) => {
            b.now = b.now.plus(std::time::Duration::from_mins(*minutes));
            b.sweep();
        }
    }
}

/// No two routed blocks meet, of whatever owners, nor what is held for others; and the index is what a
/// fresh start would make of the records.
fn check(state: &State) -> Result<(), TestCaseError> {
    let mut routed: BTreeMap<Cidr, ClusterId> = BTreeMap::new();
    let mut all: Vec<(ClusterId, Cidr, bool)> = Vec::new();
    for (cluster, record) in &state.clusters {
        for allocation in &record.allocations {
            prop_assert!(routed.insert(allocation.cidr, cluster.clone()).is_none());
            all.push((cluster.clone(), allocation.cidr, true));
        }
        for gateway in record.gateways.values() {
            all.extend(
                gateway
                    .inner
                    .iter()
                    .map(|ip| (cluster.clone(), Cidr::host(*ip), true)),
            );
            let endpoints = gateway.listeners.iter().flat_map(|l| &l.candidates);
            all.extend(endpoints.map(|e| (cluster.clone(), Cidr::host(e.ip()), false)));
        }
    }
    for (i, (owner, block, is_routed)) in all.iter().enumerate() {
        for (other, second, other_routed) in &all[..i] {
            let both_endpoints = !is_routed && !other_routed;
            prop_assert!(
                both_endpoints || block.common(*second).is_none(),
                "{owner} {block} meets {other} {second}"
            );
        }
        for held in state
            .held_blocks()
            .filter(|h| *is_routed && h.cluster != *owner)
        {
            prop_assert!(
                held.allocation.cidr.common(*block).is_none(),
                "{owner} {block} meets what is held for {}",
                held.cluster
            );
        }
    }
    for admitted in state.admissions.keys() {
        prop_assert!(state.clusters.contains_key(admitted), "{admitted} is gone");
    }
    let mut claims = all.len() + state.held.len();
    // The two pools of inner addresses are the broker's.
    claims += 2;
    prop_assert_eq!(state.index().len(), claims);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_happens_no_two_routed_blocks_meet(story in prop::collection::vec(happening(), 1..60)) {
        let mut b = Bench::new();
        for what in &story {
            happens(&mut b, what);
            check(&b.state)?;
        }
    }
}
