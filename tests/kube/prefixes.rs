//! The blocks of a node's pods, followed with the rights that the manifests give to agents: watches that are cut, history that
//! the API server has forgotten, rights that go and come back.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde_json::json;
use subsea::kube::discover::{Following, PrefixSource, follow};
use subsea::task::Task;

use crate::bed::{self, LONG, Plane, Relay, until};
use crate::publish::Installed;

/// A back-off of up to half a minute, and the rest.
const AGAIN: Duration = Duration::from_mins(2);

/// The kinds of Calico and Cilium, as far as their objects are read.
const KINDS: [(&str, &str, &str, &str); 2] = [
    (
        "crd.projectcalico.org",
        "v1",
        "BlockAffinity",
        "blockaffinities",
    ),
    ("cilium.io", "v2", "CiliumNode", "ciliumnodes"),
];

fn define(plane: &Plane) {
    for (group, version, kind, plural) in KINDS {
        let singular = kind.to_lowercase();
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": "Cluster",
                "names": {"kind": kind, "plural": plural, "singular": singular, "listKind": format!("{kind}List")},
                "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }}}],
            },
        });
        plane.apply(&definition.to_string()).ok();
    }
    plane.definitions_are_served();
}

fn undefine(plane: &Plane) {
    for (group, _, _, plural) in KINDS {
        let name = format!("{plural}.{group}");
        plane
            .kubectl(&["delete", "--ignore-not-found", "crd", &name])
            .ok();
    }
}

fn affinity(plane: &Plane, node: &str, cidr: &str) {
    let name = affinity_name(node, cidr);
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity", "metadata": {"name": name},
        "spec": {"cidr": cidr, "node": node, "state": "confirmed", "deleted": "false"},
    });
    plane.apply(&object.to_string()).ok();
}

fn affinity_name(node: &str, cidr: &str) -> String {
    format!("{node}-{}", cidr.replace(['.', '/'], "-"))
}

fn cilium_node(plane: &Plane, node: &str, cidrs: &[&str]) {
    let object = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": node},
        "spec": {"ipam": {"podCIDRs": cidrs}},
    });
    plane.apply(&object.to_string()).ok();
}

fn ovn_subnet(plane: &Plane, node: &str, cidr: &str) {
    let annotation = format!("k8s.ovn.org/node-subnets={{\"default\":[\"{cidr}\"]}}");
    plane
        .kubectl(&["annotate", "--overwrite", "node", node, &annotation])
        .ok();
}

/// Blocks that are followed, and all that was ever said of them.
struct Followed {
    following: Following,
    said: Arc<Mutex<Vec<String>>>,
    _task: Task,
}

impl Followed {
    fn start(kubeconfig: &Path, node: &str, source: PrefixSource, remembered: bool) -> Self {
        let client = Plane::client_of(kubeconfig);
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let writes = Arc::clone(&said);
        Plane::block_on(async {
            let following = follow(client, node.to_owned(), source, remembered);
            let mut prefixes = following.prefixes.clone();
            let listening = async move {
                while prefixes.changed().await.is_ok() {
                    let now = prefixes.borrow_and_update().clone();
                    let words: Vec<String> =
                        now.iter().flatten().map(ToString::to_string).collect();
                    let mut said = writes.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push(words.join(" "));
                }
            };
            Self {
                following,
                said,
                _task: Task::spawn("listening", listening),
            }
        })
    }

    fn said(&self) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    fn until(&self, wanted: &str) {
        until(&format!("the blocks are {wanted}"), AGAIN, || {
            self.said().last().is_some_and(|last| last == wanted)
        });
    }

    fn denied(&self) -> String {
        self.following.denied.borrow().clone().unwrap_or_default()
    }
}

/// The objects of the first of [`KINDS`].
fn first_kind(plane: &Plane) -> Api<DynamicObject> {
    let (group, version, kind, plural) = KINDS[0];
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    Api::all_with(plane.client(), &resource)
}

/// Whether a watch that goes on from `version` is told that this is gone.
fn is_gone(plane: &Plane, version: &str) -> bool {
    let api = first_kind(plane);
    let first = async {
        let events = api.watch(&WatchParams::default(), version).await?;
        pin_mut!(events);
        events.next().await.unwrap()
    };
    let first = Plane::block_on(async { tokio::time::timeout(LONG, first).await.unwrap() });
    match first {
        Ok(WatchEvent::Error(status)) | Err(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

fn version(plane: &Plane) -> String {
    let api = first_kind(plane);
    let list = Plane::block_on(api.list(&ListParams::default())).unwrap();
    list.metadata.resource_version.unwrap()
}

#[test]
fn blocks_are_followed_through_watches_that_are_cut_and_history_that_is_forgotten() {
    let node = "follow-1";
    let mut bed = bed::exclusive();
    // For `forget_history` takes the plane whole.
    Installed::some(&bed.east, &["namespace", "accounts", "roles"]).stay();
    define(&bed.east);
    bed.east
        .fake_node(node, &["10.41.1.0/24"], "192.0.2.41", &[]);
    affinity(&bed.east, node, "10.42.1.0/26");
    cilium_node(&bed.east, node, &["10.43.1.0/24"]);
    ovn_subnet(&bed.east, node, "10.44.1.0/24");
    let relay = Relay::to(bed.east.address());
    let token = bed.east.token("subsea", "subsea-agent", None);
    let kubeconfig = bed.east.kubeconfig_for(&token, relay.address());
    let start = |source| Followed::start(&kubeconfig, node, source, false);
    let calico = start(PrefixSource::Calico);
    let cilium = start(PrefixSource::Cilium);
    let ovn = start(PrefixSource::OvnKubernetes);
    calico.until("10.42.1.0/26");
    cilium.until("10.43.1.0/24");
    ovn.until("10.44.1.0/24");

    relay.cut();
    affinity(&bed.east, node, "10.42.2.0/26");
    cilium_node(&bed.east, node, &["10.43.1.0/24", "10.43.2.0/24"]);
    ovn_subnet(&bed.east, node, "10.44.2.0/24");
    calico.until("10.42.1.0/26 10.42.2.0/26");
    cilium.until("10.43.1.0/24 10.43.2.0/24");
    ovn.until("10.44.2.0/24");

    // Away for so long that the history is gone: a block comes and another one goes meanwhile.
    let old = version(&bed.east);
    relay.refuse(true);
    affinity(&bed.east, node, "10.42.3.0/26");
    let first = format!("blockaffinity/{}", affinity_name(node, "10.42.1.0/26"));
    bed.east.kubectl(&["delete", &first]).ok();
    cilium_node(&bed.east, node, &["10.43.3.0/24"]);
    ovn_subnet(&bed.east, node, "10.44.3.0/24");
    bed.east.forget_history();
    assert!(is_gone(&bed.east, &old));
    std::thread::sleep(Duration::from_secs(3));
    let said = [&calico, &cilium, &ovn].map(|f| f.said().len());
    assert_eq!(said, [2, 2, 2], "nothing is known to have changed");
    relay.refuse(false);
    calico.until("10.42.2.0/26 10.42.3.0/26");
    cilium.until("10.43.3.0/24");
    ovn.until("10.44.3.0/24");
    // At no time was a block missing that was there.
    assert_eq!(
        calico.said(),
        [
            "10.42.1.0/26",
            "10.42.1.0/26 10.42.2.0/26",
            "10.42.2.0/26 10.42.3.0/26"
        ]
    );
    assert_eq!(
        cilium.said(),
        ["10.43.1.0/24", "10.43.1.0/24 10.43.2.0/24", "10.43.3.0/24"]
    );
    assert_eq!(ovn.said(), ["10.44.1.0/24", "10.44.2.0/24", "10.44.3.0/24"]);
    for followed in [&calico, &cilium, &ovn] {
        assert_eq!(followed.denied(), "");
    }
    undefine(&bed.east);
    bed.east.kubectl(&["delete", "node", node]).ok();
    drop(Installed::some(&bed.east, &[]));
}

#[test]
fn a_kind_that_is_denied_is_said_with_the_role_and_the_blocks_hold() {
    let node = "denied-1";
    let bed = bed::exclusive();
    let plane = &bed.east;
    let installed = Installed::some(plane, &["namespace", "accounts", "roles"]);
    define(plane);
    plane.fake_node(node, &["10.51.1.0/24"], "192.0.2.51", &[]);
    cilium_node(plane, node, &["10.53.1.0/24"]);
    let relay = Relay::to(plane.address());
    let token = plane.token("subsea", "subsea-agent", None);
    let kubeconfig = plane.kubeconfig_for(&token, relay.address());
    let may = || {
        let ran = plane.kubectl_as(
            &kubeconfig,
            &["auth", "can-i", "list", "ciliumnodes.cilium.io"],
            "",
        );
        ran.stdout.trim() == "yes"
    };
    let deny = || {
        plane.take_rule("subsea-agent", 2);
        until("the right is gone", LONG, || !may());
    };
    let is_said = |followed: &Followed, meanwhile: &str| {
        let said = followed.denied();
        said.contains("Kubernetes: may not list and watch ciliumnodes.cilium.io: ")
            && said.contains("cannot list resource")
            && said.contains("apply manifests/cluster/roles.yaml (ClusterRole subsea-agent)")
            && said.contains(meanwhile)
    };
    until("the right is there", LONG, may);
    deny();
    let new = Followed::start(&kubeconfig, node, PrefixSource::Auto, false);
    let remembers = Followed::start(&kubeconfig, node, PrefixSource::Auto, true);
    let told = Followed::start(&kubeconfig, node, PrefixSource::Cilium, false);
    // The node's own blocks for one that knows nothing; nothing for those that must not guess.
    new.until("10.51.1.0/24");
    until("it is said", LONG, || {
        is_said(&new, "`spec.podCIDRs` count")
            && is_said(&remembers, "stay as they were known last")
            && is_said(&told, "stay as they were known last")
    });
    assert_eq!((remembers.said().len(), told.said().len()), (0, 0));

    installed.apply("roles");
    for followed in [&new, &remembers, &told] {
        followed.until("10.53.1.0/24");
        until("nothing is denied", LONG, || followed.denied().is_empty());
    }

    // Lost while it runs: seen as soon as the watch begins anew, and no block goes.
    deny();
    relay.cut();
    until("it is said again", AGAIN, || {
        [&new, &remembers, &told]
            .into_iter()
            .all(|f| f.denied().contains("stay as they were known last"))
    });
    installed.apply("roles");
    until("the right is back", LONG, may);
    cilium_node(plane, node, &["10.53.2.0/24"]);
    for followed in [&new, &remembers, &told] {
        followed.until("10.53.2.0/24");
        until("nothing is denied", LONG, || followed.denied().is_empty());
    }
    assert_eq!(new.said(), ["10.51.1.0/24", "10.53.1.0/24", "10.53.2.0/24"]);
    assert_eq!(remembers.said(), ["10.53.1.0/24", "10.53.2.0/24"]);
    undefine(plane);
    plane.kubectl(&["delete", "node", node]).ok();
}
