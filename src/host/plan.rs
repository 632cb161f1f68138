//! The changes that lead from what the kernel holds to what it should hold. PURE.
//!
//! The order is what keeps packets from leaving in clear: backstops come first, then next hops, then the ways into the
//! tunnel, then the rules that lead to them; what is no longer wanted goes last, the other way round. At every step
//! each remote block that stays remote has its backstop. What is not ours (protocol 83 in our tables, and under our
//! numbers of next hops) is neither changed nor replaced.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::Cidr;

use super::desired::Desired;
use crate::net::netlink::nexthop::{Group, Held, NextHop};
use crate::net::netlink::overlay::{Fdb, Neighbour, Vxlan};
use crate::net::netlink::types::{Address, Observed, PROTOCOL, Route, Rule};

mod next_hops;
pub(super) mod overlay;

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
    /// Makes the VXLAN device, down.
    AddVxlan(Vxlan),
    /// Keeps the kernel from giving a device a link-local address.
    NoLinkLocal(String),
    /// Removes a device of ours.
    DeleteLink(String),
    /// Says to which node frames go.
    PutFdb(Fdb),
    /// Forgets it.
    DeleteFdb(Fdb),
    /// Says which hardware address is behind an address.
    PutNeighbour(Neighbour),
    /// Forgets it.
    DeleteNeighbour(Neighbour),
    /// Makes a next hop, in place of ours with its number.
    PutNextHop(NextHop),
    /// Makes a group, in place of ours with its number.
    PutGroup(Group),
    /// Removes a next hop or a group of ours.
    DeleteNextHop(u32),
}

/// The changes that make `observed` what is desired, in order. None when it is so already.
///
/// While a device is missing, what needs it is left out. While the fleet is not known, nothing is taken away.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let next_hops = next_hops::next_hops(desired, observed);
    let routes = routes(desired, observed, &next_hops);
    ops.extend(routes.backstops);
    for (device, mtu) in desired.devices_and_mtus() {
        let Some(device) = observed.link(device) else {
            continue;
        };
        if device.mtu != mtu {
            ops.push(Op::SetMtu(device.name.clone(), mtu));
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
    ops.extend(overlay::behind(desired, observed));
    ops.extend(next_hops.puts);
    ops.extend(routes.duplicates);
    ops.extend(routes.live);

    let tables = desired.all_tables();
    let from = desired.from.as_ref();
    let from = from.map(|(device, pref)| (device.as_str(), *pref));
    let ours: BTreeSet<&Rule> = observed
        .rules
        .iter()
        .filter(|r| r.is_ours(&tables, from))
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
    ops.extend(next_hops.unwanted);
    let stray = |a: &&Address| {
        let wanted = |d: &Address| d.addr == a.addr && d.device == a.device;
        let wanted = desired.addresses.iter().any(wanted);
        let on_ours = desired.devices_and_mtus().any(|(d, _)| d == a.device);
        on_ours && a.protocol == Some(PROTOCOL) && !wanted
    };
    ops.extend(
        observed
            .addresses
            .iter()
            .filter(stray)
            .cloned()
            .map(Op::DeleteAddress),
    );
    ops.extend(overlay::not_behind(desired, observed));
    if desired.keep {
        ops.retain(|op| !takes_away(op));
    }
    ops
}

/// Those of the changes that can come first whatever else happens.
pub(super) fn backstops(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let next_hops = next_hops::next_hops(desired, observed);
    routes(desired, observed, &next_hops).backstops
}

fn takes_away(op: &Op) -> bool {
    matches!(
        op,
        Op::Delete(_)
            | Op::DeleteRule(_)
            | Op::DeleteAddress(_)
            | Op::DeleteLink(_)
            | Op::DeleteFdb(_)
            | Op::DeleteNeighbour(_)
            | Op::DeleteNextHop(_)
    )
}

/// Whether a change lets packets through a tunnel that did not pass before.
pub fn opens_a_tunnel(op: &Op) -> bool {
    matches!(op, Op::LinkUp(_)) || matches!(op, Op::Put(route) if !route.is_backstop())
}

/// Adds what closes the tunnels to `ops`: every way into one goes, and the backstops stay.
pub fn close(desired: &Desired, observed: &Observed, ops: &mut Vec<Op>) {
    let tables = desired.all_tables();
    let of_tables = observed.routes.iter().filter(|r| tables.contains(&r.table));
    let live = of_tables.filter(|r| r.is_ours() && !r.is_backstop());
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

fn routes(desired: &Desired, observed: &Observed, next_hops: &next_hops::NextHops) -> Routes {
    let mut ops = Routes::default();
    let mut held: BTreeMap<_, Vec<&Route>> = BTreeMap::new();
    let tables = desired.all_tables();
    for route in observed.routes.iter().filter(|r| tables.contains(&r.table)) {
        held.entry(route.key()).or_default().push(route);
    }
    let has_devices = |route: &Route| {
        let mut devices = route.hops.iter().filter_map(|hop| hop.device.as_deref());
        let possible = |id: &u32| next_hops.possible.contains(id);
        devices.all(|device| observed.link(device).is_some())
            && route.next_hop.as_ref().is_none_or(possible)
    };
    let went = |route: &Route| {
        route
            .next_hop
            .is_some_and(|id| next_hops.renewed.contains(&id))
    };
    for route in &desired.routes {
        let there = held.remove(&route.key()).unwrap_or_default();
        let (ours, others): (Vec<&Route>, Vec<&Route>) =
            there.into_iter().partition(|r| r.is_ours());
        let stands = ours.contains(&route) && !went(route);
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

/// Routes and next hops of others that stand where ours should: texts for people.
pub fn blocked(desired: &Desired, observed: &Observed) -> Vec<String> {
    let wanted: BTreeSet<_> = desired.routes.iter().map(Route::key).collect();
    let stands = |r: &&Route| !r.is_ours() && wanted.contains(&r.key());
    let text = |r: &Route| {
        format!(
            "route `{r}` of somebody else stands where ours should: remove it, or choose another --table"
        )
    };
    let hops = desired.next_hops.iter().map(|hop| hop.id);
    let numbers = hops.chain(desired.groups.iter().map(|group| group.id));
    let taken = numbers.filter(|id| observed.next_hops.get(id) == Some(&Held::Foreign));
    let taken = taken.map(|id| {
        format!(
            "next hop {id} is somebody else's, and its number is one of ours: remove it (`ip nexthop del id {id}`)"
        )
    });
    let routes = observed.routes.iter().filter(stands).map(text);
    routes.chain(taken).collect()
}

/// The blocks that this plan routes for the first time: flows to them from before may carry a wrong translation.
pub fn newly_routed(ops: &[Op], observed: &Observed) -> BTreeSet<Cidr> {
    let known: BTreeSet<_> = observed
        .routes
        .iter()
        .filter(|r| r.is_ours())
        .map(Route::key)
        .collect();
    let mut new = BTreeSet::new();
    for op in ops {
        if let Op::Put(route) = op
            && !known.contains(&route.key())
        {
            new.insert(route.dst);
        }
    }
    new
}

#[cfg(test)]
mod tests;
