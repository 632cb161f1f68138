//! Where each slot has a device of its own: which of them the flows of a cluster take, and by which replies go back. PURE.
//!
//! For each cluster and family there is a group of next hops, over the devices of the gateways that carry it. Replies look
//! in the table of the device by which their flow came, where each cluster has a group that holds that device alone, or all
//! that carry the cluster once its gateway there does not. So all that changes with the gateways in use is members of groups.

use std::collections::{BTreeMap, BTreeSet};

use subsea_api::{Cidr, ClusterId, Family};

use super::mesh::{Mesh, PathId};
use crate::host::Part;
use crate::host::desired::{Desired, numbers};
use crate::net::netlink::nexthop::{Group, NextHop, Resilient};
use crate::net::netlink::types::Route;
use crate::net::nft::ruleset::{Bits, Ingress, Road, Roads};

/// Replies of slots from here on go as others do: the kernel driver has no listeners for more.
pub const MAX_ROADS: u16 = 16;
/// Each device stands in groups with two next hops, the second of which has a number so much larger. The kernel does not note
/// which buckets of a group of one are in use (`fib_select_path`): with the second gateway back, all of them would look idle,
/// and flows would move although they are not.
const TWIN: u32 = 0x2_0000;
/// Where the numbers of groups begin, after those of next hops.
const GROUPS: u32 = 0x4_0000;
/// As many as there are numbers of clusters, for two families.
const STEP: u32 = 0x2_0000;
/// Buckets of the groups in the tables of roads, of which there are many.
const BUCKETS: u16 = 16;
/// So far before the rule of the main table are those of roads: the agent's rules come between, and what one of them would
/// have taken to the main table must not get there without its road.
const BEFORE: u32 = 4;

/// The routing table of the replies to what came in by the device of a slot.
pub fn road_table(first: u32, slot: u16) -> u32 {
    first.saturating_add(u32::from(slot))
}

/// The tables of all roads that there may be.
pub fn road_tables(first: u32) -> BTreeSet<u32> {
    (0..MAX_ROADS).map(|slot| road_table(first, slot)).collect()
}

/// What it depends on where flows go.
pub struct Ways<'a> {
    /// Who carries what.
    pub mesh: &'a Mesh,
    /// The paths that carry flows; of a cluster without any, all do.
    pub in_use: &'a BTreeSet<PathId>,
    /// The name of the device of a slot.
    pub device_of: &'a dyn Fn(u16) -> String,
    /// Devices that are missing.
    pub lost: &'a BTreeMap<String, String>,
}

impl Ways<'_> {
    /// The slots of a cluster's gateways whose devices are there.
    fn slots(&self, cluster: &ClusterId) -> BTreeSet<u16> {
        let paths = self.mesh.paths.iter();
        let paths = paths.filter(|path| path.id.cluster == *cluster);
        self.there(paths.map(|path| path.slot))
    }

    /// Those that carry its flows.
    fn carriers(&self, cluster: &ClusterId) -> BTreeSet<u16> {
        self.there(super::devices::carriers(self.mesh, cluster, self.in_use).into_iter())
    }

    fn there(&self, slots: impl Iterator<Item = u16>) -> BTreeSet<u16> {
        slots
            .filter(|slot| !self.lost.contains_key(&(self.device_of)(*slot)))
            .collect()
    }

    /// The slots by which replies to a cluster can go on different roads.
    fn roads(&self, cluster: &ClusterId) -> BTreeSet<u16> {
        let slots = self.slots(cluster);
        if slots.len() < 2 {
            return BTreeSet::new();
        }
        slots.into_iter().filter(|slot| *slot < MAX_ROADS).collect()
    }

    fn numbers(&self) -> BTreeMap<ClusterId, u32> {
        numbers(self.mesh.blocks.keys(), 0)
    }

    /// The groups, by number.
    pub fn groups(&self) -> BTreeMap<u32, Group> {
        let mut groups = BTreeMap::new();
        let numbers = self.numbers();
        for (cluster, blocks) in &self.mesh.blocks {
            let carriers = self.carriers(cluster);
            let Some(number) = numbers.get(cluster).filter(|_| !carriers.is_empty()) else {
                continue;
            };
            let families: BTreeSet<Family> = blocks.iter().map(|block| block.family()).collect();
            for family in families {
                let of = |slots: &BTreeSet<u16>| -> BTreeSet<u32> {
                    slots.iter().flat_map(|slot| hops(*slot, family)).collect()
                };
                let main = group(*number, None, family);
                groups.insert(main, Group::new(main, of(&carriers)));
                for slot in self.roads(cluster) {
                    let id = group(*number, Some(slot), family);
                    let members = if carriers.contains(&slot) {
                        hops(slot, family).into()
                    } else {
                        of(&carriers)
                    };
                    let resilient = Resilient {
                        buckets: BUCKETS,
                        ..Resilient::default()
                    };
                    groups.insert(
                        id,
                        Group {
                            resilient,
                            ..Group::new(id, members)
                        },
                    );
                }
            }
        }
        groups
    }
}

/// The numbers of the next hops of a slot's device.
fn hops(slot: u16, family: Family) -> [u32; 2] {
    let first = Part::Gateway.next_hop_ids().start + 2 * u32::from(slot) + v6(family);
    [first, first + TWIN]
}

/// The number of a cluster's group, in the main table or in that of a road.
fn group(cluster: u32, road: Option<u16>, family: Family) -> u32 {
    let table = road.map_or(0, |slot| u32::from(slot) + 1);
    Part::Gateway.next_hop_ids().start + GROUPS + table * STEP + 2 * cluster + v6(family)
}

fn v6(family: Family) -> u32 {
    u32::from(family == Family::V6)
}

/// The kernel state of roads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoadNumbers {
    /// The table of slot 0; those of other slots come after it.
    pub first_table: u32,
    /// The bits of marks.
    pub bits: Bits,
    /// The preference of the rule of the main table.
    pub rule_pref: u32,
}

/// Has the kernel spread the flows of each cluster over the devices of all gateways that carry it, and replies keep the
/// device of their flow.
pub fn spread(desired: &mut Desired, ways: &Ways<'_>, roads: RoadNumbers) {
    let numbers = ways.numbers();
    let clusters: BTreeMap<Cidr, &ClusterId> = ways
        .mesh
        .blocks
        .iter()
        .flat_map(|(cluster, blocks)| blocks.iter().map(move |block| (*block, cluster)))
        .collect();
    let groups = ways.groups();
    let mut slots = BTreeSet::new();
    for route in std::mem::take(&mut desired.routes) {
        let cluster = clusters.get(&route.dst).filter(|_| !route.is_backstop());
        let Some((cluster, number)) = cluster.and_then(|c| Some((*c, *numbers.get(*c)?))) else {
            desired.routes.insert(route);
            continue;
        };
        let family = route.dst.family();
        let mut through = |table, road| {
            let id = group(number, road, family);
            if groups.contains_key(&id) {
                desired.routes.insert(Route {
                    mtu: route.mtu,
                    ..Route::through(table, route.dst, id, route.source)
                });
            }
        };
        through(route.table, None);
        for slot in ways.roads(cluster) {
            through(road_table(roads.first_table, slot), Some(slot));
            slots.insert(slot);
        }
        // Also of those that carry nothing now: they must be there in the moment in which they do.
        for slot in ways.slots(cluster) {
            let device = (ways.device_of)(slot);
            let hops = hops(slot, family).into_iter();
            let hops = hops.map(|id| NextHop::device(id, family, &device));
            desired.next_hops.extend(hops);
        }
    }
    desired.groups.extend(groups.into_values());
    let families: BTreeSet<Family> = desired.rules.iter().map(|rule| rule.family).collect();
    let pref = roads.rule_pref.saturating_sub(BEFORE).max(1);
    let mut all = Vec::new();
    for slot in slots {
        let table = road_table(roads.first_table, slot);
        let road = Road {
            number: u8::try_from(slot).map_or(u8::MAX, |slot| slot.saturating_add(1)),
            ingress: Ingress::Device((ways.device_of)(slot)),
            table,
        };
        desired.tables.insert(table);
        let rules = families.iter();
        let rules = rules.filter_map(|family| road.rule(roads.bits, *family, pref));
        desired.rules.extend(rules);
        all.push(road);
    }
    desired.ruleset.roads = Roads {
        bits: roads.bits,
        all,
        forget: true,
    };
}

#[cfg(test)]
#[path = "spread_tests.rs"]
mod tests;
