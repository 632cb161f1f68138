use super::*;

fn input() -> Input {
    let allocation = |kind, cidr: &str| Allocation {
        kind,
        cidr: cidr.parse().unwrap(),
        exported: true,
    };
    Input {
        local: vec![
            allocation(Kind::Service, "10.112.0.0/20"),
            allocation(Kind::Pod, "10.32.0.0/16"),
            allocation(Kind::Pod, "fd00:32::/48"),
        ],
        inner: vec!["198.19.0.1".parse().unwrap(), "fd00:19::1".parse().unwrap()],
        remote: ["10.64.0.0/16", "198.19.0.2/32", "fd00:64::/48"]
            .map(|c| (c.parse().unwrap(), Some("subsea0".into())))
            .into(),
        device: "subsea0".into(),
        devices: ["subsea0".into()].into(),
        wireguard: false,
        checks: false,
        mtu: 1420,
        mtus: BTreeMap::new(),
        table: 583,
        rule_pref: 583,
        mark: Mark::default(),
        host_addresses: ["192.0.2.1", "10.112.0.1", "10.32.0.9", "10.32.0.1"]
            .map(|a| a.parse().unwrap())
            .to_vec(),
        keep: false,
    }
}

fn routes(input: &Input) -> Vec<String> {
    desired(input)
        .routes
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_backstop_beneath_every_live_route() {
    assert_eq!(
        routes(&input()),
        [
            "10.64.0.0/16 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100",
            "unreachable 10.64.0.0/16 table 583 proto 83 metric 4294967295",
            "198.19.0.2/32 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100",
            "unreachable 198.19.0.2/32 table 583 proto 83 metric 4294967295",
            "fd00:64::/48 dev subsea0 table 583 proto 83 src fd00:19::1 metric 100",
            "unreachable fd00:64::/48 table 583 proto 83 metric 4294967295",
        ]
    );
    let rules: Vec<String> = desired(&input())
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        rules,
        [
            "-4 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83",
            "-6 pref 583 not from all fwmark 0x40/0x40 lookup 583 proto 83",
        ]
    );
}

#[test]
fn a_path_that_takes_less_shows_in_the_routes_of_its_blocks_alone() {
    let mut input = input();
    input.mtus = [("10.64.0.0/16", 1240), ("fd00:64::/48", 1280)]
        .map(|(block, mtu)| (block.parse().unwrap(), mtu))
        .into();
    let with_mtu: Vec<String> = routes(&input)
        .into_iter()
        .filter(|r| r.contains(" mtu "))
        .collect();
    assert_eq!(
        with_mtu,
        [
            "10.64.0.0/16 dev subsea0 table 583 proto 83 scope link src 10.32.0.1 metric 100 mtu 1240",
            "fd00:64::/48 dev subsea0 table 583 proto 83 src fd00:19::1 metric 100 mtu 1280",
        ]
    );
}

#[test]
fn without_a_tunnel_only_the_backstops_and_the_rules_stand() {
    let mut lost = input();
    for device in lost.remote.values_mut() {
        *device = None;
    }
    let dead = desired(&lost);
    assert!(dead.routes.iter().all(Route::is_backstop));
    assert_eq!(dead.routes.len(), 3);
    assert_eq!(dead.rules, desired(&input()).rules);
}

#[test]
fn each_block_goes_to_the_device_of_its_gateway_and_every_device_is_cared_for() {
    let mut input = input();
    input.devices.insert("subsea1".into());
    input
        .remote
        .insert("198.19.0.3/32".parse().unwrap(), Some("subsea1".into()));
    let wanted = desired(&input);
    let second: Vec<String> = wanted
        .routes
        .iter()
        .filter(|r| {
            r.hops
                .iter()
                .any(|h| h.device.as_deref() == Some("subsea1"))
        })
        .map(|r| r.dst.to_string())
        .collect();
    assert_eq!(second, ["198.19.0.3/32"]);
    assert!(wanted.addresses.iter().all(|a| a.device == "subsea0"));
    assert_eq!(wanted.ruleset.devices, input.devices);
    assert_eq!(wanted.ruleset.checked, None);
}

#[test]
fn a_device_of_somebody_else_is_left_alone_though_it_has_a_name_of_ours() {
    let mut input = input();
    input.wireguard = true;
    input.devices.insert("subsea1".into());
    input
        .remote
        .insert("10.65.0.0/16".parse().unwrap(), Some("subsea1".into()));
    let link = |name: &str, kind: &str, group| Link {
        index: 1,
        name: name.into(),
        mtu: 1500,
        up: false,
        loopback: false,
        kind: Some(kind.into()),
        group,
        vxlan: None,
    };
    let ours = link("subsea0", "wireguard", GROUP);
    let wanted = desired(&input);
    let links = [ours.clone(), link("subsea1", "wireguard", GROUP)];
    assert_eq!(wanted.foreign(&links), BTreeSet::new());
    for theirs in [
        link("subsea1", "wireguard", 0),
        link("subsea1", "tun", GROUP),
    ] {
        let foreign = wanted.foreign(&[ours.clone(), theirs]);
        assert_eq!(foreign, BTreeSet::from(["subsea1".into()]));
        let left = wanted.without(&foreign);
        let text = format!("{left:?}");
        assert!(!text.contains("subsea1"), "{text}");
        assert!(
            left.routes
                .contains(&Route::backstop(583, "10.65.0.0/16".parse().unwrap()))
        );
        assert_eq!(left.ruleset.remote, wanted.ruleset.remote);
    }
    input.wireguard = false;
    let wanted = desired(&input);
    let foreign = wanted.foreign(&[link("subsea0", "tun", 0), ours]);
    assert_eq!(foreign, BTreeSet::from(["subsea0".into()]));
}

#[test]
fn only_exported_blocks_and_inner_addresses_pass_the_checks() {
    let mut input = input();
    input.checks = true;
    input.local.push(Allocation {
        kind: Kind::Node,
        cidr: "192.0.2.0/24".parse().unwrap(),
        exported: false,
    });
    let checked = desired(&input).ruleset.checked.unwrap();
    assert_eq!(checked.len(), 5);
    assert!(!checked.contains(&"192.0.2.0/24".parse().unwrap()));
    assert!(checked.contains(&"198.19.0.1/32".parse().unwrap()));
}

#[test]
fn the_source_is_a_pod_address_then_an_exported_node_address_then_the_inner_one() {
    let source = |input: &Input| {
        let Input {
            local,
            inner,
            host_addresses,
            ..
        } = input;
        let source = preferred_source(local, inner, host_addresses, Family::V4);
        source.unwrap().to_string()
    };
    let mut input = input();
    assert_eq!(source(&input), "10.32.0.1");
    input
        .host_addresses
        .retain(|a| !a.to_string().starts_with("10.32"));
    assert_eq!(source(&input), "198.19.0.1");
    let node = Allocation {
        kind: Kind::Node,
        cidr: "192.0.2.0/24".parse().unwrap(),
        exported: false,
    };
    input.local.push(node);
    assert_eq!(source(&input), "198.19.0.1");
    input.local.push(Allocation {
        exported: true,
        ..node
    });
    assert_eq!(source(&input), "192.0.2.1");
}

#[test]
fn ipv6_is_left_alone_without_ipv6_blocks() {
    let mut input = input();
    let link = |name: &str, up| Link {
        index: 1,
        name: name.into(),
        mtu: 1500,
        up,
        loopback: name == "lo",
        kind: None,
        group: 0,
        vxlan: None,
    };
    let links = [
        link("lo", true),
        link("eth0", true),
        link("eth1", false),
        link("subsea0", true),
    ];
    let keys = |input: &Input| {
        parameters(&desired(input), &links)
            .into_iter()
            .map(|p| p.key)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        keys(&input),
        [
            "net/ipv4/conf/subsea0/rp_filter",
            "net/ipv4/ip_forward",
            "net/ipv6/conf/eth0/accept_ra",
            "net/ipv6/conf/all/forwarding",
        ]
    );
    input.remote.retain(|r, _| r.family() == Family::V4);
    assert_eq!(
        keys(&input),
        ["net/ipv4/conf/subsea0/rp_filter", "net/ipv4/ip_forward"]
    );
    assert_eq!(desired(&input).rules.len(), 1);
}
