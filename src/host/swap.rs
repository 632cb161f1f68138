//! The fast way to move flows: members of groups and rules of roads, without a pass. Shell.
//!
//! A pass that was planned before must not put the old state back: so what was steered to is kept, with its number,
//! until the kernel is to hold something newer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::HostError;
use super::desired::Desired;
use crate::net::netlink::{Change, Fast, Group, NetlinkError, Rule};

/// Where flows go, by a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steering {
    /// The number of the decision; later ones have larger numbers. [`Desired::steering`] says which one is in it.
    pub number: u64,
    /// The groups whose members are said here, by their numbers.
    pub groups: BTreeMap<u32, Group>,
    /// Rules, and whether they should be there.
    pub rules: BTreeMap<Rule, bool>,
}

/// Steers from any thread, beside the [`Reconciler`](super::Reconciler) that it came from.
#[derive(Debug, Clone)]
pub struct Swap {
    fast: Arc<Fast>,
    newest: Arc<Mutex<Steering>>,
}

impl Swap {
    pub(super) fn new(fast: Arc<Fast>) -> Self {
        Self {
            fast,
            newest: Arc::default(),
        }
    }

    /// Brings the kernel there at once; what is not named stays as it was steered before. Takes about ten microseconds for each group and rule, blocking for that long.
    /// Members and rules must be of ours and known to [`Desired`]. An older decision than the last one does nothing.
    ///
    /// # Errors
    /// What the kernel refused first; the rest was tried all the same, and the next pass tries again.
    pub fn steer(&self, steering: Steering) -> Result<(), HostError> {
        let mut newest = self.lock();
        if steering.number <= newest.number {
            return Ok(());
        }
        let Steering {
            number,
            groups,
            rules,
        } = steering;
        // What is not said anew stands: a pass of before an earlier decision may still be under way.
        newest.number = number;
        newest.groups.extend(groups.clone());
        newest.rules.extend(rules.clone());
        let groups = groups.values().map(|group| {
            // The kernel has no empty ones: who has nobody keeps the last good one.
            if group.members.is_empty() {
                return Ok(());
            }
            self.fast.put_group(group)
        });
        let rules = rules.iter().map(|(rule, wanted)| {
            if *wanted {
                self.fast.add_rule(rule)
            } else {
                self.fast.delete_rule(rule)
            }
        });
        let refused: Vec<NetlinkError> = groups.chain(rules).filter_map(Result::err).collect();
        refused
            .into_iter()
            .next()
            .map_or(Ok(()), |error| Err(HostError::Netlink(error)))
    }

    /// What is desired, with the newest decision in it.
    pub(super) fn over(&self, mut desired: Desired) -> Desired {
        let newest = self.lock();
        if newest.number <= desired.steering {
            return desired;
        }
        desired.steering = newest.number;
        let groups = std::mem::take(&mut desired.groups);
        desired.groups = groups
            .into_iter()
            .map(|group| newest.groups.get(&group.id).cloned().unwrap_or(group))
            .collect();
        for (rule, wanted) in &newest.rules {
            if *wanted {
                desired.rules.insert(rule.clone());
            } else {
                desired.rules.remove(rule);
            }
        }
        desired
    }

    /// Makes a change that was planned by decision `number`, unless a newer one says otherwise; none comes between.
    pub(super) fn make(
        &self,
        number: u64,
        change: &Change,
        make: &dyn Fn(&Change) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let newest = self.lock();
        if newest.number <= number {
            return make(change);
        }
        let overruled = if let Change::PutGroup(group) = change {
            newest.groups.contains_key(&group.id)
        } else if let Change::AddRule(rule) | Change::DeleteRule(rule) = change {
            newest.rules.contains_key(rule)
        } else {
            false
        };
        // What was steered to meanwhile stands; our own notification of it brings the next pass.
        if overruled { Ok(()) } else { make(change) }
    }

    fn lock(&self) -> MutexGuard<'_, Steering> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
