//! Deltas lead from any revision to the broker's state, or are refused; never to anything else.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use subsea_api::snapshot::{BrokerInfo, Change, Cluster, Gap, Gone, TOMBSTONES_KEPT, Tombstone};
use subsea_api::{ClusterId, Delta, Snapshot, UnixMillis};

fn snapshot() -> Snapshot {
    Snapshot {
        fleet: "fleet".parse().unwrap(),
        epoch: "e1".into(),
        revision: 0,
        broker: BrokerInfo {
            urls: vec!["https://a:1".into()],
            ca_pem: String::new(),
        },
        clusters: BTreeMap::new(),
        tombstones: BTreeMap::new(),
    }
}

fn id(n: u8) -> ClusterId {
    format!("c{n}").parse().unwrap()
}

fn put(n: u8, at: u64) -> Change {
    let record = Cluster {
        joined_at: UnixMillis(at),
        allocations: Vec::new(),
        gateways: BTreeMap::new(),
    };
    Change::Put {
        cluster: id(n),
        record: Box::new(record),
    }
}

fn remove(n: u8, at: UnixMillis) -> Change {
    Change::Remove {
        cluster: id(n),
        tombstone: Tombstone {
            reason: Gone::Left,
            at,
        },
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..5_u8, any::<u32>()).prop_map(|(n, at)| put(n, at.into())),
        2 => (0..5_u8, 0..1000_u64).prop_map(|(n, at)| remove(n, UnixMillis(at))),
        1 => any::<u16>().prop_map(|port| Change::Broker {
            broker: BrokerInfo { urls: vec![format!("https://a:{port}")], ca_pem: String::new() },
        }),
    ]
}

proptest! {
    #[test]
    fn any_order_of_deltas_gives_a_state_of_the_broker(
        history in prop::collection::vec(any_change(), 1..30),
        received in prop::collection::vec((any::<prop::sample::Index>(), 1..8_usize), 0..40),
    ) {
        // states[r] is the broker's state at revision r; change r leads from r to r + 1.
        let mut states = vec![snapshot()];
        for (from, change) in (0..).zip(&history) {
            let mut next = states[states.len() - 1].clone();
            next.apply(Delta { from, to: from + 1, changes: vec![change.clone()] }).unwrap();
            states.push(next);
        }
        let mut client = snapshot();
        for (start, length) in received {
            let start = start.index(history.len());
            let end = (start + length).min(history.len());
            let (from, to) = (start as u64, end as u64);
            let before = client.clone();
            let delta = Delta { from, to, changes: history[start..end].to_vec() };
            match client.apply(delta) {
                Err(gap) => {
                    prop_assert_eq!(gap, Gap { from, have: before.revision });
                    prop_assert!(from > before.revision);
                    prop_assert_eq!(&client, &before);
                }
                Ok(()) if to <= before.revision => prop_assert_eq!(&client, &before),
                Ok(()) => prop_assert_eq!(client.revision, to),
            }
            prop_assert_eq!(&client, &states[usize::try_from(client.revision).unwrap()]);
        }
    }
}

#[test]
fn a_member_that_comes_back_has_no_tombstone() {
    let mut state = snapshot();
    let changes = vec![put(1, 1), remove(1, UnixMillis(5))];
    state
        .apply(Delta {
            from: 0,
            to: 2,
            changes,
        })
        .unwrap();
    assert!(state.clusters.is_empty());
    assert_eq!(state.tombstones[&id(1)].at, UnixMillis(5));
    state
        .apply(Delta {
            from: 2,
            to: 3,
            changes: vec![put(1, 9)],
        })
        .unwrap();
    assert!(state.tombstones.is_empty());
    assert_eq!(state.clusters[&id(1)].joined_at, UnixMillis(9));
}

#[test]
fn old_tombstones_go_when_a_new_one_comes() {
    let mut state = snapshot();
    let later = UnixMillis(5).plus(TOMBSTONES_KEPT);
    let changes = vec![
        remove(1, UnixMillis(5)),
        remove(2, UnixMillis(6)),
        remove(3, later),
    ];
    state
        .apply(Delta {
            from: 0,
            to: 3,
            changes,
        })
        .unwrap();
    assert_eq!(
        state.tombstones.into_keys().collect::<Vec<_>>(),
        [id(2), id(3)]
    );
    assert_eq!(TOMBSTONES_KEPT, Duration::from_hours(24));
}
