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

/// The newest word on each group and rule, with the number of the decision that it is of.
#[derive(Debug, Default)]
struct Newest {
    number: u64,
    groups: BTreeMap<u32, (u64, Group)>,
    rules: BTreeMap<Rule, (u64, bool)>,
}

/// Steers from any thread, beside the [`Reconciler`](super::Reconciler) that it came from.
#[derive(Debug, Clone)]
pub struct Swap {
    fast: Arc<Fast>,
    newest: Arc<Mutex<Newest>>,
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
        let of_groups = groups
            .iter()
            .map(|(id, group)| (*id, (number, group.clone())));
        newest.groups.extend(of_groups);
        let of_rules = rules
            .iter()
            .map(|(rule, wanted)| (rule.clone(), (number, *wanted)));
        newest.rules.extend(of_rules);
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

    /// What is desired, with what newer decisions say in it.
    pub(super) fn over(&self, desired: Desired) -> Desired {
        self.lock().over(desired)
    }

    /// Makes a change that was planned by decision `number`, unless a newer one says otherwise; none comes between.
    pub(super) fn make(
        &self,
        number: u64,
        change: &Change,
        make: &dyn Fn(&Change) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let newest = self.lock();
        // What was steered to meanwhile stands; our own notification of it brings the next pass.
        if newest.overrules(number, change) {
            return Ok(());
        }
        make(change)
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newest {
    fn over(&self, mut desired: Desired) -> Desired {
        let number = desired.steering;
        desired.steering = number.max(self.number);
        let groups = std::mem::take(&mut desired.groups);
        let newest = |group: Group| match self.groups.get(&group.id) {
            Some((of, newer)) if *of > number => newer.clone(),
            Some(_) | None => group,
        };
        desired.groups = groups.into_iter().map(newest).collect();
        let newer = self.rules.iter().filter(|(_, (of, _))| *of > number);
        for (rule, (_, wanted)) in newer {
            if *wanted {
                desired.rules.insert(rule.clone());
            } else {
                desired.rules.remove(rule);
            }
        }
        desired
    }

    /// Whether a newer decision than `number` says what a change is about.
    fn overrules(&self, number: u64, change: &Change) -> bool {
        let of = if let Change::PutGroup(group) = change {
            self.groups.get(&group.id).map(|(of, _)| *of)
        } else if let Change::AddRule(rule) | Change::DeleteRule(rule) = change {
            self.rules.get(rule).map(|(of, _)| *of)
        } else {
            None
        };
        of.is_some_and(|of| of > number)
    }
}

#[cfg(test)]
mod tests {
    use subsea_api::Family;

    use super::*;
    use crate::net::netlink::types::Mark;

    #[test]
    fn what_an_old_decision_said_does_not_come_back_with_a_new_one() {
        let rule = Rule::ours(Family::V4, 7, Mark::default(), 583);
        let group = |members: &[u32]| Group::new(9, members.iter().copied());
        let newest = Newest {
            number: 3,
            groups: [(9, (3, group(&[1])))].into(),
            rules: [(rule.clone(), (1, false))].into(),
        };
        let mut desired = Desired::empty(583);
        desired.rules.insert(rule.clone());
        desired.groups.insert(group(&[1, 2]));
        desired.steering = 2;
        let over = newest.over(desired.clone());
        assert!(
            over.rules.contains(&rule),
            "decision 2 is newer than the word on it"
        );
        assert_eq!(over.groups, [group(&[1])].into(), "decision 3 is newer");
        assert_eq!(over.steering, 3);
        assert!(newest.overrules(2, &Change::PutGroup(group(&[1, 2]))));
        assert!(!newest.overrules(2, &Change::AddRule(rule.clone())));

        desired.steering = 0;
        let over = newest.over(desired);
        assert!(!over.rules.contains(&rule), "decision 1 is newer");
        assert!(newest.overrules(0, &Change::AddRule(rule)));
    }
}
