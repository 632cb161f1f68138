use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::Value;

use super::super::facts::Reading;
use super::super::facts::fixture::{config_map, facts};
use super::*;

const CONTROL_PLANE: &str = include_str!("fixtures/control-plane.yaml");
const SERVICE_CIDR: &str = include_str!("fixtures/servicecidr.yaml");
const KUBERNETES: &str = r#"{"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]}}"#;

fn nodes_with(blocks: &[&[&str]]) -> String {
    let one = |(i, blocks): (usize, &&[&str])| {
        serde_json::json!({
            "metadata": {"name": format!("node-{}", i + 1)},
            "spec": {"podCIDRs": blocks},
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{}", i + 11)},
                {"type": "Hostname", "address": format!("node-{}", i + 1)},
                {"type": "ExternalIP", "address": "198.51.100.7"},
            ]},
        })
        .to_string()
    };
    blocks
        .iter()
        .enumerate()
        .map(one)
        .collect::<Vec<_>>()
        .join("\n---\n")
}

fn shown(found: &Discovered) -> String {
    let mut out = String::new();
    for row in found.rows() {
        out += format!("{:8} {:20} {}", row.what, row.value, row.from).trim_end();
        out.push('\n');
    }
    for missing in found.missing() {
        writeln!(out, "MISSING {}: {}", missing.flag, missing.why).unwrap();
    }
    for note in &found.notes {
        writeln!(out, "{:?}: {}", note.weight, note.text).unwrap();
    }
    out
}

fn decided(answers: &[(Query, &str)]) -> Discovered {
    decide(&facts(answers), &Flags::default())
}

#[test]
fn a_dual_stack_cluster_of_kubeadm_and_flannel_is_known() {
    let nodes = nodes_with(&[
        &["10.244.0.0/24", "fd00:10:244::/64"],
        &["10.244.1.0/24", "fd00:10:244:1::/64"],
    ]);
    let kubeadm = config_map(
        "ClusterConfiguration",
        include_str!("fixtures/kubeadm-dual-stack.yaml"),
    );
    let flannel = config_map(
        "net-conf.json",
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
    );
    let proxy = config_map(
        "config.conf",
        include_str!("../cni/fixtures/kube-proxy.yaml"),
    );
    let found = decided(&[
        (Query::Nodes, &nodes),
        (Query::Kubeadm, &kubeadm),
        (Query::ControlPlane, CONTROL_PLANE),
        (Query::ServiceCidrs, SERVICE_CIDR),
        (Query::KubernetesService, KUBERNETES),
        (Query::Flannel, &flannel),
        (Query::KubeProxy, &proxy),
        (
            Query::DaemonSets,
            r#"{"metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"}}"#,
        ),
    ]);
    insta::assert_snapshot!(shown(&found), @r"
    pod      10.244.0.0/16        pod kube-system/kube-controller-manager-cp-1, --cluster-cidr
    pod      fd00:10:244::/56     pod kube-system/kube-controller-manager-cp-1, --cluster-cidr
    service  10.96.0.0/16         ServiceCIDR kubernetes, spec.cidrs
    service  fd00:10:96::/112     ServiceCIDR kubernetes, spec.cidrs
    node     192.0.2.11           node node-1
    node     192.0.2.12           node node-2
    plugin   flannel (vxlan)
    proxy    kube-proxy, iptables ConfigMap kube-system/kube-proxy, mode
    ");
    assert_eq!(found.prefix_source(), PrefixSource::Node);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["pod"][0]["cidr"], "10.244.0.0/16");
    assert_eq!(json["pod"][0]["from"]["rank"], "setting");
}

#[test]
fn node_blocks_alone_are_not_enough() {
    let found = decided(&[
        (
            Query::Nodes,
            &nodes_with(&[
                &["10.4.0.0/24"],
                &["10.4.1.0/24"],
                &["10.4.2.0/24"],
                &["10.4.3.0/24"],
                &["10.4.4.0/24"],
            ]),
        ),
        (Query::ServiceCidrs, SERVICE_CIDR),
    ]);
    assert!(found.pod.is_empty());
    assert_eq!(found.missing().len(), 1);
    assert_eq!(found.missing()[0].flag, "--pod-cidr");
    assert_eq!(
        found.missing()[0].why,
        "the nodes have 10.4.0.0/24, 10.4.1.0/24, 10.4.2.0/24, 10.4.3.0/24, ... (5 in all), and nothing says out of which block further \
         nodes get theirs"
    );
}

#[test]
fn calicos_pools_count_before_what_kubeadm_was_told() {
    let kubeadm = config_map(
        "ClusterConfiguration",
        "networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16}\n",
    );
    let found = decided(&[
        (Query::Nodes, &nodes_with(&[&["10.244.0.0/24"]])),
        (Query::Kubeadm, &kubeadm),
        (Query::ServiceCidrs, SERVICE_CIDR),
        (
            Query::CalicoPoolsStored,
            include_str!("../cni/fixtures/calico-pools.yaml"),
        ),
        (
            Query::DaemonSets,
            r#"{"metadata": {"name": "calico-node", "namespace": "kube-system"}}"#,
        ),
    ]);
    insta::assert_snapshot!(shown(&found), @r"
    pod      192.168.0.0/16       IPPool default-ipv4-ippool, spec.cidr
    pod      fd00:192:168::/48    IPPool default-ipv6-ippool, spec.cidr
    service  10.96.0.0/16         ServiceCIDR kubernetes, spec.cidrs
    service  fd00:10:96::/112     ServiceCIDR kubernetes, spec.cidrs
    node     192.0.2.11           node node-1
    plugin   Calico (iptables)
    proxy    unknown
    Warning: ConfigMap kube-system/kubeadm-config, networking.podSubnet says 10.244.0.0/16 for pods; 192.168.0.0/16 counts (IPPool default-ipv4-ippool, spec.cidr)
    Info: IPPool other-cluster (10.32.0.0/16) is disabled and left out; if pods still have addresses of it, give all blocks by --pod-cidr
    ");
    assert_eq!(found.prefix_source(), PrefixSource::Calico);
}

#[test]
fn sources_of_one_rank_that_contradict_each_other_ask_for_the_flag() {
    let kubeadm = config_map(
        "ClusterConfiguration",
        "networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16}\n",
    );
    let flannel = config_map(
        "net-conf.json",
        r#"{"Network": "10.245.0.0/16", "Backend": {"Type": "host-gw"}}"#,
    );
    let answers = [
        (Query::Nodes, nodes_with(&[&["10.244.0.0/24"]])),
        (Query::Kubeadm, kubeadm),
        (Query::Flannel, flannel),
        (
            Query::DaemonSets,
            r#"{"metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"}}"#.to_owned(),
        ),
    ];
    let answers: Vec<(Query, &str)> = answers.iter().map(|(q, t)| (*q, t.as_str())).collect();
    let found = decided(&answers);
    assert!(found.pod.is_empty());
    assert_eq!(found.service.len(), 1);
    assert_eq!(found.missing().len(), 1, "{:?}", found.missing());
    assert_eq!(
        found.missing()[0].why,
        "sources contradict each other about the blocks of pods: 10.245.0.0/16 (ConfigMap kube-flannel/kube-flannel-cfg, net-conf.json, \
         Network); 10.244.0.0/16 (ConfigMap kube-system/kubeadm-config, networking.podSubnet)"
    );
    // The flag ends it, and the contradiction is still shown.
    let flags = Flags {
        pod: vec!["10.244.0.0/16".parse().unwrap()],
        service: Vec::new(),
    };
    let found = decide(&facts(&answers), &flags);
    assert!(found.missing().is_empty(), "{:?}", found.missing());
    assert_eq!(found.pod[0].from.place, "flag --pod-cidr");
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.weight == Weight::Warning && n.text.contains("10.245.0.0/16"))
    );
}

#[test]
fn nodes_outside_of_what_was_found_ask_for_the_flag() {
    let answers = [
        (
            Query::Nodes,
            nodes_with(&[&["10.244.0.0/24"], &["10.99.0.0/24"]]),
        ),
        (Query::ControlPlane, CONTROL_PLANE.to_owned()),
    ];
    let answers: Vec<(Query, &str)> = answers.iter().map(|(q, t)| (*q, t.as_str())).collect();
    let found = decided(&answers);
    assert_eq!(found.missing().len(), 1);
    assert_eq!(
        found.missing()[0].why,
        "10.99.0.0/24 of node node-2 is outside of the blocks of pods: 10.244.0.0/16, fd00:10:244::/56"
    );
    let flags = Flags {
        pod: vec!["10.244.0.0/16".parse().unwrap()],
        service: Vec::new(),
    };
    let found = decide(&facts(&answers), &flags);
    assert!(found.missing().is_empty());
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.text.starts_with("10.99.0.0/24 of node node-2 is outside"))
    );
}

#[test]
fn the_address_of_the_service_kubernetes_must_be_among_services() {
    let found = decided(&[
        (
            Query::Kubeadm,
            &config_map(
                "ClusterConfiguration",
                "networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.112.0.0/16}\n",
            ),
        ),
        (Query::KubernetesService, KUBERNETES),
    ]);
    assert_eq!(found.missing().len(), 1);
    assert_eq!(
        found.missing()[0].why,
        "10.96.0.1/32 of the service default/kubernetes is outside of the blocks of services: 10.112.0.0/16"
    );
    let nothing = decided(&[(Query::KubernetesService, KUBERNETES)]);
    let whys: Vec<&str> = nothing.missing().iter().map(|m| m.why.as_str()).collect();
    assert_eq!(
        whys,
        [
            "nothing says which blocks pods' addresses come from",
            "nothing says which blocks ClusterIPs come from (10.96.0.1 is among them)",
        ]
    );
}

#[test]
fn several_service_cidrs_add_up() {
    let second = "---\nmetadata: {name: more}\nspec: {cidrs: [10.200.0.0/16]}\n";
    let found = decided(&[
        (Query::ServiceCidrs, &format!("{SERVICE_CIDR}{second}")),
        (Query::ServiceCidrsBeta, SERVICE_CIDR),
        (Query::ControlPlane, CONTROL_PLANE),
    ]);
    let blocks: Vec<String> = found.service.iter().map(|f| f.cidr.to_string()).collect();
    assert_eq!(
        blocks,
        ["10.96.0.0/16", "10.200.0.0/16", "fd00:10:96::/112"]
    );
    assert!(
        found.notes.iter().all(|n| n.weight == Weight::Info),
        "{:?}",
        found.notes
    );
}

#[test]
fn what_cilium_gave_to_nodes_must_lie_in_its_pool() {
    let node = |cidr: &str| {
        format!("{{metadata: {{name: node-1}}, spec: {{ipam: {{podCIDRs: [{cidr}]}}}}}}")
    };
    let with = |cidr: &str| {
        decided(&[
            // The controller manager's blocks are not used in this mode.
            (Query::Nodes, &nodes_with(&[&["172.20.0.0/24"]])),
            (
                Query::Cilium,
                include_str!("../cni/fixtures/cilium-config.yaml"),
            ),
            (Query::CiliumNodes, &node(cidr)),
            (
                Query::DaemonSets,
                r#"{"metadata": {"name": "cilium", "namespace": "kube-system"}}"#,
            ),
            (Query::ServiceCidrs, SERVICE_CIDR),
        ])
    };
    let found = with("10.0.3.0/24");
    assert!(found.missing().is_empty(), "{:?}", found.missing());
    assert_eq!(found.prefix_source(), PrefixSource::Cilium);
    let found = with("10.0.3.0/24, 192.168.7.0/24");
    assert_eq!(found.missing().len(), 1);
    assert_eq!(
        found.missing()[0].why,
        "192.168.7.0/24 of CiliumNode node-1 is outside of the blocks of pods: 10.0.0.0/8"
    );
}

#[test]
fn aws_is_asked_for() {
    let found = decided(&[
        (Query::Nodes, &nodes_with(&[&[], &[]])),
        (
            Query::DaemonSets,
            include_str!("../cni/fixtures/aws-node.yaml"),
        ),
        (Query::ServiceCidrs, SERVICE_CIDR),
    ]);
    assert_eq!(found.missing().len(), 1);
    assert!(
        found.missing()[0]
            .why
            .contains("look up the blocks of all subnets"),
        "{:?}",
        found.missing()
    );
    assert_eq!(found.prefix_source(), PrefixSource::None);
}

#[test]
fn everything_forbidden_says_so_and_asks_for_both_flags() {
    let mut facts = Facts::default();
    for query in Query::ALL {
        facts.insert(query, Reading::Failed("forbidden (403)".to_owned()));
    }
    let found = decide(&facts, &Flags::default());
    let flags: Vec<&str> = found.missing().iter().map(|m| m.flag).collect();
    assert_eq!(flags, ["--pod-cidr", "--service-cidr"]);
    assert!(found.missing()[0].why.contains("could not be read"));
    assert_eq!(found.notes.len(), Query::ALL.len());
}

/// Any document that an API server could hand out, most of them nonsense.
fn documents() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        "[a-z0-9./:,-]{0,20}",
        Just("10.1.0.0/16".to_owned()),
        Just("true".to_owned()),
        Just("kube-controller-manager".to_owned()),
        Just("--cluster-cidr=10.1.0.0/16".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    let keys = prop_oneof![
        Just("metadata"),
        Just("name"),
        Just("spec"),
        Just("data"),
        Just("status"),
        Just("cidr"),
        Just("cidrs"),
        Just("podCIDRs"),
        Just("labels"),
        Just("component"),
        Just("containers"),
        Just("command"),
        Just("annotations"),
        Just("addresses"),
        Just("ipam"),
        Just("net-conf.json"),
        Just("config.conf"),
        Just("ClusterConfiguration"),
        Just("ovnkube.conf"),
        Just("net_cidr"),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_document_panics_and_every_block_has_a_source(documents in prop::collection::vec((0..Query::ALL.len(), documents()), 0..12)) {
        let mut facts = Facts::default();
        for (i, document) in documents {
            facts.insert(Query::ALL[i], Reading::Objects(vec![Query::ALL[i].trim(&document)]));
        }
        let found = decide(&facts, &Flags::default());
        for block in found.pod.iter().chain(&found.service) {
            prop_assert!(!block.from.place.is_empty());
        }
        prop_assert!(!found.pod.is_empty() || found.missing().iter().any(|m| m.flag == "--pod-cidr"));
        prop_assert!(!found.service.is_empty() || found.missing().iter().any(|m| m.flag == "--service-cidr"));
        prop_assert!(!found.rows().is_empty());
        let _ = cni::findings(&found.cni, &found.proxy, cni::Surroundings::default());
        let _ = found.prefix_source();
        prop_assert!(serde_json::to_value(&found).is_ok());
    }
}
