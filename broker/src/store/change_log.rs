//! The newest changes, so that a watcher that was away briefly need not fetch the whole fleet. PURE.

use std::collections::{BTreeMap, VecDeque};

use subsea_api::snapshot::Change;

/// The most revisions that are kept.
const MAX_REVISIONS: usize = 4096;
/// About how many bytes of changes are kept.
const MAX_BYTES: usize = 16 << 20;

/// A bounded queue of changes without gaps.
#[derive(Debug)]
pub struct ChangeLog {
    newest: u64,
    entries: VecDeque<(u64, Vec<Change>)>,
    bytes: usize,
}

impl ChangeLog {
    /// The log as the store kept it, oldest first; what does not lead to `newest` without a gap is dropped.
    pub fn new(newest: u64, entries: Vec<(u64, Vec<Change>)>) -> Self {
        let mut log = Self {
            newest,
            entries: VecDeque::new(),
            bytes: 0,
        };
        for (revision, changes) in entries {
            let follows = log
                .entries
                .back()
                .is_none_or(|(last, _)| last + 1 == revision);
            if !follows {
                log.entries.clear();
                log.bytes = 0;
            }
            log.push(revision, changes);
        }
        if log.newest != newest {
            log.entries.clear();
            log.bytes = 0;
            log.newest = newest;
        }
        log
    }

    /// Adds the changes of the next revision.
    pub fn push(&mut self, revision: u64, changes: Vec<Change>) {
        self.bytes += weight(&changes);
        self.entries.push_back((revision, changes));
        self.newest = revision;
        while self.entries.len() > MAX_REVISIONS
            || (self.bytes > MAX_BYTES && self.entries.len() > 1)
        {
            if let Some((_, old)) = self.entries.pop_front() {
                self.bytes -= weight(&old);
            }
        }
    }

    /// The oldest revision that is kept.
    pub fn keep_from(&self) -> u64 {
        self.entries
            .front()
            .map_or(self.newest + 1, |(revision, _)| *revision)
    }

    /// What changed after `since`, each member at most once; `None` when the log does not reach back so far.
    pub fn since(&self, since: u64) -> Option<Vec<Change>> {
        if since > self.newest || since + 1 < self.keep_from() {
            return None;
        }
        let skip = usize::try_from(since + 1 - self.keep_from()).ok()?;
        Some(merge(self.entries.iter().skip(skip).flat_map(|(_, c)| c)))
    }
}

/// Leaves the last change of each member, in the order of those last changes.
fn merge<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<Change> {
    let all: Vec<&Change> = changes.collect();
    let mut last = BTreeMap::new();
    for (i, change) in all.iter().enumerate() {
        let member = match change {
            Change::Broker { .. } => None,
            Change::Put { cluster, .. } | Change::Remove { cluster, .. } => Some(cluster),
        };
        last.insert(member, i);
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable();
    kept.into_iter().map(|i| all[i].clone()).collect()
}

/// About how many bytes changes take.
fn weight(changes: &[Change]) -> usize {
    changes
        .iter()
        .map(|change| match change {
            Change::Broker { broker } => broker.ca_pem.len() + 256,
            Change::Remove { .. } => 128,
            Change::Put { record, .. } => {
                let listeners: usize = record.gateways.values().map(|g| g.listeners.len()).sum();
                256 + record.allocations.len() * 64 + record.gateways.len() * 256 + listeners * 512
            }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use subsea_api::UnixMillis;
    use subsea_api::snapshot::{Gone, Tombstone};

    fn remove(cluster: &str, at: u64) -> Change {
        Change::Remove {
            cluster: cluster.parse().unwrap(),
            tombstone: Tombstone {
                reason: Gone::Left,
                at: UnixMillis(at),
            },
        }
    }

    #[test]
    fn it_tells_what_came_after_and_merges_by_member() {
        let mut log = ChangeLog::new(4, vec![(4, vec![remove("a", 4)])]);
        log.push(5, vec![remove("b", 5)]);
        log.push(6, vec![remove("a", 6)]);
        assert_eq!(log.since(3), Some(vec![remove("b", 5), remove("a", 6)]));
        assert_eq!(log.since(5), Some(vec![remove("a", 6)]));
        assert_eq!(log.since(6), Some(vec![]));
        assert_eq!(log.since(2), None, "before the log");
        assert_eq!(log.since(7), None, "from the future");
    }

    #[test]
    fn it_stays_bounded() {
        let mut log = ChangeLog::new(0, vec![]);
        for revision in 1..=5000 {
            log.push(revision, vec![remove("a", revision)]);
        }
        assert_eq!(log.keep_from(), 5000 - 4095);
        assert_eq!(log.since(0), None);
        assert!(log.since(905).is_some());
    }

    #[test]
    fn a_log_with_a_gap_is_not_trusted() {
        let log = ChangeLog::new(9, vec![(3, vec![]), (5, vec![]), (6, vec![])]);
        assert_eq!(log.since(6), None);
        assert_eq!(log.since(9), Some(vec![]));
        let log = ChangeLog::new(6, vec![(3, vec![]), (5, vec![]), (6, vec![])]);
        assert!(log.since(4).is_some());
        assert_eq!(log.since(3), None);
    }
}
