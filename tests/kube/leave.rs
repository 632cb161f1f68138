//! A leave that cannot sweep keeps what its repeat needs; one of the wrong namespace touches nothing; and one that comes after others
//! have removed a part does the rest.

use crate::bed::{self, Plane};
use crate::ground::{Ground, assert_says, objects};

#[test]
fn a_leave_that_cannot_sweep_keeps_what_its_repeat_needs() {
    let _alone = bed::exclusive();
    let ground = Ground::build(&["gw-1", "n-1"], &["gw-1"]);
    ground.deploy_broker();
    let east = &ground.east;
    let image = "registry.example.net:5000/sea/subsea:1";
    let file = ground.token("east");
    ground.join("east", &file, &format!("--image {image}")).ok();

    // An upgrade brings no image that this cluster cannot pull.
    let said = ground.join("east", &file, "").said();
    let wanted = format!("keeps image {image}; `--image` changes it");
    assert!(said.contains(&wanted), "{said}");
    for daemon in objects(east, "daemonsets -n subsea") {
        let container = &daemon["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], image);
    }
    let secrets = r#"{"imagePullSecrets":[{"name":"registry"}]}"#;
    let account = ["-n", "subsea", "patch", "serviceaccount", "subsea-agent"];
    east.kubectl(&[&account[..], &["-p", secrets]].concat())
        .ok();

    let said = ground
        .subsea("leave --context hither --timeout 20s --image nowhere/subsea:1")
        .fails_with(1);
    assert_says(
        &said,
        &[
            "cluster east has left fleet",
            "swept 0 nodes",
            "not all nodes are swept; Secret and namespace are kept",
            "node gw-1 is not swept after 20 s: pod subsea-sweeper-",
            "node n-1 is not swept after 20 s: pod subsea-sweeper-",
            "ImagePullBackOff: Back-off pulling image \"nowhere/subsea:1\"",
            "swept with the image nowhere/subsea:1; `--image` names another",
        ],
    );
    for kept in [
        "secret/subsea-enrolment",
        "serviceaccount/subsea-operator",
        "configmap/subsea-leave",
    ] {
        east.kubectl(&["-n", "subsea", "get", kept]).ok();
    }
    // How the daemons were pulled, which are gone.
    assert!(objects(east, "daemonsets -n subsea").is_empty());
    let note = ["-n", "subsea", "get", "configmap", "subsea-leave", "-o"];
    let note = [&note[..], &["jsonpath={.data.image\\.json}"]].concat();
    let note = east.kubectl(&note).ok();
    let wanted = format!(
        "{{\"name\":\"{image}\",\"pullPolicy\":\"IfNotPresent\",\"pullSecrets\":[\"registry\"]}}"
    );
    assert_eq!(note, wanted);

    let said = ground.subsea("leave --context hither --timeout 60s").said();
    assert_says(
        &said,
        &[
            "the broker was told by an earlier leave",
            "swept 2 nodes",
            "deleted Namespace subsea",
            "nothing of Subsea is left in the cluster",
        ],
    );
    ground.is_clean("east", east);
    another_namespace_is_left_alone(&ground);
    after_helm(&ground);
    after_an_end_before_the_last_step(&ground);
}

/// Where the daemons live is said before anything is touched.
fn another_namespace_is_left_alone(ground: &Ground) {
    let west = &ground.west;
    west.kubectl(&["create", "namespace", "net"]).ok();
    let file = ground.token("west");
    ground.join("west", &file, "--namespace net").ok();
    let said = ground.join("west", &file, "").fails_with(1);
    assert_says(
        &said,
        &[
            "the daemons of this cluster live in the namespace net, and not in subsea: nothing was touched",
            "`--namespace net`",
        ],
    );
    let said = ground
        .subsea("leave --context yonder --timeout 60s")
        .fails_with(1);
    assert_says(
        &said,
        &[
            "Subsea lives in the namespace net, and not in subsea: nothing was removed",
            "`--namespace net`",
        ],
    );
    assert!(!said.contains("deleted "), "{said}");
    for kept in [
        "crd/clusters.subsea.dev",
        "clusterrolebinding/subsea-gateway",
        "clusterrolebinding/subsea-agent",
    ] {
        west.kubectl(&["get", kept]).ok();
    }
    assert_eq!(objects(west, "daemonsets -n net").len(), 2);
    assert_eq!(objects(west, "secrets -n net").len(), 1);
}

/// What Helm has removed is all but what the admission wrote: the account that speaks to the broker is made anew, and goes again.
fn after_helm(ground: &Ground) {
    let west = &ground.west;
    let ours = ["-l", "app.kubernetes.io/part-of=subsea"];
    for (namespace, kinds) in [
        ("net", "daemonsets,serviceaccounts,configmaps"),
        ("default", "roles,rolebindings"),
        ("default", "clusterroles,clusterrolebindings,crds"),
    ] {
        let delete = ["-n", namespace, "delete", "--cascade=foreground", kinds];
        west.kubectl(&[&delete[..], &ours].concat()).ok();
    }
    let said = ground
        .subsea("leave --context yonder --timeout 60s")
        .fails_with(1);
    let wanted = "Subsea lives in the namespace net, and not in subsea";
    assert!(said.contains(wanted), "{said}");
    let said = ground
        .subsea("leave --context yonder --namespace net --timeout 60s --image subsea:other")
        .said();
    assert_says(
        &said,
        &[
            "created ServiceAccount net/subsea-operator",
            "cluster west has left fleet",
            "swept 1 nodes",
            "deleted ServiceAccount net/subsea-operator",
            "kept Namespace net: it was there before, and has the labels of before",
            "nothing of Subsea is left in the cluster",
        ],
    );
    ground.is_clean("west", west);
    assert_eq!(enforced(west), "");
}

/// All is gone but what was put on a namespace that was there before.
fn after_an_end_before_the_last_step(ground: &Ground) {
    let west = &ground.west;
    west.apply_as_subsea(
        "
apiVersion: v1
kind: Namespace
metadata:
  name: net
  labels: {pod-security.kubernetes.io/enforce: privileged}
  annotations: {subsea.dev/labels-before: '{}'}
",
    );
    assert_eq!(enforced(west), "privileged");
    let leave = "leave --context yonder --namespace net --timeout 60s --image nowhere/subsea:1";
    let said = ground.subsea(leave).said();
    let wanted = "kept Namespace net: it was there before, and has the labels of before";
    assert!(said.contains(wanted), "{said}");
    assert_eq!(enforced(west), "");
    let said = ground.subsea(leave).fails_with(1);
    assert_says(
        &said,
        &[
            "Subsea is not installed in the namespace net",
            "`subsea-broker cluster forget ID`",
        ],
    );
}

fn enforced(plane: &Plane) -> String {
    let enforce = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    plane
        .kubectl(&["get", "namespace", "net", "-o", enforce])
        .ok()
}
