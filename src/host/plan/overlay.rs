//! The VXLAN device between nodes, and who is behind it. PURE.

use crate::host::desired::Desired;
use crate::net::netlink::change::Change;
use crate::net::netlink::overlay::{Fdb, Neighbour};
use crate::net::netlink::types::{Link, Observed};
use crate::net::wireguard::GROUP;

/// Whether we made a device as a VXLAN device.
pub(in crate::host) fn is_ours(link: &Link) -> bool {
    link.group == GROUP && link.kind.as_deref() == Some("vxlan")
}

/// What makes the device as it is wanted. All else needs it, and what it held goes with one that is made anew: so the
/// kernel must be read again after it.
pub(in crate::host) fn device(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let Some(wanted) = &desired.vxlan else {
        return Vec::new();
    };
    let mut ops = Vec::new();
    if let Some(link) = observed.link(&wanted.name) {
        let same = link.vxlan.as_ref().is_some_and(|v| v.is_same_as(wanted));
        if same || !is_ours(link) {
            return ops;
        }
        ops.push(Change::DeleteLink(wanted.name.clone()));
    }
    ops.push(Change::AddVxlan(wanted.clone()));
    ops.push(Change::NoLinkLocal(wanted.name.clone()));
    ops
}

/// What removes the device of a name, if it is ours and not wanted any more.
pub(in crate::host) fn unwanted(
    name: Option<&str>,
    desired: &Desired,
    observed: &Observed,
) -> Option<Change> {
    let wanted = desired.vxlan.as_ref().map(|v| v.name.as_str());
    let stale = name.filter(|name| wanted != Some(name) && !desired.keep)?;
    let ours = observed.link(stale).filter(|link| is_ours(link))?;
    Some(Change::DeleteLink(ours.name.clone()))
}

/// What is said anew about who is behind the device.
pub(super) fn behind(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let there = |device: &str| observed.link(device).is_some();
    let fdb = desired.fdb.difference(&observed.fdb);
    let fdb = fdb
        .filter(|f| there(&f.device))
        .cloned()
        .map(Change::PutFdb);
    let neighbours = desired.neighbours.difference(&observed.neighbours);
    let neighbours = neighbours.filter(|n| there(&n.device));
    fdb.chain(neighbours.cloned().map(Change::PutNeighbour))
        .collect()
}

/// What is not said any more: of what was said about the same one otherwise, the new word stands already.
pub(super) fn not_behind(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let told = |f: &_| desired.fdb.iter().any(|d| same_fdb(d, f));
    let fdb = observed.fdb.iter().filter(|f| !told(f));
    let known = |n: &_| desired.neighbours.iter().any(|d| same_neighbour(d, n));
    let neighbours = observed.neighbours.iter().filter(|n| !known(n));
    let neighbours = neighbours.cloned().map(Change::DeleteNeighbour);
    neighbours
        .chain(fdb.cloned().map(Change::DeleteFdb))
        .collect()
}

fn same_fdb(a: &Fdb, b: &Fdb) -> bool {
    a.device == b.device && a.mac == b.mac
}

fn same_neighbour(a: &Neighbour, b: &Neighbour) -> bool {
    a.device == b.device && a.addr == b.addr
}
