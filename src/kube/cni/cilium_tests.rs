use super::*;
use crate::kube::discover::facts::fixture::facts;

const SET: &str = r#"{"metadata": {"name": "cilium", "namespace": "kube-system"}}"#;
const CONFIG: &str = include_str!("fixtures/cilium-config.yaml");

fn cilium(config: &str, more: &[(Query, &str)]) -> Cilium {
    let mut answers = vec![(Query::DaemonSets, SET), (Query::Cilium, config)];
    answers.extend_from_slice(more);
    Cilium::detect(&facts(&answers)).expect("Cilium")
}

fn with(changes: &[(&str, &str)]) -> Cilium {
    let mut config: serde_json::Value = serde_saphyr::from_str(CONFIG).unwrap();
    for (key, value) in changes {
        config["data"][*key] = serde_json::Value::from(*value);
    }
    cilium(&config.to_string(), &[])
}

fn severity(cilium: &Cilium, id: &str, remote: &[&str]) -> Option<Severity> {
    let remote: Vec<Cidr> = remote.iter().map(|c| c.parse().unwrap()).collect();
    let around = Surroundings {
        remote: &remote,
        ..Surroundings::default()
    };
    let all = cilium.findings(around);
    all.iter().find(|f| f.id == id).map(|f| f.severity)
}

#[test]
fn the_default_installation_leaves_routing_to_the_kernel() {
    let found = cilium(CONFIG, &[]);
    assert_eq!(
        found.to_string(),
        "Cilium (IPAM cluster-pool, kernel routing)"
    );
    assert_eq!(found.masquerade, Masquerade::Iptables);
    assert!(!found.replaces_proxy);
    let facts = facts(&[(Query::Cilium, CONFIG)]);
    let blocks: Vec<String> = found
        .claims(&facts)
        .pod
        .iter()
        .map(|f| format!("{} {}", f.cidr, f.from))
        .collect();
    assert_eq!(
        blocks,
        ["10.0.0.0/8 ConfigMap kube-system/cilium-config, cluster-pool-ipv4-cidr"]
    );
    assert_eq!(
        severity(&found, "cilium-host-routing", &[]),
        Some(Severity::Fine)
    );
    assert_eq!(
        severity(&found, "cilium-masquerade", &[]),
        Some(Severity::Fine)
    );
    assert_eq!(severity(&found, "cilium-cluster-ip", &[]), None);
    assert_eq!(severity(&found, "cilium-mark", &[]), Some(Severity::Warns));
}

#[test]
fn host_routing_by_ebpf_is_told_from_what_makes_cilium_fall_back() {
    let full = [
        ("kube-proxy-replacement", "true"),
        ("enable-bpf-masquerade", "true"),
    ];
    assert!(with(&full).ebpf_host_routing);
    assert_eq!(
        severity(&with(&full), "cilium-host-routing", &[]),
        Some(Severity::Blocks)
    );
    let plus = |key, value| {
        let mut all = full.to_vec();
        all.push((key, value));
        with(&all)
    };
    assert!(!plus("enable-host-legacy-routing", "true").ebpf_host_routing);
    assert!(!plus("enable-bpf-masquerade", "false").ebpf_host_routing);
    assert!(!plus("kube-proxy-replacement", "false").ebpf_host_routing);
    assert!(plus("datapath-mode", "netkit-l2").ebpf_host_routing);
    // Without any masquerade there is none by iptables to fall back for.
    let off = with(&[
        ("kube-proxy-replacement", "true"),
        ("enable-ipv4-masquerade", "false"),
        ("enable-ipv6-masquerade", "false"),
    ]);
    assert_eq!(off.masquerade, Masquerade::Off);
    assert!(off.ebpf_host_routing);
}

#[test]
fn masquerade_in_ebpf_must_spare_the_other_clusters() {
    let full = [
        ("kube-proxy-replacement", "true"),
        ("enable-bpf-masquerade", "true"),
    ];
    let found = with(&full);
    assert_eq!(
        severity(&found, "cilium-masquerade", &[]),
        Some(Severity::Warns)
    );
    let native = with(&[full[0], full[1], ("ipv4-native-routing-cidr", "10.0.0.0/8")]);
    assert_eq!(
        severity(&native, "cilium-masquerade", &["10.32.0.0/16"]),
        Some(Severity::Fine)
    );
    assert_eq!(
        severity(
            &native,
            "cilium-masquerade",
            &["10.32.0.0/16", "172.20.0.0/16"]
        ),
        Some(Severity::Warns)
    );
    let agent = CONFIG.replace(
        "data:",
        "data:\n  enable-ip-masq-agent: \"true\"\n  enable-bpf-masquerade: \"true\"",
    );
    // Without a configuration of its own it leaves all private blocks alone.
    let found = cilium(&agent, &[]);
    assert_eq!(
        severity(
            &found,
            "cilium-masquerade",
            &["10.32.0.0/16", "172.20.0.0/16"]
        ),
        Some(Severity::Fine)
    );
    let map = "metadata: {name: ip-masq-agent}\ndata:\n  config: |\n    nonMasqueradeCIDRs:\n    - 10.0.0.0/8\n    masqLinkLocal: false\n";
    let found = cilium(&agent, &[(Query::CiliumMasquerade, map)]);
    assert_eq!(
        severity(
            &found,
            "cilium-masquerade",
            &["10.32.0.0/16", "172.20.0.0/16"]
        ),
        Some(Severity::Warns)
    );
}

#[test]
fn services_and_connection_tracking_are_looked_at() {
    let replaced = with(&[("kube-proxy-replacement", "true")]);
    assert_eq!(
        severity(&replaced, "cilium-cluster-ip", &[]),
        Some(Severity::Warns)
    );
    let open = with(&[
        ("kube-proxy-replacement", "true"),
        ("bpf-lb-external-clusterip", "true"),
    ]);
    assert_eq!(severity(&open, "cilium-cluster-ip", &[]), None);
    let untracked = with(&[("install-no-conntrack-iptables-rules", "true")]);
    assert_eq!(
        severity(&untracked, "cilium-no-conntrack", &[]),
        Some(Severity::Blocks)
    );
    let marks = crate::kube::cni::Marks {
        gateway: 0x3000,
        ..crate::kube::cni::Marks::default()
    };
    let around = Surroundings { remote: &[], marks };
    assert!(
        !replaced
            .findings(around)
            .iter()
            .any(|f| f.id == "cilium-mark")
    );
}

#[test]
fn pools_are_read_in_both_forms_and_clouds_are_asked_for() {
    let pool = "
apiVersion: cilium.io/v2alpha1
kind: CiliumPodIPPool
metadata: {name: default}
spec:
  ipv4:
    cidrs: [10.10.0.0/16, {cidr: 10.11.0.0/16}]
    maskSize: 27
  ipv6:
    cidrs: [fd00:100::/80]
    maskSize: 96
";
    let found = with(&[("ipam", "multi-pool")]);
    let claims = found.claims(&facts(&[
        (Query::CiliumPools, pool),
        (Query::CiliumPoolsV2, pool),
    ]));
    let blocks: Vec<String> = claims.pod.iter().map(|f| f.cidr.to_string()).collect();
    assert_eq!(blocks, ["10.10.0.0/16", "10.11.0.0/16", "fd00:100::/80"]);
    let eni = with(&[("ipam", "eni")]).claims(&facts(&[]));
    assert!(eni.pod.is_empty());
    assert_eq!(eni.notes.len(), 1);
    assert!(
        with(&[("ipam", "kubernetes")])
            .claims(&facts(&[]))
            .pod
            .is_empty()
    );
    let chained = with(&[("cni-chaining-mode", "aws-cni")]);
    assert!(chained.chained.is_some());
    assert!(
        chained
            .claims(&facts(&[(Query::Cilium, CONFIG)]))
            .pod
            .is_empty()
    );
}
