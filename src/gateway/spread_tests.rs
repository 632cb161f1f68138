use super::super::devices::tests::{device_of, mesh, used};
use super::*;
use crate::net::netlink::types::{Mark, Rule};

const ROADS: RoadNumbers = RoadNumbers {
    first_table: 660,
    bits: Bits::GATEWAY,
    rule_pref: 583,
};

fn spread_over(mesh: &Mesh, in_use: &[&str], lost: &[&str]) -> Desired {
    let lost = lost
        .iter()
        .map(|d| ((*d).to_owned(), String::new()))
        .collect();
    let mut desired = Desired::empty(583);
    let rule = Rule::ours(Family::V4, 583, Mark::default(), 583);
    desired.rules.insert(rule);
    let in_use = &used(in_use);
    for (block, device) in super::super::devices::blocks(mesh, in_use, device_of, &lost) {
        desired.routes.insert(Route::backstop(583, block));
        if let Some(device) = device {
            let route = Route::live(583, block, &device, None);
            desired.routes.insert(route);
        }
    }
    let ways = Ways {
        mesh,
        in_use,
        device_of: &device_of,
        lost: &lost,
    };
    spread(&mut desired, &ways, ROADS);
    let backstops = desired.routes.iter().filter(|r| r.is_backstop()).count();
    assert_eq!(backstops, 4, "they stay");
    desired
}

/// Where routes through groups lead: table and devices.
fn roads(desired: &Desired) -> Vec<String> {
    let through = |route: &Route| {
        let id = route.next_hop?;
        let group = desired.groups.iter().find(|group| group.id == id)?;
        let mut twins: BTreeMap<&str, usize> = BTreeMap::new();
        for hop in &desired.next_hops {
            if group.members.contains(&hop.id) {
                *twins.entry(&hop.device).or_default() += 1;
            }
        }
        assert!(
            twins.values().all(|n| *n == 2),
            "no group of one: {twins:?}"
        );
        assert_eq!(
            twins.len() * 2,
            group.members.len(),
            "a member is no next hop"
        );
        let devices: Vec<&str> = twins.into_keys().collect();
        Some(format!("{} {}", route.table, devices.join(" ")))
    };
    let mut all: Vec<String> = desired.routes.iter().filter_map(through).collect();
    all.sort();
    all
}

#[test]
fn flows_take_the_devices_of_those_that_carry_them_and_replies_their_own() {
    let mesh = mesh();
    let of = |in_use: &[&str], lost: &[&str]| roads(&spread_over(&mesh, in_use, lost));
    let both = ["583 subsea0 subsea1", "660 subsea0", "661 subsea1"];
    assert_eq!(of(&["gw-1", "gw-2"], &[]), both);
    assert_eq!(of(&[], &[]), both, "nobody has said anything yet");
    // Replies of a dead road go where all go, and only the members say so.
    assert_eq!(
        of(&["gw-2"], &[]),
        ["583 subsea1", "660 subsea1", "661 subsea1"]
    );
    assert_eq!(of(&["gw-1", "gw-2"], &["subsea1"]), ["583 subsea0"]);
    assert_eq!(of(&[], &["subsea0", "subsea1"]), [""; 0]);
}

#[test]
fn a_change_of_the_gateways_in_use_is_one_of_members_alone() {
    let mesh = mesh();
    let shape = |in_use: &[&str]| {
        let mut desired = spread_over(&mesh, in_use, &[]);
        let groups = std::mem::take(&mut desired.groups);
        let ids: Vec<u32> = groups.into_iter().map(|group| group.id).collect();
        (desired, ids)
    };
    let both = shape(&["gw-1", "gw-2"]);
    // The inner addresses stay with their device, and the first block moves by its group.
    assert_eq!(shape(&["gw-2"]), both);
    assert_eq!(shape(&["gw-1"]), both);
}

#[test]
fn roads_have_marks_and_rules_where_there_is_a_choice() {
    let mut mesh = mesh();
    let wanted = spread_over(&mesh, &[], &[]);
    let rules: Vec<String> = wanted.rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "-4 pref 579 from all fwmark 0x100/0x3f00 lookup 660 proto 83",
            "-4 pref 579 from all fwmark 0x200/0x3f00 lookup 661 proto 83",
            "-4 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83",
        ]
    );
    assert!(wanted.tables.is_subset(&road_tables(660)));
    assert_eq!(wanted.ruleset.roads.all.len(), 2);
    let ids = Part::Gateway.next_hop_ids();
    let last = group(0xffff, Some(MAX_ROADS - 1), Family::V6);
    assert!(ids.contains(&last), "{last:#x}");

    mesh.paths.pop();
    let alone = spread_over(&mesh, &[], &[]);
    assert_eq!(alone.rules.len(), 1);
    assert!(alone.ruleset.roads.all.is_empty());
    assert_eq!(roads(&alone), ["583 subsea0"]);
}
