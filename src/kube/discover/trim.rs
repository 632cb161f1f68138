//! What of the objects that are read is kept. PURE.

use serde_json::{Map, Value};

use super::query::Query;

impl Query {
    /// What of an object is kept, as paths in it; `*` stands for every element of a list. A fleet's nodes carry much that
    /// nobody needs here, and pods and DaemonSets may carry passwords.
    fn kept(self) -> Option<&'static [&'static str]> {
        Some(match self {
            Self::Nodes => &[
                "metadata/name",
                "metadata/annotations",
                "spec/podCIDR",
                "spec/podCIDRs",
                "status/addresses",
                "status/nodeInfo/kubeletVersion",
            ],
            Self::ControlPlane => &[
                "metadata/name",
                "metadata/labels/component",
                "spec/containers/*/command",
                "spec/containers/*/args",
            ],
            Self::DaemonSets => &[
                "metadata/name",
                "metadata/namespace",
                "spec/template/spec/containers/*/name",
                "spec/template/spec/containers/*/args",
                "spec/template/spec/containers/*/command",
                "spec/template/spec/containers/*/env",
                "status/desiredNumberScheduled",
                "status/numberReady",
            ],
            Self::CiliumNodes => &[
                "metadata/name",
                "spec/ipam/podCIDRs",
                "spec/ipam/pools/allocated",
            ],
            Self::KubernetesService => &["metadata/name", "spec/clusterIP", "spec/clusterIPs"],
            Self::ServiceCidrs
            | Self::ServiceCidrsBeta
            | Self::Kubeadm
            | Self::KubeProxy
            | Self::KubeProxyEks
            | Self::CalicoPools
            | Self::CalicoPoolsStored
            | Self::Felix
            | Self::FelixStored
            | Self::CalicoInstallation
            | Self::CalicoConfig
            | Self::CalicoIpam
            | Self::Cilium
            | Self::CiliumOwnNamespace
            | Self::CiliumMasquerade
            | Self::CiliumPools
            | Self::CiliumPoolsV2
            | Self::Flannel
            | Self::FlannelOld
            | Self::Canal
            | Self::OpenShiftNetwork
            | Self::OpenShiftOperator
            | Self::Ovn
            | Self::OvnOpenShift
            | Self::EniConfigs => return None,
        })
    }

    /// An object with what is needed of it.
    pub fn trim(self, object: &Value) -> Value {
        let Some(paths) = self.kept() else {
            let mut whole = object.clone();
            if let Some(metadata) = whole.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|key, _| key == "name" || key == "namespace");
            }
            return whole;
        };
        let mut kept = Value::Object(Map::new());
        for path in paths {
            let steps: Vec<&str> = path.split('/').collect();
            copy(object, &mut kept, &steps);
        }
        if self == Self::DaemonSets {
            only_known_environment(&mut kept);
        }
        kept
    }
}

fn copy(from: &Value, to: &mut Value, steps: &[&str]) {
    let Some((step, rest)) = steps.split_first() else {
        return;
    };
    if *step == "*" {
        let Some(items) = from.as_array() else { return };
        if !to.is_array() {
            *to = Value::Array(vec![Value::Object(Map::new()); items.len()]);
        }
        if let Some(copies) = to.as_array_mut() {
            for (item, copied) in items.iter().zip(copies) {
                copy(item, copied, rest);
            }
        }
        return;
    }
    let Some(inner) = from.get(*step) else { return };
    if !to.is_object() {
        *to = Value::Object(Map::new());
    }
    let Some(map) = to.as_object_mut() else {
        return;
    };
    if rest.is_empty() {
        map.insert((*step).to_owned(), inner.clone());
    } else {
        let slot = map.entry((*step).to_owned()).or_insert(Value::Null);
        copy(inner, slot, rest);
    }
}

/// Variables that say how a plugin is set up. The values of all others may be secrets and are not kept.
fn is_known(variable: &str) -> bool {
    const PREFIXES: [&str; 5] = ["AWS_VPC_", "CALICO_", "FELIX_", "ENABLE_", "OVN_GATEWAY_"];
    const NAMES: [&str; 2] = ["POD_SECURITY_GROUP_ENFORCING_MODE", "NO_DEFAULT_POOLS"];
    PREFIXES.iter().any(|p| variable.starts_with(p)) || NAMES.contains(&variable)
}

fn only_known_environment(daemon_set: &mut Value) {
    let containers = daemon_set
        .pointer_mut("/spec/template/spec/containers")
        .and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        if let Some(variables) = container.get_mut("env").and_then(Value::as_array_mut) {
            variables.retain(|v| v.get("name").and_then(Value::as_str).is_some_and(is_known));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_needed_of_an_object_is_kept() {
        let node = json!({
            "metadata": {"name": "a", "managedFields": [1], "annotations": {"k": "v"}},
            "spec": {"podCIDR": "10.1.0.0/24", "providerID": "x"},
            "status": {"images": [{"names": ["big"]}], "addresses": []},
        });
        assert_eq!(
            Query::Nodes.trim(&node),
            json!({
                "metadata": {"name": "a", "annotations": {"k": "v"}},
                "spec": {"podCIDR": "10.1.0.0/24"},
                "status": {"addresses": []},
            })
        );
        let set = json!({"metadata": {"name": "aws-node", "namespace": "kube-system"}, "spec": {"template": {"spec": {"containers": [
            {"name": "one", "image": "i", "env": [
                {"name": "AWS_VPC_K8S_CNI_EXTERNALSNAT", "value": "false"},
                {"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"},
                {"name": "PASSWORD", "value": "hunter2"},
            ]},
            {"name": "two"},
        ]}}}});
        let kept = Query::DaemonSets.trim(&set);
        assert!(!kept.to_string().contains("hunter2"), "{kept}");
        assert_eq!(
            kept.pointer("/spec/template/spec/containers/0/env/0/value"),
            Some(&json!("false"))
        );
        assert_eq!(
            kept.pointer("/spec/template/spec/containers/1/name"),
            Some(&json!("two"))
        );
        let map = json!({"metadata": {"name": "c", "annotations": {"last-applied": "x"}}, "data": {"k": "v"}});
        assert_eq!(
            Query::Kubeadm.trim(&map),
            json!({"metadata": {"name": "c"}, "data": {"k": "v"}})
        );
    }

    #[test]
    fn objects_of_another_shape_do_no_harm() {
        for odd in [
            json!(null),
            json!([1]),
            json!("x"),
            json!({"spec": 7, "metadata": [], "status": "no"}),
            json!({"spec": {"template": {"spec": {"containers": {"a": 1}}}}}),
        ] {
            for query in Query::ALL {
                let _ = query.trim(&odd);
            }
        }
    }
}
