use proptest::prelude::*;

use super::*;

fn some_block() -> impl Strategy<Value = Cidr> {
    let v4 = (any::<[u8; 2]>(), 8_u8..=32).prop_map(|([a, b], len)| {
        let first = [10, 192][usize::from(a % 2)];
        Cidr::containing(Ipv4Addr::new(first, b % 100, 2, a).into(), len)
    });
    let v6 = (0_u16..4, 16_u8..=128).prop_map(|(last, len)| {
        let addr = Ipv6Addr::new(0x2001, 0xdb8, 0, last, 0, 0, 0, last);
        Cidr::containing(addr.into(), len)
    });
    prop_oneof![v4, v6]
}

fn some_world() -> impl Strategy<Value = World> {
    let cluster_blocks = proptest::collection::vec(some_block(), 0..6);
    let clusters = proptest::collection::vec(cluster_blocks, 0..5);
    let gateways = proptest::collection::vec(any::<[bool; 4]>(), 0..5);
    let nodes = proptest::collection::vec(any::<bool>(), 0..5);
    (clusters, gateways, nodes, any::<[bool; 3]>()).prop_map(
        |(clusters, gateways, nodes, [own, away, address])| {
            let mut world = if away { direct(plain()) } else { plain() };
            let numbered = clusters.into_iter().enumerate();
            world.blocks = numbered
                .map(|(n, blocks)| (format!("c-{n}").parse().unwrap(), blocks))
                .collect();
            world.gateways.clear();
            world.sets.clear();
            if !address {
                world.address = None;
            }
            for (slot, [alive, v6, carries, known]) in (0_u16..).zip(gateways) {
                let node: NodeName = format!("gw-{slot}").parse().unwrap();
                let mut gateway = gateway(node.as_str(), slot, alive);
                gateway.place = place(node.as_str(), 10, v6);
                gateway.sender = gateway.sender.filter(|_| known);
                world.gateways.insert(node.clone(), gateway);
                for cluster in world.blocks.keys().skip(slot.into()).filter(|_| carries) {
                    let set = world.sets.entry(cluster.clone()).or_default();
                    set.insert(node.clone());
                }
            }
            if own {
                world.own = Some((OWN_GATEWAY.parse().unwrap(), 9));
                for (n, v6) in (0_u8..).zip(nodes) {
                    let name = format!("n-{n}");
                    let node = Node {
                        place: place(&name, 100 + n, v6),
                        prefixes: blocks(&[&format!("10.32.{n}.0/24"), "fd00:32::/64"]),
                    };
                    world.nodes.insert(name.parse().unwrap(), node);
                }
            }
            world
        },
    )
}

proptest! {
    #[test]
    fn no_route_to_other_clusters_covers_our_own_blocks_or_nodes(world in some_world()) {
        let wanted = world.desired();
        let nodes = node_addresses(&world.input());
        for route in wanted.routes.iter().filter(|route| route.table == 584) {
            for own in &world.local {
                prop_assert!(!overlaps(own.cidr, route.dst), "{route}");
            }
            prop_assert!(!nodes.iter().any(|node| route.dst.contains(*node)), "{route}");
        }
        // What comes out of a tunnel finds our own pods and nodes there, and nothing else.
        for route in wanted.routes.iter().filter(|route| route.table == 585) {
            let own = world.local.iter().any(|own| own.cidr.covers(route.dst));
            let node = nodes.iter().any(|node| Cidr::host(*node) == route.dst);
            prop_assert!(own || node, "{route}");
        }
        let refused: BTreeSet<String> = refused(&world.input()).into_iter().collect();
        for (cluster, blocks) in &world.blocks {
            for block in blocks {
                let named = refused.iter().any(|r| r.starts_with(&format!("{block} of cluster {cluster} ")));
                prop_assert!(named || wanted.ruleset.remote.contains(block), "{block} is neither routed nor named");
            }
        }
    }

    #[test]
    fn a_turn_brings_standing_groups_and_roads_to_where_the_next_state_has_them(
        world in some_world(),
        flips in proptest::collection::vec(any::<[bool; 2]>(), 5),
    ) {
        let before = world.desired();
        let mut after = world.numbered();
        for ((node, gateway), [flip, leaves]) in after.gateways.iter_mut().zip(flips) {
            gateway.alive ^= flip;
            for set in after.sets.values_mut().filter(|_| leaves) {
                set.remove(node);
            }
        }
        let wanted = after.desired();
        let turn = turn(&after.input(), &before);
        for group in &wanted.groups {
            let Some(stood) = before.groups.iter().find(|known| known.id == group.id) else { continue };
            prop_assert_eq!(turn.groups.get(&group.id), (stood != group).then_some(group));
        }
        prop_assert!(turn.groups.values().all(|group| wanted.groups.contains(group)));
        for (rule, there) in &turn.rules {
            prop_assert_eq!(wanted.rules.contains(rule), *there, "{}", rule);
            prop_assert_eq!(before.rules.contains(rule), !*there, "{}", rule);
        }
        let gone: Vec<&Rule> = before.rules.difference(&wanted.rules).collect();
        prop_assert!(gone.iter().all(|rule| turn.rules.contains_key(rule)), "{gone:?}");
    }

    #[test]
    fn what_routes_lead_to_exists_and_every_road_has_its_way(world in some_world()) {
        let wanted = world.desired();
        let hops: BTreeMap<u32, Family> = wanted.next_hops.iter().map(|hop| (hop.id, hop.family)).collect();
        prop_assert_eq!(hops.len(), wanted.next_hops.len(), "a number for two next hops");
        let groups: BTreeMap<u32, &Group> = wanted.groups.iter().map(|group| (group.id, group)).collect();
        prop_assert_eq!(groups.len(), wanted.groups.len());
        let all = Part::Agent.next_hop_ids();
        prop_assert!(hops.keys().chain(groups.keys()).all(|id| all.contains(id)));
        prop_assert!(!hops.keys().any(|id| groups.contains_key(id)));
        for group in &wanted.groups {
            prop_assert!(!group.members.is_empty());
            prop_assert!(group.members.iter().all(|id| hops.contains_key(id)), "{group}");
        }
        for route in &wanted.routes {
            let Some(id) = route.next_hop else { continue };
            let members = groups.get(&id).map_or_else(|| BTreeSet::from([id]), |group| group.members.clone());
            for member in members {
                let family = hops.get(&member).copied();
                prop_assert!(family.is_some(), "{route} leads to nothing");
                // The kernel leads no IPv6 by an IPv4 router.
                prop_assert!(route.dst.family() == Family::V4 || family == Some(Family::V6), "{route}");
            }
        }
        let roads: BTreeSet<u32> = wanted.rules.iter().filter(|rule| rule.mark.is_some() && !rule.not).map(|rule| rule.table).collect();
        for route in wanted.routes.iter().filter(|route| roads.contains(&route.table)) {
            prop_assert!(wanted.ruleset.remote.contains(&route.dst), "{route} leads astray what only carries a mark");
        }
        let plain = world.own.is_none();
        let table = if plain { 584 } else { 648 };
        prop_assert!(wanted.routes.iter().all(|r| !r.is_backstop() || r.table == table));
        let guarded = wanted.ruleset.remote.iter().all(|block| wanted.routes.contains(&Route::backstop(table, *block)));
        prop_assert!(guarded, "a block without a backstop");
    }
}

fn overlaps(a: Cidr, b: Cidr) -> bool {
    a.covers(b) || b.covers(a)
}
