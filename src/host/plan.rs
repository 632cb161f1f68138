//! The changes that lead from what the kernel holds to what it should hold. PURE.
//!
//! The order is what keeps packets from leaving in clear: backstops come first, then next hops, then the ways into the
//! tunnel, then the rules that lead to them; what is no longer wanted goes last, the other way round. At every step
//! each remote block that stays remote has its backstop. What is not ours (protocol 83 in our tables, and under our
//! numbers of next hops) is neither changed nor replaced.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::Cidr;

use super::desired::Desired;
use crate::net::netlink::change::Change;
use crate::net::netlink::nexthop::Held;
use crate::net::netlink::types::{Address, Observed, PROTOCOL, Route, Rule};

mod next_hops;
pub(super) mod overlay;

/// The changes that make `observed` what is desired, in order. None when it is so already.
///
/// While a device is missing, what needs it is left out. While the fleet is not known, nothing is taken away.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let mut ops = Vec::new();
    let next_hops = next_hops::next_hops(desired, observed);
    let routes = routes(desired, observed, &next_hops);
    ops.extend(routes.backstops);
    for (device, mtu) in desired.devices_and_mtus() {
        let Some(device) = observed.link(device) else {
            continue;
        };
        if device.mtu != mtu {
            ops.push(Change::SetMtu(device.name.clone(), mtu));
        }
        if !device.up {
            ops.push(Change::LinkUp(device.name.clone()));
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
                .map(Change::AddAddress),
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
            .map(Change::AddRule),
    );
    ops.extend(
        ours.into_iter()
            .filter(|r| !desired.rules.contains(r))
            .cloned()
            .map(Change::DeleteRule),
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
            .map(Change::DeleteAddress),
    );
    ops.extend(overlay::not_behind(desired, observed));
    if desired.keep {
        ops.retain(|op| !takes_away(op));
    }
    ops
}

/// Those of the changes that can come first whatever else happens.
pub(super) fn backstops(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let next_hops = next_hops::next_hops(desired, observed);
    routes(desired, observed, &next_hops).backstops
}

fn takes_away(op: &Change) -> bool {
    matches!(
        op,
        Change::DeleteRoute(_)
            | Change::DeleteRule(_)
            | Change::DeleteAddress(_)
            | Change::DeleteLink(_)
            | Change::DeleteFdb(_)
            | Change::DeleteNeighbour(_)
            | Change::DeleteNextHop(_)
    )
}

/// Whether a change lets packets through a tunnel that did not pass before.
pub fn opens_a_tunnel(op: &Change) -> bool {
    matches!(op, Change::LinkUp(_)) || matches!(op, Change::PutRoute(route) if !route.is_backstop())
}

/// Adds what closes the tunnels to `ops`: every way into one goes, and the backstops stay. The VXLAN device goes, too: without
/// the checks it takes frames from anybody. It is made again, and stays down.
pub fn close(desired: &Desired, observed: &Observed, ops: &mut Vec<Change>) {
    let tables = desired.all_tables();
    let of_tables = observed.routes.iter().filter(|r| tables.contains(&r.table));
    let live = of_tables.filter(|r| r.is_ours() && !r.is_backstop());
    for op in live.cloned().map(Change::DeleteRoute) {
        if !ops.contains(&op) {
            ops.push(op);
        }
    }
    let vxlan = desired.vxlan.as_ref().map(|wanted| &wanted.name);
    let link = vxlan.and_then(|name| observed.link(name));
    if let Some(link) = link.filter(|link| link.up && overlay::is_ours(link)) {
        ops.push(Change::DeleteLink(link.name.clone()));
    }
}

#[derive(Default)]
struct Routes {
    backstops: Vec<Change>,
    live: Vec<Change>,
    duplicates: Vec<Change>,
    unwanted: Vec<Change>,
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
            .extend(extra.map(|r| Change::DeleteRoute((*r).clone())));
        if !stands && possible {
            let list = if route.is_backstop() {
                &mut ops.backstops
            } else {
                &mut ops.live
            };
            list.push(Change::PutRoute(route.clone()));
        }
    }
    let (backstops, live): (Vec<&Route>, Vec<&Route>) = held
        .into_values()
        .flatten()
        .filter(|r| r.is_ours())
        .partition(|r| r.is_backstop());
    ops.unwanted.extend(
        live.into_iter()
            .chain(backstops)
            .cloned()
            .map(Change::DeleteRoute),
    );
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
pub fn newly_routed(ops: &[Change], observed: &Observed) -> BTreeSet<Cidr> {
    let known: BTreeSet<_> = observed
        .routes
        .iter()
        .filter(|r| r.is_ours())
        .map(Route::key)
        .collect();
    let mut new = BTreeSet::new();
    for op in ops {
        if let Change::PutRoute(route) = op
            && !known.contains(&route.key())
        {
            new.insert(route.dst);
        }
    }
    new
}

#[cfg(test)]
mod tests;
