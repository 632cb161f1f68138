//! What of a new decision can be had at once: members of groups that stand, and rules of roads that come or go. PURE.

use std::collections::BTreeMap;

use super::desired::{Input, flows};
use crate::host::desired::Desired;
use crate::net::netlink::Group;
use crate::net::netlink::types::Rule;
use crate::net::nft::ruleset::Bits;

/// What is to be otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// Groups with other members, by their numbers.
    pub groups: BTreeMap<u32, Group>,
    /// Rules, and whether they should be there.
    pub rules: BTreeMap<Rule, bool>,
}

impl Turn {
    /// Whether all is as it should be.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.rules.is_empty()
    }
}

/// What must be turned to get from what the kernel was to hold `before` to where flows should go. It costs nothing for
/// blocks and routes, so that it is quick whatever the size of the fleet.
pub fn turn(input: &Input<'_>, before: &Desired) -> Turn {
    let flows = flows(input, before.vxlan.clone());
    let stands: BTreeMap<u32, &Group> = before.groups.iter().map(|g| (g.id, g)).collect();
    let is_other = |group: &Group| stands.get(&group.id).is_some_and(|before| *before != group);
    let groups = flows.groups.into_iter().filter(is_other);
    let mut turn = Turn {
        groups: groups.map(|group| (group.id, group)).collect(),
        rules: BTreeMap::new(),
    };
    let options = input.options;
    let main = before
        .rules
        .iter()
        .filter(|rule| rule.pref == options.rule_pref);
    for family in main.map(|rule| rule.family) {
        for road in &before.ruleset.roads.all {
            let Some(rule) = road.rule(Bits::AGENT, family, options.rule_pref - 1) else {
                continue;
            };
            let wanted = flows.roads.contains(&(road.number, family));
            // A rule may come only when its table is filled.
            let filled = before.tables.contains(&road.table);
            if before.rules.contains(&rule) != wanted && (filled || !wanted) {
                turn.rules.insert(rule, wanted);
            }
        }
    }
    turn
}
