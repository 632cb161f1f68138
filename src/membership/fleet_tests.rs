use subsea_api::snapshot::{BrokerInfo, Change, Delta, Gone};

use super::*;

fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn gateway(last: u8) -> Gateway {
    Gateway {
        inner: vec![[198, 19, 0, last].into()],
        slot: 0,
        listeners: vec![],
        stock: None,
        node_addresses: vec![],
        expired: None,
    }
}

fn cluster(joined_at: u64, nodes: &[&str]) -> Cluster {
    Cluster {
        joined_at: UnixMillis(joined_at),
        allocations: vec![],
        gateways: nodes
            .iter()
            .zip(1..)
            .map(|(n, i)| (n.parse().unwrap(), gateway(i)))
            .collect(),
    }
}

fn snapshot(epoch: &str, revision: u64, clusters: &[(&str, Cluster)]) -> Snapshot {
    Snapshot {
        fleet: "harbour".parse().unwrap(),
        epoch: epoch.to_owned(),
        revision,
        broker: BrokerInfo {
            urls: vec![],
            ca_pem: String::new(),
        },
        clusters: clusters
            .iter()
            .map(|(name, record)| (id(name), record.clone()))
            .collect(),
        tombstones: BTreeMap::new(),
    }
}

fn whole(snapshot: Snapshot) -> WatchEvent {
    WatchEvent::Snapshot {
        snapshot: Box::new(snapshot),
    }
}

fn remove(from: u64, name: &str, at: u64) -> WatchEvent {
    let tombstone = Tombstone {
        reason: Gone::Left,
        at: UnixMillis(at),
    };
    let changes = vec![Change::Remove {
        cluster: id(name),
        tombstone,
    }];
    WatchEvent::Delta {
        delta: Delta {
            from,
            to: from + 1,
            changes,
        },
    }
}

fn put(from: u64, name: &str, record: Cluster) -> WatchEvent {
    let changes = vec![Change::Put {
        cluster: id(name),
        record: Box::new(record),
    }];
    WatchEvent::Delta {
        delta: Delta {
            from,
            to: from + 1,
            changes,
        },
    }
}

fn fleet(start: Snapshot) -> Fleet {
    Fleet::new(
        "harbour".parse().unwrap(),
        id("east"),
        Some(start),
        Kept::default(),
    )
}

fn names(fleet: &Fleet) -> Vec<String> {
    fleet
        .view()
        .others(&id("east"))
        .keys()
        .map(ToString::to_string)
        .collect()
}

fn three() -> Snapshot {
    snapshot(
        "e1",
        5,
        &[
            ("east", cluster(1, &["gw-1"])),
            ("west", cluster(2, &["gw-1", "gw-2"])),
            ("north", cluster(3, &["gw-1"])),
        ],
    )
}

const NOW: UnixMillis = UnixMillis(1_000_000);

#[test]
fn deltas_of_the_same_history_are_believed_at_once() {
    let mut fleet = fleet(three());
    assert_eq!(fleet.take(remove(5, "west", 10), NOW), Outcome::Changed);
    assert_eq!(names(&fleet), ["north"]);
    assert_eq!(
        fleet.take(put(6, "south", cluster(9, &[])), NOW),
        Outcome::Changed
    );
    assert_eq!(
        fleet.take(put(6, "south", cluster(9, &[])), NOW),
        Outcome::Unchanged
    );
    assert_eq!(names(&fleet), ["north", "south"]);
    assert_eq!(fleet.position(), Some(("e1", 7)));
}

#[test]
fn a_snapshot_of_the_same_history_removes_at_once() {
    let mut fleet = fleet(three());
    let smaller = snapshot("e1", 9, &[("east", cluster(1, &["gw-1"]))]);
    assert_eq!(fleet.take(whole(smaller), NOW), Outcome::Changed);
    assert!(names(&fleet).is_empty());
}

#[test]
fn a_gap_asks_for_a_snapshot_and_takes_no_delta_before_it() {
    let mut fleet = fleet(three());
    assert_eq!(fleet.take(remove(7, "west", 10), NOW), Outcome::Resync);
    assert_eq!(fleet.position(), None);
    assert_eq!(fleet.take(remove(5, "west", 10), NOW), Outcome::Resync);
    assert_eq!(
        names(&fleet),
        ["north", "west"],
        "the tunnels stay as they are meanwhile"
    );
    assert_eq!(fleet.take(whole(three()), NOW), Outcome::Unchanged);
    assert_eq!(fleet.position(), Some(("e1", 5)));
}

#[test]
fn two_heartbeats_ahead_of_us_are_a_gap() {
    let mut fleet = fleet(three());
    assert_eq!(
        fleet.take(WatchEvent::Heartbeat { revision: 6 }, NOW),
        Outcome::Unchanged
    );
    assert_eq!(
        fleet.take(WatchEvent::Heartbeat { revision: 6 }, NOW),
        Outcome::Resync
    );
    assert_eq!(fleet.take(whole(three()), NOW), Outcome::Unchanged);
    assert_eq!(
        fleet.take(WatchEvent::Heartbeat { revision: 5 }, NOW),
        Outcome::Unchanged
    );
    assert_eq!(
        fleet.take(WatchEvent::Heartbeat { revision: 5 }, NOW),
        Outcome::Unchanged
    );
}

#[test]
fn an_empty_broker_cuts_nothing_for_ten_minutes() {
    let mut fleet = fleet(three());
    assert_eq!(
        fleet.take(whole(snapshot("e2", 1, &[])), NOW),
        Outcome::Changed
    );
    assert_eq!(names(&fleet), ["north", "west"]);
    assert_eq!(
        fleet.view().own().unwrap().joined_at,
        UnixMillis(1),
        "our own record stays"
    );
    let view = fleet.view().others(&id("east"));
    assert!(!view[&id("west")].current);
    assert_eq!(view[&id("west")].gateways.len(), 2);
    assert!(!fleet.expire(UnixMillis(NOW.0 + 599_999)));
    assert_eq!(fleet.next_expiry(), Some(NOW.plus(KEEP)));
    assert!(fleet.expire(NOW.plus(KEEP)));
    assert!(names(&fleet).is_empty());
    assert!(fleet.view().own().is_some());
}

#[test]
fn a_membership_newer_than_the_backup_is_kept_instead_of_the_earlier_one() {
    let mut fleet = fleet(three());
    let mut earlier = three();
    earlier.epoch = "e2".to_owned();
    for (name, record) in &mut earlier.clusters {
        record.joined_at = UnixMillis(if *name == id("north") { 3 } else { 0 });
        record.gateways.insert("other".parse().unwrap(), gateway(9));
    }
    fleet.take(whole(earlier), NOW);
    let view = fleet.view().others(&id("east"));
    assert!(view[&id("north")].current && !view[&id("west")].current);
    let nodes: Vec<_> = view[&id("west")]
        .gateways
        .keys()
        .map(|node| node.as_str())
        .collect();
    assert_eq!(nodes, ["gw-1", "gw-2"]);
    assert_eq!(fleet.view().own().unwrap().joined_at, UnixMillis(1));

    // The cluster joins once more: from now on the broker is right.
    fleet.take(put(5, "west", cluster(99, &["gw-1", "gw-2"])), NOW);
    assert!(fleet.view().others(&id("east"))[&id("west")].current);
    fleet.expire(NOW.plus(KEEP));
    assert_eq!(names(&fleet), ["north", "west"]);
}

#[test]
fn a_store_that_went_back_within_its_history_cuts_nothing_either() {
    let mut fleet = fleet(three());
    fleet.take(whole(snapshot("e1", 4, &[])), NOW);
    assert_eq!(names(&fleet), ["north", "west"]);
    assert_eq!(fleet.position(), Some(("e1", 4)));
}

#[test]
fn what_is_kept_survives_a_restart_and_a_snapshot_of_the_new_history() {
    let mut fleet = fleet(three());
    fleet.take(whole(snapshot("e2", 1, &[])), NOW);
    let (disk, kept) = (fleet.view().snapshot.clone(), fleet.view().kept.clone());
    let text = serde_json::to_string(&kept).unwrap();
    let kept = serde_json::from_str(&text).unwrap();
    let mut fleet = Fleet::new("harbour".parse().unwrap(), id("east"), disk, kept);
    assert_eq!(names(&fleet), ["north", "west"]);
    fleet.take(
        whole(snapshot("e2", 2, &[("north", cluster(3, &["gw-1"]))])),
        NOW,
    );
    let view = fleet.view().others(&id("east"));
    assert!(view[&id("north")].current && !view[&id("west")].current);
    assert_eq!(fleet.next_expiry(), Some(NOW.plus(KEEP)));
}

#[test]
fn a_second_new_history_starts_the_time_anew_only_for_what_it_newly_misses() {
    let mut fleet = fleet(three());
    let later = UnixMillis(NOW.0 + 60_000);
    fleet.take(
        whole(snapshot("e2", 1, &[("west", cluster(2, &["gw-1"]))])),
        NOW,
    );
    fleet.take(whole(snapshot("e3", 1, &[])), later);
    assert_eq!(
        fleet.view().kept.clusters[&id("north")].until,
        NOW.plus(KEEP)
    );
    let west = &fleet.view().kept.clusters[&id("west")];
    assert_eq!(
        (west.until, west.record.gateways.len()),
        (later.plus(KEEP), 2)
    );
}

#[test]
fn a_gateway_that_an_older_backup_misses_is_kept_by_itself() {
    let mut fleet = fleet(three());
    fleet.take(
        whole(snapshot("e2", 1, &[("west", cluster(2, &["gw-1"]))])),
        NOW,
    );
    let view = fleet.view().others(&id("east"));
    let west = &view[&id("west")];
    assert!(west.current);
    let kept: Vec<_> = west
        .gateways
        .values()
        .map(|known| known.until.is_some())
        .collect();
    assert_eq!(kept, [false, true]);
    assert_eq!(
        fleet.take(put(1, "west", cluster(2, &["gw-1", "gw-2"])), NOW),
        Outcome::Changed
    );
    assert!(!fleet.view().kept.clusters.contains_key(&id("west")));
}

#[test]
fn a_tombstone_removes_at_once_unless_it_is_of_an_earlier_membership() {
    let mut fleet = fleet(three());
    let mut new = snapshot("e2", 1, &[]);
    let stone = |at| Tombstone {
        reason: Gone::Revoked,
        at: UnixMillis(at),
    };
    new.tombstones.insert(id("west"), stone(2));
    new.tombstones.insert(id("north"), stone(2));
    fleet.take(whole(new), NOW);
    assert_eq!(
        names(&fleet),
        ["north"],
        "north joined at 3, after the tombstone"
    );
    fleet.take(remove(1, "north", 20), NOW);
    assert!(names(&fleet).is_empty());
}

#[test]
fn our_own_gateway_stays_known_when_a_restored_broker_misses_it() {
    let mut fleet = fleet(three());
    fleet.take(whole(snapshot("e2", 1, &[("east", cluster(1, &[]))])), NOW);
    assert_eq!(
        fleet
            .view()
            .registered(&id("east"), &"gw-1".parse().unwrap()),
        None
    );
    assert_eq!(fleet.view().own().unwrap().gateways.len(), 1);
}

#[test]
fn a_gateway_of_our_own_that_is_removed_is_known_no_more() {
    let own = |fleet: &Fleet| fleet.view().own().unwrap().gateways.len();
    let two = || cluster(1, &["gw-1", "gw-2"]);
    let one = || cluster(1, &["gw-1"]);
    // While we look, and while we did not.
    let mut looking = fleet(snapshot("e1", 1, &[("east", two())]));
    assert_eq!(own(&looking), 2);
    looking.take(put(1, "east", one()), NOW);
    assert_eq!(own(&looking), 1);
    let mut back = fleet(snapshot("e1", 1, &[("east", two())]));
    back.take(whole(snapshot("e1", 7, &[("east", one())])), NOW);
    assert_eq!(own(&back), 1);
    // A restored broker did not remove what it never knew: not with its next word either.
    let mut restored = fleet(snapshot("e1", 1, &[("east", two())]));
    restored.take(whole(snapshot("e2", 1, &[("east", one())])), NOW);
    restored.take(put(1, "east", one()), NOW);
    assert_eq!(own(&restored), 2);
    // Once that has registered again, it can be removed again.
    restored.take(put(2, "east", two()), NOW);
    restored.take(put(3, "east", one()), NOW);
    assert_eq!(own(&restored), 1);
}

#[test]
fn another_fleet_is_not_taken() {
    let mut other = three();
    other.fleet = "other".parse().unwrap();
    let mut fleet = fleet(three());
    let outcome = fleet.take(whole(other.clone()), NOW);
    assert_eq!(outcome, Outcome::Foreign("other".parse().unwrap()));
    let fleet = Fleet::new(
        "harbour".parse().unwrap(),
        id("east"),
        Some(other),
        Kept::default(),
    );
    assert!(fleet.view().snapshot.is_none());
}
