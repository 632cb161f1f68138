use super::*;
use crate::kube::discover::facts::fixture::facts;

const SET: &str = r#"{"metadata": {"name": "calico-node", "namespace": "calico-system"}}"#;
const POOLS: &str = include_str!("fixtures/calico-pools.yaml");

fn calico(more: &[(Query, &str)]) -> Calico {
    let mut answers = vec![(Query::DaemonSets, SET), (Query::CalicoPoolsStored, POOLS)];
    answers.extend_from_slice(more);
    Calico::detect(&facts(&answers)).expect("Calico")
}

fn ids(calico: &Calico, remote: &[&str]) -> Vec<(&'static str, Severity)> {
    let remote: Vec<Cidr> = remote.iter().map(|c| c.parse().unwrap()).collect();
    let around = Surroundings {
        remote: &remote,
        ..Surroundings::default()
    };
    calico
        .findings(around)
        .iter()
        .map(|f| (f.id, f.severity))
        .collect()
}

#[test]
fn enabled_pools_for_pods_count_and_disabled_ones_are_said() {
    let found = calico(&[]);
    assert_eq!(found.to_string(), "Calico (iptables)");
    let claims = found.claims();
    let blocks: Vec<String> = claims
        .pod
        .iter()
        .map(|f| format!("{} {} {:?}", f.cidr, f.from, f.from.rank))
        .collect();
    assert_eq!(
        blocks,
        [
            "192.168.0.0/16 IPPool default-ipv4-ippool, spec.cidr Allocator",
            "fd00:192:168::/48 IPPool default-ipv6-ippool, spec.cidr Allocator",
        ]
    );
    let notes: Vec<&str> = claims.notes.iter().map(|n| n.text.as_str()).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].starts_with("IPPool other-cluster (10.32.0.0/16) is disabled"),
        "{notes:?}"
    );
}

#[test]
fn without_ebpf_nothing_stands_in_the_way() {
    assert_eq!(
        ids(&calico(&[]), &["10.40.0.0/16"]),
        [("calico-netfilter", Severity::Fine)]
    );
    let nft = calico(&[(
        Query::FelixStored,
        r#"{"metadata": {"name": "default"}, "spec": {"nftablesMode": "Enabled"}}"#,
    )]);
    assert_eq!(nft.data_plane, DataPlane::Nftables);
    assert_eq!(ids(&nft, &[])[0].1, Severity::Fine);
}

#[test]
fn with_ebpf_each_block_of_others_needs_a_pool() {
    let felix = r#"{"metadata": {"name": "default"}, "spec": {"bpfEnabled": true, "bpfLogLevel": "", "floatingIPs": "Disabled"}}"#;
    let found = calico(&[(Query::Felix, felix)]);
    assert_eq!(found.data_plane, DataPlane::Ebpf);
    assert_eq!(
        found.replaces_proxy().as_deref(),
        Some("FelixConfiguration.projectcalico.org default, bpfEnabled")
    );
    let masquerade = |remote: &[&str]| ids(&found, remote)[0];
    assert_eq!(masquerade(&[]), ("calico-ebpf-masquerade", Severity::Warns));
    assert_eq!(
        masquerade(&["10.32.0.0/16"]),
        ("calico-ebpf-masquerade", Severity::Fine)
    );
    assert_eq!(
        masquerade(&["10.32.0.0/16", "10.40.0.0/16"]),
        ("calico-ebpf-masquerade", Severity::Blocks)
    );
    assert!(ids(&found, &[]).contains(&("calico-ebpf-devices", Severity::Warns)));
    let matching = felix.replace(
        "\"bpfLogLevel\": \"\"",
        "\"bpfL3IfacePattern\": \"^subsea.*$\"",
    );
    let found = calico(&[(Query::Felix, &matching)]);
    assert!(
        !ids(&found, &[])
            .iter()
            .any(|(id, _)| *id == "calico-ebpf-devices")
    );
    // The operator's word is enough, before Felix has its settings.
    let installation = r#"{"metadata": {"name": "default"}, "spec": {"calicoNetwork": {"linuxDataplane": "BPF"}}}"#;
    let found = calico(&[(Query::CalicoInstallation, installation)]);
    assert_eq!(found.data_plane, DataPlane::Ebpf);
}

#[test]
fn masks_and_ports_that_meet_ours_block() {
    let felix = r#"{"metadata": {"name": "default"}, "spec": {"iptablesMarkMask": 65280, "vxlanPort": 4851}}"#;
    let found = ids(&calico(&[(Query::FelixStored, felix)]), &[]);
    assert!(
        found.contains(&("calico-mark", Severity::Blocks)),
        "{found:?}"
    );
    assert!(
        found.contains(&("calico-vxlan-port", Severity::Blocks)),
        "{found:?}"
    );
}

#[test]
fn who_gives_addresses_is_told_apart() {
    let ipam = |answer: (Query, &str)| calico(&[answer]).ipam;
    let installation =
        |cni: &str| format!(r#"{{"metadata": {{"name": "default"}}, "spec": {{"cni": {cni}}}}}"#);
    for (cni, wanted) in [
        (
            r#"{"type": "Calico", "ipam": {"type": "Calico"}}"#,
            Ipam::Calico,
        ),
        (
            r#"{"type": "Calico", "ipam": {"type": "HostLocal"}}"#,
            Ipam::HostLocal,
        ),
        (
            r#"{"type": "AmazonVPC", "ipam": {"type": "AmazonVPC"}}"#,
            Ipam::Elsewhere,
        ),
    ] {
        assert_eq!(
            ipam((Query::CalicoInstallation, &installation(cni))),
            wanted,
            "{cni}"
        );
    }
    let config = |ipam: &str| {
        let text = format!(
            "{{\"plugins\": [{{\"type\": \"calico\", \"mtu\": __CNI_MTU__, \"ipam\": {{\"type\": \"{ipam}\"}}}}]}}"
        );
        serde_json::json!({"metadata": {"name": "calico-config"}, "data": {"cni_network_config": text}}).to_string()
    };
    assert_eq!(
        ipam((Query::CalicoConfig, &config("calico-ipam"))),
        Ipam::Calico
    );
    assert_eq!(
        ipam((Query::CalicoConfig, &config("host-local"))),
        Ipam::HostLocal
    );
    let canal = facts(&[
        (
            Query::DaemonSets,
            r#"{"metadata": {"name": "canal", "namespace": "kube-system"}}"#,
        ),
        (Query::CalicoPoolsStored, POOLS),
    ]);
    let canal = Calico::detect(&canal).unwrap();
    assert_eq!(canal.ipam, Ipam::Elsewhere);
    assert!(canal.claims().pod.is_empty());
}

#[test]
fn definitions_that_outlived_it_do_not_make_it_run() {
    let left = facts(&[
        (Query::DaemonSets, r#"{"metadata": {"name": "cilium"}}"#),
        (Query::CalicoPoolsStored, POOLS),
    ]);
    assert_eq!(Calico::detect(&left), None);
}

#[test]
fn its_wireguard_may_have_the_port_of_a_gateway() {
    let clash = ("calico-wireguard-port", Severity::Warns);
    for (spec, is_clash) in [
        (r#"{"wireguardEnabled": true}"#, true),
        (r#"{"wireguardEnabledV6": true}"#, true),
        (
            r#"{"wireguardEnabled": true, "wireguardListeningPort": 51871}"#,
            false,
        ),
        (r#"{"wireguardEnabled": false}"#, false),
    ] {
        let felix = format!(r#"{{"metadata": {{"name": "default"}}, "spec": {spec}}}"#);
        let found = ids(&calico(&[(Query::Felix, &felix)]), &[]);
        assert_eq!(found.contains(&clash), is_clash, "{spec}: {found:?}");
    }
}
