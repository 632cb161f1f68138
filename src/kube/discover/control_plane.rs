//! What the control plane says: ServiceCIDR objects, kubeadm's ConfigMap, command lines. PURE.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::facts::{Facts, short, text, texts, yaml};
use super::found::{Claims, Note, Rank};
use super::query::Query;

/// All that the control plane says about blocks.
pub(super) fn claims(facts: &Facts) -> Claims {
    let mut claims = service_cidrs(facts);
    claims.extend(kubeadm(facts));
    claims.extend(static_pods(facts));
    claims.extend(k3s(facts));
    claims
}

/// The objects by which the API server itself allocates ClusterIPs. One that goes is still in use.
fn service_cidrs(facts: &Facts) -> Claims {
    let mut claims = Claims::default();
    for query in [Query::ServiceCidrs, Query::ServiceCidrsBeta] {
        for object in facts.objects(query) {
            let name = text(object, "/metadata/name").unwrap_or("?");
            let list = texts(object, "/spec/cidrs").join(",");
            claims.services(
                Rank::Allocator,
                &format!("ServiceCIDR {name}, spec.cidrs"),
                &list,
            );
        }
        // Both versions are the same objects.
        if !claims.service.is_empty() {
            break;
        }
    }
    claims
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ClusterConfiguration {
    networking: Networking,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Networking {
    pod_subnet: Option<String>,
    service_subnet: Option<String>,
}

/// What `kubeadm init` was told, and an upgrade keeps.
fn kubeadm(facts: &Facts) -> Claims {
    let mut claims = Claims::default();
    let Some(text) = facts.entry(Query::Kubeadm, "ClusterConfiguration") else {
        return claims;
    };
    let place = |field: &str| format!("{}, networking.{field}", Query::Kubeadm);
    match yaml::<ClusterConfiguration>(text) {
        Ok(ClusterConfiguration { networking }) => {
            let pods = networking.pod_subnet.unwrap_or_default();
            claims.pods(Rank::Record, &place("podSubnet"), &pods);
            let services = networking.service_subnet.unwrap_or_default();
            claims.services(Rank::Record, &place("serviceSubnet"), &services);
        }
        Err(error) => claims
            .notes
            .push(unreadable(&Query::Kubeadm.to_string(), &error)),
    }
    claims
}

/// A ConfigMap that is not what it should be.
pub(super) fn unreadable(place: &str, error: &str) -> Note {
    Note::warning(format!("{place} could not be understood: {}", short(error)))
}

/// The flags of the programs that run.
fn static_pods(facts: &Facts) -> Claims {
    let mut claims = Claims::default();
    for pod in facts.objects(Query::ControlPlane) {
        let component = text(pod, "/metadata/labels/component").unwrap_or_default();
        let pod_name = text(pod, "/metadata/name").unwrap_or("?");
        let words = command_line(pod);
        let place = |flag: &str| format!("pod kube-system/{pod_name}, --{flag}");
        match component {
            "kube-controller-manager" => {
                // Without this one it gives nodes no blocks, and the range is only a wish.
                let allocates = flag(&words, "allocate-node-cidrs") == Some("true");
                let rank = if allocates {
                    Rank::Setting
                } else {
                    Rank::Record
                };
                if let Some(list) = flag(&words, "cluster-cidr") {
                    claims.pods(rank, &place("cluster-cidr"), list);
                }
                if let Some(list) = flag(&words, "service-cluster-ip-range") {
                    // It is the API server's flag that counts.
                    claims.services(Rank::Record, &place("service-cluster-ip-range"), list);
                }
            }
            "kube-apiserver" => {
                if let Some(list) = flag(&words, "service-cluster-ip-range") {
                    claims.services(Rank::Setting, &place("service-cluster-ip-range"), list);
                }
            }
            "kube-proxy" => {
                if let Some(list) = flag(&words, "cluster-cidr") {
                    claims.pods(Rank::Record, &place("cluster-cidr"), list);
                }
            }
            _ => {}
        }
    }
    claims
}

/// k3s and RKE2 have the whole control plane in one program, and write its command line, with what its file of settings
/// says, to the node. What is not there is a default of theirs, which is not written anywhere.
fn k3s(facts: &Facts) -> Claims {
    let mut claims = Claims::default();
    for node in facts.objects(Query::Nodes) {
        for (key, program) in [
            (
                "/metadata/annotations/k3s.io~1node-args",
                "k3s.io/node-args",
            ),
            (
                "/metadata/annotations/rke2.io~1node-args",
                "rke2.io/node-args",
            ),
        ] {
            let words: Vec<String> = text(node, key)
                .and_then(|t| serde_json::from_str(t).ok())
                .unwrap_or_default();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if words.first() != Some(&"server") {
                continue;
            }
            let node_name = text(node, "/metadata/name").unwrap_or("?");
            let place = |flag: &str| format!("node {node_name}, {program}, --{flag}");
            if let Some(list) = flag(&words, "cluster-cidr") {
                claims.pods(Rank::Setting, &place("cluster-cidr"), list);
            }
            if let Some(list) = flag(&words, "service-cidr") {
                claims.services(Rank::Setting, &place("service-cidr"), list);
            }
        }
    }
    claims
}

/// The words of all containers of a pod.
pub(crate) fn command_line(pod: &Value) -> Vec<&str> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    containers
        .into_iter()
        .flatten()
        .flat_map(|c| {
            let mut words = texts(c, "/command");
            words.extend(texts(c, "/args"));
            words
        })
        // GKE and others have one shell command of all.
        .flat_map(str::split_whitespace)
        .collect()
}

/// The value of a flag: `--name=value`, or `--name value`. The last one counts.
pub(crate) fn flag<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let mut value = None;
    for (i, word) in words.iter().enumerate() {
        let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(rest) = bare.and_then(|w| w.strip_prefix(name)) else {
            continue;
        };
        if let Some(given) = rest.strip_prefix('=') {
            value = Some(given);
        } else if rest.is_empty() {
            let next = words.get(i + 1).copied();
            value = Some(next.filter(|w| !w.starts_with('-')).unwrap_or("true"));
        }
    }
    value
}

/// An address that must be in the block of services.
pub(super) fn kubernetes_addresses(facts: &Facts) -> Vec<IpAddr> {
    let Some(service) = facts.object(Query::KubernetesService) else {
        return Vec::new();
    };
    let mut all = texts(service, "/spec/clusterIPs");
    all.extend(text(service, "/spec/clusterIP"));
    let mut all: Vec<IpAddr> = all.iter().filter_map(|a| a.parse().ok()).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::super::facts::fixture::{config_map, facts};
    use super::*;

    pub(super) fn shown(claims: &Claims) -> String {
        let line = |kind: &str, f: &super::super::found::Found| {
            format!("{kind} {} {:?} {}\n", f.cidr, f.from.rank, f.from.place)
        };
        let mut out = String::new();
        for found in &claims.pod {
            out += &line("pod", found);
        }
        for found in &claims.service {
            out += &line("service", found);
        }
        for note in &claims.notes {
            writeln!(out, "{:?} {}", note.weight, note.text).unwrap();
        }
        out
    }

    #[test]
    fn a_cluster_of_kubeadm_says_it_in_four_places() {
        let facts = facts(&[
            (
                Query::Kubeadm,
                &config_map(
                    "ClusterConfiguration",
                    include_str!("fixtures/kubeadm-dual-stack.yaml"),
                ),
            ),
            (
                Query::ControlPlane,
                include_str!("fixtures/control-plane.yaml"),
            ),
            (
                Query::ServiceCidrs,
                include_str!("fixtures/servicecidr.yaml"),
            ),
        ]);
        insta::assert_snapshot!(shown(&claims(&facts)), @r"
        pod 10.244.0.0/16 Record ConfigMap kube-system/kubeadm-config, networking.podSubnet
        pod fd00:10:244::/56 Record ConfigMap kube-system/kubeadm-config, networking.podSubnet
        pod 10.244.0.0/16 Setting pod kube-system/kube-controller-manager-cp-1, --cluster-cidr
        pod fd00:10:244::/56 Setting pod kube-system/kube-controller-manager-cp-1, --cluster-cidr
        service 10.96.0.0/16 Allocator ServiceCIDR kubernetes, spec.cidrs
        service fd00:10:96::/112 Allocator ServiceCIDR kubernetes, spec.cidrs
        service 10.96.0.0/16 Record ConfigMap kube-system/kubeadm-config, networking.serviceSubnet
        service fd00:10:96::/112 Record ConfigMap kube-system/kubeadm-config, networking.serviceSubnet
        service 10.96.0.0/16 Setting pod kube-system/kube-apiserver-cp-1, --service-cluster-ip-range
        service fd00:10:96::/112 Setting pod kube-system/kube-apiserver-cp-1, --service-cluster-ip-range
        service 10.96.0.0/16 Record pod kube-system/kube-controller-manager-cp-1, --service-cluster-ip-range
        service fd00:10:96::/112 Record pod kube-system/kube-controller-manager-cp-1, --service-cluster-ip-range
        ");
    }

    #[test]
    fn k3s_says_it_in_an_annotation_of_its_servers() {
        let facts = facts(&[(Query::Nodes, include_str!("fixtures/nodes-k3s.yaml"))]);
        insta::assert_snapshot!(shown(&k3s(&facts)), @r"
        pod 10.52.0.0/16 Setting node server-1, k3s.io/node-args, --cluster-cidr
        service 10.53.0.0/16 Setting node server-1, k3s.io/node-args, --service-cidr
        ");
    }

    #[test]
    fn flags_are_read_however_they_are_written() {
        let words = [
            "kube-x", "--a=1", "--b", "2", "-c=3", "--d", "--ab=4", "--a=5", "--e",
        ];
        let of = |name| flag(&words, name);
        assert_eq!(of("a"), Some("5"));
        assert_eq!(of("b"), Some("2"));
        assert_eq!(of("c"), Some("3"));
        assert_eq!(of("d"), Some("true"));
        assert_eq!(of("e"), Some("true"));
        assert_eq!(of("f"), None);
    }

    #[test]
    fn rubbish_in_a_config_map_is_a_note_and_ends_soon() {
        let nested = "[".repeat(1 << 20);
        let aliases = format!(
            "a: &a [x]\nnetworking: {{podSubnet: [{}]}}",
            "*a,".repeat(300_000)
        );
        let words = "x ".repeat(1 << 19);
        for rubbish in [
            nested,
            aliases,
            words,
            "\u{0}\u{1}".repeat(1 << 19),
            "- 1".to_owned(),
        ] {
            let facts = facts(&[(
                Query::Kubeadm,
                &config_map(
                    "ClusterConfiguration",
                    &rubbish[..rubbish.len().min(1 << 20)],
                ),
            )]);
            let claims = claims(&facts);
            assert!(claims.pod.is_empty() && claims.service.is_empty());
            assert_eq!(claims.notes.len(), 1, "{:?}", claims.notes);
            assert!(claims.notes[0].text.len() < 400);
        }
    }
}
