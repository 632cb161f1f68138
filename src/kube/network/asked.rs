//! What a gateway asks the API server about the network plugin and the service proxy: the objects that `manifests/cluster/roles.yaml`
//! names, and no others. PURE.

use crate::kube::discover::query::{Place, Query};

/// What is answered in one place each, as for a join.
const SINGLE: [Query; 17] = [
    Query::KubeProxy,
    Query::KubeProxyEks,
    Query::CalicoPools,
    Query::CalicoPoolsStored,
    Query::Felix,
    Query::FelixStored,
    Query::CalicoInstallation,
    Query::CalicoConfig,
    Query::Cilium,
    Query::CiliumOwnNamespace,
    Query::CiliumMasquerade,
    Query::Flannel,
    Query::FlannelOld,
    Query::Canal,
    Query::OpenShiftNetwork,
    Query::OpenShiftOperator,
    Query::CalicoIpam,
];

/// The `DaemonSet`s by which plugins and proxies are known, where their makers put them. All of a cluster's are none of the
/// daemons' business.
const DAEMON_SETS: [(&str, &str); 22] = [
    ("kube-system", "calico-node"),
    ("calico-system", "calico-node"),
    ("kube-system", "canal"),
    ("kube-system", "rke2-canal"),
    ("kube-system", "cilium"),
    ("cilium", "cilium"),
    ("kube-flannel", "kube-flannel-ds"),
    ("kube-system", "kube-flannel-ds"),
    ("kube-system", "kube-flannel"),
    ("kube-system", "kube-proxy"),
    ("kube-system", "aws-node"),
    ("ovn-kubernetes", "ovnkube-node"),
    ("ovn-kubernetes", "ovnkube-single-node-zone"),
    ("ovn-kubernetes", "ovnkube-node-dpu"),
    ("openshift-ovn-kubernetes", "ovnkube-node"),
    ("kube-system", "kindnet"),
    ("kube-system", "antrea-agent"),
    ("kube-system", "kube-router"),
    ("kube-system", "weave-net"),
    ("kube-system", "kube-ovn-cni"),
    ("kube-system", "anetd"),
    ("kube-system", "azure-cns"),
];

/// Every object or list that is asked for, with the query that it answers. The node's own object comes on top.
pub(super) fn asked() -> Vec<(Query, Place)> {
    let single = SINGLE.into_iter().map(|query| (query, query.place()));
    let sets = DAEMON_SETS.into_iter().map(|(namespace, name)| {
        let place = Place {
            namespace: Some(namespace),
            name: Some(name),
            ..Query::DaemonSets.place()
        };
        (Query::DaemonSets, place)
    });
    single.chain(sets).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The rules of the gateways' `ClusterRole`.
    fn rules() -> Vec<Value> {
        let text = include_str!("../../../manifests/cluster/roles.yaml");
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        let of =
            |o: &&Value| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "subsea-gateway";
        let role = objects.iter().find(of).unwrap();
        role["rules"].as_array().unwrap().clone()
    }

    fn has(rule: &Value, key: &str, wanted: &str) -> bool {
        let list = rule[key].as_array();
        list.is_some_and(|list| list.iter().any(|v| v == wanted))
    }

    #[test]
    fn the_manifest_allows_what_is_asked_by_name_and_no_other_name() {
        let rules = rules();
        let mut used = BTreeSet::new();
        for (_, place) in asked() {
            let verb = if place.name.is_some() { "get" } else { "list" };
            let allows = |rule: &&Value| {
                has(rule, "apiGroups", place.group)
                    && has(rule, "resources", place.plural)
                    && has(rule, "verbs", verb)
                    && place
                        .name
                        .is_none_or(|name| has(rule, "resourceNames", name))
            };
            assert!(rules.iter().any(|r| allows(&r)), "{place}");
            used.extend(place.name.map(|name| (place.plural, name)));
        }
        for rule in &rules {
            let names = rule["resourceNames"].as_array();
            for name in names.into_iter().flatten().filter_map(Value::as_str) {
                let resources = rule["resources"].as_array().unwrap();
                let known = |r: &Value| used.contains(&(r.as_str().unwrap(), name));
                assert!(resources.iter().any(known), "nobody asks for {name}");
            }
        }
    }
}
