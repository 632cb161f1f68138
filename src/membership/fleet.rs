//! What we hold to be the fleet: the broker's snapshot, and what we keep although the broker's new history
//! has forgotten it. PURE.
//!
//! Within one history (epoch) the broker is believed at once. A new history means that the broker's store was
//! restored or made anew: what it misses is kept for ten minutes, so that its members can register again
//! without a tunnel being cut. So is a membership that the new history has in an earlier form only. Only a
//! tombstone removes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subsea_api::snapshot::{Cluster, Gateway, Tombstone, WatchEvent};
use subsea_api::{ClusterId, FleetName, NodeName, Snapshot, UnixMillis};

/// How long what a new history misses is kept.
pub const KEEP: Duration = Duration::from_mins(10);

/// What is kept beside the snapshot; survives a restart in a file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Gateways that the snapshot misses, by cluster.
    #[serde(default)]
    pub clusters: BTreeMap<ClusterId, KeptCluster>,
    /// The last record of our own cluster.
    #[serde(default)]
    pub own: Option<Cluster>,
}

/// Gateways of one cluster that the snapshot misses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCluster {
    /// The cluster as it was, with the missing gateways only.
    pub record: Cluster,
    /// When it is dropped.
    pub until: UnixMillis,
}

/// What an event of the watch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing new.
    Unchanged,
    /// The view is another one.
    Changed,
    /// Changes are missing: ask for a snapshot by watching anew from [`Fleet::position`], which now says none.
    Resync,
    /// It is about another fleet and was not taken.
    Foreign(FleetName),
}

/// The fleet as it is acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The broker's last word; none before the first.
    pub snapshot: Option<Snapshot>,
    /// What is kept beside it.
    pub kept: Kept,
}

/// Takes the events of the watch.
#[derive(Debug, Clone)]
pub struct Fleet {
    name: FleetName,
    own: ClusterId,
    view: View,
    /// Set when the next word must be a whole snapshot.
    resync: bool,
    /// The last heartbeat was ahead of us.
    behind: bool,
}

impl Fleet {
    /// Starts from what the disk holds. A snapshot of another fleet is left out.
    pub fn new(name: FleetName, own: ClusterId, snapshot: Option<Snapshot>, kept: Kept) -> Self {
        let snapshot = snapshot.filter(|s| s.fleet == name);
        let mut fleet = Self {
            name,
            own,
            view: View { snapshot, kept },
            resync: false,
            behind: false,
        };
        fleet.settle(&BTreeSet::new());
        fleet
    }

    /// What to act on now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// From where to watch: epoch and revision; none when a whole snapshot is needed.
    pub fn position(&self) -> Option<(&str, u64)> {
        let snapshot = self.view.snapshot.as_ref().filter(|_| !self.resync)?;
        Some((&snapshot.epoch, snapshot.revision))
    }

    /// When [`Fleet::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<UnixMillis> {
        self.view.kept.clusters.values().map(|k| k.until).min()
    }

    /// Drops what was kept for long enough; true when there was any.
    pub fn expire(&mut self, now: UnixMillis) -> bool {
        let before = self.view.kept.clusters.len();
        self.view.kept.clusters.retain(|_, kept| kept.until > now);
        self.view.kept.clusters.len() != before
    }

    /// Takes one event of the watch.
    pub fn take(&mut self, event: WatchEvent, now: UnixMillis) -> Outcome {
        match event {
            WatchEvent::Snapshot { snapshot } => self.replace(*snapshot, now),
            WatchEvent::Delta { delta } => {
                let Some(snapshot) = self.view.snapshot.as_mut().filter(|_| !self.resync) else {
                    return self.ask_again();
                };
                if delta.to <= snapshot.revision {
                    return Outcome::Unchanged;
                }
                let before = nodes(snapshot, &self.own);
                if snapshot.apply(delta).is_err() {
                    return self.ask_again();
                }
                self.behind = false;
                self.settle(&before);
                Outcome::Changed
            }
            WatchEvent::Heartbeat { revision } => {
                let ahead = self
                    .view
                    .snapshot
                    .as_ref()
                    .is_none_or(|snapshot| revision > snapshot.revision);
                // One heartbeat may overtake the batch that a change travels in; two cannot.
                if ahead && self.behind {
                    return self.ask_again();
                }
                self.behind = ahead;
                Outcome::Unchanged
            }
        }
    }

    fn ask_again(&mut self) -> Outcome {
        self.resync = true;
        self.behind = false;
        Outcome::Resync
    }

    fn replace(&mut self, new: Snapshot, now: UnixMillis) -> Outcome {
        if new.fleet != self.name {
            return Outcome::Foreign(new.fleet);
        }
        self.resync = false;
        self.behind = false;
        if self.view.snapshot.as_ref() == Some(&new) {
            return Outcome::Unchanged;
        }
        let mut before = BTreeSet::new();
        if let Some(old) = self.view.snapshot.take() {
            // A store that went back without noticing (a copied file, a restored machine) has its old epoch.
            if old.epoch != new.epoch || new.revision < old.revision {
                let until = now.plus(KEEP);
                for (id, record) in old.clusters {
                    if id != self.own {
                        self.keep(&id, record, until);
                    }
                }
            } else {
                before = nodes(&old, &self.own);
            }
        }
        self.view.snapshot = Some(new);
        self.settle(&before);
        Outcome::Changed
    }

    /// Keeps the gateways of `record`; what was kept before keeps its time if it is not among them.
    fn keep(&mut self, id: &ClusterId, mut record: Cluster, until: UnixMillis) {
        if record.gateways.is_empty() && record.allocations.is_empty() {
            return;
        }
        if let Some(earlier) = self.view.kept.clusters.remove(id) {
            for (node, gateway) in earlier.record.gateways {
                record.gateways.entry(node).or_insert(gateway);
            }
        }
        self.view
            .kept
            .clusters
            .insert(id.clone(), KeptCluster { record, until });
    }

    /// Drops from what is kept all that the snapshot has or knows to be gone, and remembers our own record. `before`: the nodes of
    /// our own gateways that the broker knew earlier in this history, so that those it misses now were removed.
    fn settle(&mut self, before: &BTreeSet<NodeName>) {
        let Some(snapshot) = &self.view.snapshot else {
            return;
        };
        self.view.kept.clusters.retain(|id, kept| {
            if *id == self.own || gone(snapshot.tombstones.get(id), &kept.record) {
                return false;
            }
            let Some(now) = snapshot.clusters.get(id) else {
                return true;
            };
            if is_older(now, &kept.record) {
                return true;
            }
            kept.record
                .gateways
                .retain(|node, _| !now.gateways.contains_key(node));
            !kept.record.gateways.is_empty()
        });
        let known = self.view.kept.own.as_ref();
        if let Some(own) = snapshot.clusters.get(&self.own)
            && !known.is_some_and(|known| is_older(own, known))
        {
            // A restored broker may not know our gateway yet; its inner addresses are in use until it does.
            let mut own = own.clone();
            if let Some(known) = self.view.kept.own.take() {
                let missed = known.gateways.into_iter();
                for (node, gateway) in missed.filter(|(node, _)| !before.contains(node)) {
                    own.gateways.entry(node).or_insert(gateway);
                }
            }
            self.view.kept.own = Some(own);
        }
    }
}

/// The nodes of a cluster's gateways.
fn nodes(snapshot: &Snapshot, cluster: &ClusterId) -> BTreeSet<NodeName> {
    let record = snapshot.clusters.get(cluster);
    let gateways = record.into_iter().flat_map(|record| record.gateways.keys());
    gateways.cloned().collect()
}

/// Whether the tombstone is for this membership, and not for an earlier one of the same name.
fn gone(tombstone: Option<&Tombstone>, record: &Cluster) -> bool {
    tombstone.is_some_and(|t| t.at >= record.joined_at)
}

/// Whether `now` is of an earlier membership than `known`: the store went back to before the cluster joined anew,
/// so that what it says of its keys and blocks holds no more.
fn is_older(now: &Cluster, known: &Cluster) -> bool {
    now.joined_at < known.joined_at
}

/// One remote gateway of a [`View`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// Its record.
    pub gateway: &'a Gateway,
    /// When it is dropped, if it is only kept.
    pub until: Option<UnixMillis>,
}

/// One remote cluster of a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The record that its blocks are taken from.
    pub record: &'a Cluster,
    /// Whether the snapshot has the cluster.
    pub current: bool,
    /// Its gateways, kept ones too.
    pub gateways: BTreeMap<&'a NodeName, Known<'a>>,
}

impl View {
    /// Every cluster but `own`, by id.
    pub fn others(&self, own: &ClusterId) -> BTreeMap<&ClusterId, Member<'_>> {
        let mut members: BTreeMap<&ClusterId, Member<'_>> = BTreeMap::new();
        let current = self.snapshot.iter().flat_map(|s| &s.clusters);
        for (id, record) in current.filter(|(id, _)| *id != own) {
            let gateways = record
                .gateways
                .iter()
                .map(|(node, gateway)| {
                    (
                        node,
                        Known {
                            gateway,
                            until: None,
                        },
                    )
                })
                .collect();
            members.insert(
                id,
                Member {
                    record,
                    current: true,
                    gateways,
                },
            );
        }
        for (id, kept) in self.kept.clusters.iter().filter(|(id, _)| *id != own) {
            let whole = Member {
                record: &kept.record,
                current: false,
                gateways: BTreeMap::new(),
            };
            if members
                .get(id)
                .is_some_and(|now| is_older(now.record, &kept.record))
            {
                members.remove(id);
            }
            let member = members.entry(id).or_insert(whole);
            for (node, gateway) in &kept.record.gateways {
                let known = Known {
                    gateway,
                    until: Some(kept.until),
                };
                member.gateways.entry(node).or_insert(known);
            }
        }
        members
    }

    /// Our own cluster's last known record.
    pub fn own(&self) -> Option<&Cluster> {
        self.kept.own.as_ref()
    }

    /// Our own gateway as the broker has it now, as against [`View::own`].
    pub fn registered(&self, cluster: &ClusterId, node: &NodeName) -> Option<&Gateway> {
        self.snapshot
            .as_ref()?
            .clusters
            .get(cluster)?
            .gateways
            .get(node)
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
