//! The changes that lead from what the kernel holds to what it should hold. PURE.
//!
//! The order is what keeps packets from leaving in clear: backstops come first, then the ways into the tunnel, then
//! the rules that lead to them; what is no longer wanted goes last. At every step each remote block that stays
//! remote has its backstop. What is not ours (protocol 83 in our table) is neither changed nor replaced.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::Cidr;

use super::desired::Desired;
use crate::net::netlink::types::{Address, Observed, PROTOCOL, Route, Rule};

/// One change of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Adds a route, in place of ours with the same block and metric.
    Put(Route),
    /// Sets the MTU of a device.
    SetMtu(String, u32),
    /// Sets a device up.
    LinkUp(String),
    /// Adds an address.
    AddAddress(Address),
    /// Adds a rule.
    AddRule(Rule),
    /// Removes a rule of ours.
    DeleteRule(Rule),
    /// Removes a route of ours.
    Delete(Route),
    /// Removes an address of ours.
    DeleteAddress(Address),
}

/// The changes that make `observed` what is desired, in order. None when it is so already.
///
/// While a device is missing, what needs it is left out. While the fleet is not known, nothing is taken away.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let routes = routes(desired, observed);
    ops.extend(routes.backstops);
    for device in desired.devices.iter().filter_map(|d| observed.link(d)) {
        if device.mtu != desired.mtu {
            ops.push(Op::SetMtu(device.name.clone(), desired.mtu));
        }
        if !device.up {
            ops.push(Op::LinkUp(device.name.clone()));
        }
        let has = |a: &Address| {
            observed
                .addresses
                .iter()
                .any(|o| o.addr == a.addr && o.device == a.device)
        };
        ops.extend(
            desired
                .addresses
                .iter()
                .filter(|a| a.device == device.name && !has(a))
                .cloned()
                .map(Op::AddAddress),
        );
    }
    ops.extend(routes.duplicates);
    ops.extend(routes.live);

    let ours: BTreeSet<&Rule> = observed
        .rules
        .iter()
        .filter(|r| r.is_ours(desired.table))
        .collect();
    ops.extend(
        desired
            .rules
            .iter()
            .filter(|r| !ours.contains(r))
            .cloned()
            .map(Op::AddRule),
    );
    ops.extend(
        ours.into_iter()
            .filter(|r| !desired.rules.contains(r))
            .cloned()
            .map(Op::DeleteRule),
    );

    ops.extend(routes.unwanted);
    let stray = |a: &&Address| {
        let wanted = |d: &Address| d.addr == a.addr && d.device == a.device;
        let wanted = desired.addresses.iter().any(wanted);
        desired.devices.contains(&a.device) && a.protocol == Some(PROTOCOL) && !wanted
    };
    ops.extend(
        observed
            .addresses
            .iter()
            .filter(stray)
            .cloned()
            .map(Op::DeleteAddress),
    );
    if desired.keep {
        ops.retain(|op| !takes_away(op));
    }
    ops
}

fn takes_away(op: &Op) -> bool {
    match op {
        Op::Delete(_) | Op::DeleteRule(_) | Op::DeleteAddress(_) => true,
        Op::Put(_) | Op::SetMtu(..) | Op::LinkUp(_) | Op::AddAddress(_) | Op::AddRule(_) => false,
    }
}

/// Whether a change lets packets through a tunnel that did not pass before.
pub fn opens_a_tunnel(op: &Op) -> bool {
    match op {
        Op::LinkUp(_) => true,
        Op::Put(route) => !route.is_backstop(),
        Op::SetMtu(..)
        | Op::AddAddress(_)
        | Op::AddRule(_)
        | Op::DeleteRule(_)
        | Op::Delete(_)
        | Op::DeleteAddress(_) => false,
    }
}

/// Adds what closes the tunnels to `ops`: every way into one goes, and the backstops stay.
pub fn close(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let of_table = observed.routes.iter().filter(|r| r.table == desired.table);
    let live = of_table.filter(|r| r.is_ours() && !r.is_backstop());
    for op in live.cloned().map(Op::Delete) {
        if !ops.contains(&op) {
            ops.push(op);
        }
    }
}

#[derive(Default)]
struct Routes {
    backstops: Vec<Op>,
    live: Vec<Op>,
    duplicates: Vec<Op>,
    unwanted: Vec<Op>,
}

fn routes(desired: &Desired, observed: &Observed) -> Routes {
    let mut ops = Routes::default();
    let mut held: BTreeMap<_, Vec<&Route>> = BTreeMap::new();
    for route in observed.routes.iter().filter(|r| r.table == desired.table) {
        held.entry(route.key()).or_default().push(route);
    }
    let has_devices = |route: &Route| {
        let mut devices = route.hops.iter().filter_map(|hop| hop.device.as_deref());
        devices.all(|device| observed.link(device).is_some())
    };
    for route in &desired.routes {
        let there = held.remove(&route.key()).unwrap_or_default();
        let (ours, others): (Vec<&Route>, Vec<&Route>) =
            there.into_iter().partition(|r| r.is_ours());
        let stands = ours.contains(&route);
        // A replacement would hit the route of somebody else, so ours waits; `blocked` says so.
        let possible = others.is_empty() && has_devices(route);
        // Several of ours in one place: the kernel would replace any of them.
        let extra = ours
            .iter()
            .filter(|r| **r != route)
            .skip(usize::from(!stands && possible));
        ops.duplicates
            .extend(extra.map(|r| Op::Delete((*r).clone())));
        if !stands && possible {
            let list = if route.is_backstop() {
                &mut ops.backstops
            } else {
                &mut ops.live
            };
            list.push(Op::Put(route.clone()));
        }
    }
    let (backstops, live): (Vec<&Route>, Vec<&Route>) = held
        .into_values()
        .flatten()
        .filter(|r| r.is_ours())
        .partition(|r| r.is_backstop());
    ops.unwanted
        .extend(live.into_iter().chain(backstops).cloned().map(Op::Delete));
    ops
}

/// Routes of others that stand in our table where ours should: texts for people.
pub fn blocked(desired: &Desired, observed: &Observed) -> Vec<String> {
    let wanted: BTreeSet<_> = desired.routes.iter().map(Route::key).collect();
    let stands = |r: &&Route| !r.is_ours() && wanted.contains(&r.key());
    let text = |r: &Route| {
        format!(
            "route `{r}` of somebody else stands where ours should: remove it, or choose another --table"
        )
    };
    observed.routes.iter().filter(stands).map(text).collect()
}

/// The blocks that this plan routes for the first time: flows to them from before may carry a wrong translation.
pub fn newly_routed(ops: &[Op], observed: &Observed) -> BTreeSet<Cidr> {
    let known: BTreeSet<_> = observed
        .routes
        .iter()
        .filter(|r| r.is_ours())
        .map(Route::key)
        .collect();
    let new = |op: &Op| match op {
        Op::Put(route) if !known.contains(&route.key()) => Some(route.dst),
        Op::Put(_)
        | Op::SetMtu(..)
        | Op::LinkUp(_)
        | Op::AddAddress(_)
        | Op::AddRule(_)
        | Op::DeleteRule(_)
        | Op::Delete(_)
        | Op::DeleteAddress(_) => None,
    };
    ops.iter().filter_map(new).collect()
}

#[cfg(test)]
mod tests;
