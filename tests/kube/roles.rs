//! What the daemons may do in their cluster: all that they need, and nothing else.

use std::collections::BTreeSet;

use k8s_openapi::api::authorization::v1::{
    SelfSubjectRulesReview, SelfSubjectRulesReviewSpec, SubjectRulesReviewStatus,
};
use kube::Api;
use kube::api::PostParams;
use subsea::kube::apply::Applier;
use subsea::kube::clearing;
use subsea::kube::manifests::{BrokerOptions, ClusterOptions, Object, admission, broker, cluster};
use subsea_api::NodeName;

use crate::bed::{self, LONG, Plane};

/// `verb group/resource`, with the name where there is one, or `verb /path`.
type Rights = BTreeSet<String>;

/// What a service account may do in a namespace.
fn rights(plane: &Plane, account: (&str, &str), namespace: &str) -> Rights {
    let client = Plane::client_of(&plane.kubeconfig_of(account.0, account.1));
    let reviews: Api<SelfSubjectRulesReview> = Api::all(client);
    let wanted = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.to_owned()),
        },
        ..SelfSubjectRulesReview::default()
    };
    let review = Plane::block_on(reviews.create(&PostParams::default(), &wanted)).unwrap();
    flat(&review.status.unwrap())
}

fn flat(status: &SubjectRulesReviewStatus) -> Rights {
    assert!(!status.incomplete, "{status:?}");
    let mut rights = Rights::new();
    for rule in &status.resource_rules {
        let names = rule.resource_names.clone().unwrap_or_default();
        let names = if names.is_empty() {
            String::new()
        } else {
            format!(" {}", names.join(","))
        };
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    rights.insert(format!("{verb} {group}/{resource}{names}"));
                }
            }
        }
    }
    for rule in &status.non_resource_rules {
        for path in rule.non_resource_urls.iter().flatten() {
            for verb in &rule.verbs {
                rights.insert(format!("{verb} {path}"));
            }
        }
    }
    rights
}

fn all(verbs: &[&str], resources: &[&str]) -> Rights {
    let each = |resource: &&str| {
        let resource = (*resource).to_owned();
        verbs
            .iter()
            .map(move |verb| format!("{verb} {resource}"))
            .collect::<Vec<_>>()
    };
    resources.iter().flat_map(each).collect()
}

fn install(plane: &Plane, objects: &[Object]) {
    let mut applier = Applier::new(plane.client(), false);
    Plane::block_on(applier.apply(objects, &mut |_| {})).unwrap();
}

/// A member cluster's objects, in this namespace.
fn install_cluster(plane: &Plane, home: &str) -> Vec<Object> {
    let objects = cluster(&ClusterOptions {
        namespace: home.to_owned(),
        ..ClusterOptions::default()
    })
    .unwrap();
    install(plane, &objects);
    objects
}

fn remove(plane: &Plane, objects: &[Object]) {
    let mut applier = Applier::new(plane.client(), false);
    Plane::block_on(applier.delete(objects, LONG, &mut |_| {})).unwrap();
}

/// What gateways read of network plugins and proxies: objects of a few names, and Calico's pools.
fn network_plugins() -> Rights {
    let (stored, served) = ("crd.projectcalico.org", "projectcalico.org");
    let pools = [served, stored].map(|group| format!("{group}/ippools"));
    let mut all: Rights = pools.iter().map(|pools| format!("list {pools}")).collect();
    for object in [
        "/configmaps kube-proxy,kube-proxy-config,calico-config,cilium-config,ip-masq-agent,kube-flannel-cfg,canal-config",
        "apps/daemonsets calico-node,canal,rke2-canal,cilium,kube-flannel-ds,kube-flannel,kube-proxy,aws-node,ovnkube-node,\
         ovnkube-single-node-zone,ovnkube-node-dpu,kindnet,antrea-agent,kube-router,weave-net,kube-ovn-cni,anetd,azure-cns",
        "projectcalico.org/felixconfigurations default",
        "crd.projectcalico.org/felixconfigurations default",
        "crd.projectcalico.org/ipamconfigs default",
        "operator.tigera.io/installations default",
        "config.openshift.io/networks cluster",
        "operator.openshift.io/networks cluster",
    ] {
        all.insert(format!("get {object}"));
    }
    all
}

#[test]
fn the_daemons_may_do_what_they_need_and_nothing_else() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = cluster(&ClusterOptions {
        namespace: "subsea-rights".to_owned(),
        ..ClusterOptions::default()
    })
    .unwrap();
    install(plane, &objects);
    plane.service_account("subsea-rights", "nobody");
    let own = |account: &str, namespace: &str| {
        let everybody = rights(plane, ("subsea-rights", "nobody"), namespace);
        let has = rights(plane, ("subsea-rights", account), namespace);
        &has - &everybody
    };
    let shown = [
        "subsea.dev/clusters",
        "subsea.dev/gateways",
        "subsea.dev/connections",
    ];
    let mut gateway = all(&["list", "create", "patch", "delete"], &shown);
    let status = shown.map(|resource| format!("{resource}/status"));
    gateway.extend(status.map(|resource| format!("patch {resource}")));
    gateway.insert("get /nodes".to_owned());
    gateway.extend(network_plugins());
    let keys = "get /openid/v1/jwks".to_owned();
    let events = all(&["create"], &["events.k8s.io/events"]);
    let plugins = [
        "crd.projectcalico.org/blockaffinities",
        "cilium.io/ciliumnodes",
    ];
    let mut agent = all(&["list", "watch"], &plugins);
    agent.extend(all(&["list", "watch"], &["/nodes"]));
    for namespace in ["subsea-rights", "kube-system", "default"] {
        let mut expected = gateway.clone();
        if namespace == "default" {
            expected.extend(events.clone());
        }
        let mut has = own("subsea-gateway", namespace);
        // The server's own roles may give it to all service accounts.
        has.remove(&keys);
        assert_eq!(has, expected, "the gateway in {namespace}");
        assert_eq!(
            own("subsea-agent", namespace),
            agent,
            "the agent in {namespace}"
        );
        assert_eq!(
            own("subsea-operator", namespace),
            Rights::new(),
            "the operator in {namespace}"
        );
    }
    let keys_of = rights(plane, ("subsea-rights", "subsea-gateway"), "default");
    assert!(keys_of.contains(&keys), "{keys_of:?}");
    remove(plane, &objects);
}

#[test]
fn the_admission_may_read_settings_and_write_one_secret() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let home = "subsea-admits";
    let options = ClusterOptions {
        namespace: home.to_owned(),
        ..ClusterOptions::default()
    };
    let objects = [cluster(&options).unwrap(), admission(&options).unwrap()].concat();
    install(plane, &objects);
    plane.service_account(home, "nobody");
    let lists = [
        "/nodes",
        "networking.k8s.io/servicecidrs",
        "apps/daemonsets",
        "projectcalico.org/ippools",
        "crd.projectcalico.org/ippools",
        "cilium.io/ciliumpodippools",
        "cilium.io/ciliumnodes",
        "crd.k8s.amazonaws.com/eniconfigs",
    ];
    let named = [
        "/configmaps cilium-config,kube-flannel-cfg,ovn-config,ovnkube-config",
        "projectcalico.org/felixconfigurations default",
        "crd.projectcalico.org/felixconfigurations default",
        "crd.projectcalico.org/ipamconfigs default",
        "operator.tigera.io/installations default",
        "config.openshift.io/networks cluster",
        "operator.openshift.io/networks cluster",
    ];
    let everywhere = &all(&["list"], &lists) | &all(&["get"], &named);
    for (namespace, more) in [
        (
            home,
            &all(&["get", "create", "patch"], &["/secrets subsea-enrolment"])
                | &all(&["get"], &["/configmaps subsea-config"]),
        ),
        (
            "kube-system",
            &all(&["list"], &["/pods"])
                | &all(
                    &["get"],
                    &[
                        "/configmaps kubeadm-config,kube-proxy,kube-proxy-config,calico-config,ip-masq-agent,canal-config",
                    ],
                ),
        ),
        ("default", all(&["get"], &["/services kubernetes"])),
        ("kube-public", Rights::new()),
    ] {
        let everybody = rights(plane, (home, "nobody"), namespace);
        let mut has = &rights(plane, (home, "subsea-admission"), namespace) - &everybody;
        // The server's own roles may give them to all service accounts.
        for path in ["/.well-known/openid-configuration", "/openid/v1/jwks"] {
            has.remove(&format!("get {path}"));
        }
        assert_eq!(has, &everywhere | &more, "in {namespace}");
    }
    // Every place that is read can be.
    let client = Plane::client_of(&plane.kubeconfig_of(home, "subsea-admission"));
    let facts = Plane::block_on(subsea::kube::discover::read(&client)).unwrap();
    let failures: Vec<_> = facts.failures().collect();
    assert!(failures.is_empty(), "{failures:?}");
    remove(plane, &objects);
}

#[test]
fn the_broker_may_write_one_secret_and_nothing_else() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = broker(&BrokerOptions {
        namespace: "subsea-broker-rights".to_owned(),
        ..BrokerOptions::default()
    })
    .unwrap();
    install(plane, &objects);
    let home = "subsea-broker-rights";
    plane.service_account(home, "nobody");
    for namespace in [home, "default", "kube-system"] {
        let everybody = rights(plane, (home, "nobody"), namespace);
        let has = rights(plane, (home, "subsea-broker"), namespace);
        let expected = if namespace == home {
            all(&["get", "patch"], &["/secrets subsea-broker-admin"])
        } else {
            Rights::new()
        };
        assert_eq!(&has - &everybody, expected, "in {namespace}");
    }
    remove(plane, &objects);
}

#[test]
fn a_gateway_shows_itself_by_server_side_apply() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let home = "subsea-shows";
    let objects = install_cluster(plane, home);
    let gateway = plane.kubeconfig_of(home, "subsea-gateway");
    let agent = plane.kubeconfig_of(home, "subsea-agent");
    let connection = |status: &str| {
        format!(
            "
apiVersion: subsea.dev/v1alpha1
kind: Connection
metadata: {{name: gw-1.west.gw-a, labels: {{subsea.dev/node: gw-1}}}}
spec: {{gateway: gw-1, cluster: west, remoteGateway: gw-a}}
{status}"
        )
    };
    let apply = ["apply", "--server-side", "--validate=strict", "-f", "-"];
    let status = ["apply", "--server-side", "--subresource=status", "-f", "-"];
    let ready = |state: &str| {
        connection(&format!(
            "status:
  state: {state}
  inUse: true
  rttMilliseconds: 12.5
  lossPercent: 0
  mtu: 1420
  conditions:
    - {{type: Ready, status: 'True', reason: Connected, message: '', lastTransitionTime: '2026-01-01T00:00:00Z'}}
"
        ))
    };
    plane.kubectl_as(&gateway, &apply, &connection("")).ok();
    plane
        .kubectl_as(&gateway, &status, &ready("connected"))
        .ok();
    plane
        .kubectl(&[
            "wait",
            "--for=condition=Ready",
            "connection/gw-1.west.gw-a",
            "--timeout=20s",
        ])
        .ok();
    let table = plane.kubectl(&["get", "connections"]).ok();
    let columns: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        columns[0],
        [
            "NAME", "GATEWAY", "CLUSTER", "REMOTE", "STATE", "RTT", "LOSS", "MTU", "AGE"
        ]
    );
    assert_eq!(
        columns[1][..8],
        [
            "gw-1.west.gw-a",
            "gw-1",
            "west",
            "gw-a",
            "connected",
            "12.5",
            "0",
            "1420"
        ]
    );
    let refused = plane
        .kubectl_as(&gateway, &status, &ready("splendid"))
        .fails();
    assert!(refused.contains("supported values"), "{refused}");
    let refused = plane.kubectl_as(&agent, &apply, &connection("")).fails();
    assert!(refused.contains("forbidden"), "{refused}");
    let of_west = ["get", "connections", "-o", "name"];
    let selected = [&of_west[..], &["--field-selector", "spec.cluster=west"]].concat();
    let none = [&of_west[..], &["--field-selector", "spec.cluster=south"]].concat();
    assert!(plane.kubectl(&selected).ok().contains("gw-1.west.gw-a"));
    assert_eq!(plane.kubectl(&none).ok().trim(), "");
    remove(plane, &objects);
}

#[test]
fn a_gateway_tells_a_node_that_is_gone_from_one_that_is_not_ready() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let home = "subsea-gone";
    let objects = install_cluster(plane, home);
    let client = Plane::client_of(&plane.kubeconfig_of(home, "subsea-gateway"));
    let names = ["gone-1", "gone-2"];
    for name in names {
        plane.fake_node(name, &["10.11.9.0/24"], "192.0.2.9", &[]);
    }
    let nodes: BTreeSet<NodeName> = names.iter().map(|name| name.parse().unwrap()).collect();
    let gone = || -> Vec<String> {
        let gone = Plane::block_on(clearing::without_node(&client, &nodes)).unwrap();
        gone.iter().map(ToString::to_string).collect()
    };
    assert!(gone().is_empty());
    let status = r#"{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}"#;
    let patch = [
        "patch",
        "node",
        "gone-1",
        "--subresource=status",
        "-p",
        status,
    ];
    plane.kubectl(&patch).ok();
    plane.kubectl(&["delete", "node", "gone-2"]).ok();
    assert_eq!(gone(), ["gone-2"]);
    plane.kubectl(&["delete", "node", "gone-1"]).ok();
    remove(plane, &objects);
    // Without the right to look, nobody is taken for gone.
    bed::until("it is refused", LONG, || {
        let asked = Plane::block_on(clearing::without_node(&client, &nodes));
        asked.is_err_and(|error| error.contains("get node gone-1"))
    });
}
