//! What is installed, applied to and deleted from a real API server.

use std::time::Duration;

use serde_json::Value;
use subsea::kube::apply::Applier;
use subsea::kube::error::KubeError;
use subsea::kube::manifests::{
    BrokerOptions, ClusterOptions, Expose, Image, Object, broker, cluster, print,
};
use subsea_api::join_file::JoinFile;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{Role, Token, UnixMillis};

use crate::bed::{self, LONG, Plane};

fn apply(plane: &Plane, objects: &[Object]) -> Result<Vec<String>, KubeError> {
    apply_with(Applier::new(plane.client(), false), objects)
}

fn apply_with(mut applier: Applier, objects: &[Object]) -> Result<Vec<String>, KubeError> {
    let mut lines = Vec::new();
    Plane::block_on(applier.apply(objects, &mut |line| lines.push(line.to_owned())))?;
    Ok(lines)
}

fn delete(plane: &Plane, objects: &[Object], limit: Duration) -> Result<Vec<String>, KubeError> {
    let mut applier = Applier::new(plane.client(), false);
    let mut lines = Vec::new();
    let mut progress = |line: &str| lines.push(line.to_owned());
    Plane::block_on(applier.delete(objects, limit, &mut progress))?;
    Ok(lines)
}

fn of_cluster(namespace: &str) -> Vec<Object> {
    let options = ClusterOptions {
        namespace: namespace.to_owned(),
        ..ClusterOptions::default()
    };
    cluster(&options).unwrap()
}

fn labels(plane: &Plane, namespace: &str) -> Value {
    let text = plane
        .kubectl(&["get", "namespace", namespace, "-o", "json"])
        .ok();
    let object: Value = serde_json::from_str(&text).unwrap();
    object["metadata"]["labels"].clone()
}

#[test]
fn a_cluster_is_installed_brought_up_to_date_and_taken_out() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = of_cluster("subsea-install");
    let lines = apply(plane, &objects).unwrap();
    let created = lines.iter().filter(|l| l.starts_with("created "));
    assert_eq!(created.count(), objects.len(), "{lines:?}");
    // Established, so that a resource of theirs can be asked for at once.
    plane
        .kubectl(&["get", "clusters.subsea.dev,ssgw,ssconn"])
        .ok();

    let again = apply(plane, &objects).unwrap();
    assert!(
        again.iter().all(|l| l.starts_with("unchanged ")),
        "{again:?}"
    );
    let newer = cluster(&ClusterOptions {
        namespace: "subsea-install".to_owned(),
        image: Image::new("subsea:next"),
        ..ClusterOptions::default()
    });
    let newer = apply(plane, &newer.unwrap()).unwrap();
    let changed: Vec<_> = newer
        .iter()
        .filter(|l| !l.starts_with("unchanged "))
        .collect();
    assert_eq!(
        changed,
        [
            "changed DaemonSet subsea-install/subsea-gateway",
            "changed DaemonSet subsea-install/subsea-agent"
        ]
    );

    let lines = delete(plane, &objects, LONG).unwrap();
    let deleted = lines.iter().filter(|l| l.starts_with("deleted "));
    assert_eq!(deleted.count(), objects.len(), "{lines:?}");
    for gone in [
        "namespace/subsea-install",
        "crd/clusters.subsea.dev",
        "clusterrole/subsea-gateway",
    ] {
        plane.kubectl(&["get", gone]).fails();
    }
    plane
        .kubectl(&["-n", "default", "get", "role", "subsea-gateway-events"])
        .fails();
    assert_eq!(
        delete(plane, &objects, LONG).unwrap(),
        Vec::<String>::new(),
        "nothing is left to delete"
    );
    // At once again, and while it goes: nothing of the old one takes the new one along.
    apply(plane, &objects).unwrap();
    plane
        .kubectl(&["delete", "crd", "clusters.subsea.dev", "--wait=false"])
        .ok();
    plane
        .kubectl(&["delete", "namespace", "subsea-install", "--wait=false"])
        .ok();
    apply(plane, &objects).unwrap();
    for kept in ["namespace/subsea-install", "crd/clusters.subsea.dev"] {
        let going = ["-o", "jsonpath={.metadata.deletionTimestamp}"];
        let get = plane.kubectl(&[&["get", kept][..], &going].concat());
        assert_eq!(get.ok(), "", "{kept}");
    }
    delete(plane, &objects, LONG).unwrap();
}

#[test]
fn half_an_installation_goes_and_what_is_of_others_stays() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let namespace = plane.namespace("half");
    let objects = of_cluster(&namespace);
    // Not labelled as ours: an operator's own namespace, role and settings.
    plane
        .apply(&format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{name: theirs, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: subsea-agent}}
rules: []
---
apiVersion: v1
kind: Secret
metadata:
  name: from-an-earlier-version
  namespace: {namespace}
  labels: {{app.kubernetes.io/managed-by: subsea, app.kubernetes.io/part-of: subsea}}
"
        ))
        .ok();
    // No definitions, no bindings, no daemons.
    let half: Vec<Object> = objects
        .iter()
        .filter(|o| {
            let kind = o.types.as_ref().unwrap().kind.as_str();
            ["Namespace", "ServiceAccount"].contains(&kind)
        })
        .cloned()
        .collect();
    apply(plane, &half).unwrap();
    assert_eq!(
        labels(plane, &namespace)["app.kubernetes.io/managed-by"],
        Value::Null,
        "a namespace that was there is not taken for ours"
    );

    let lines = delete(plane, &objects, LONG).unwrap();
    let left: Vec<_> = lines.iter().filter(|l| l.starts_with("left ")).collect();
    assert_eq!(
        left,
        ["left ClusterRole subsea-agent: it does not have our labels",]
    );
    let kept =
        format!("kept Namespace {namespace}: it was there before, and has the labels of before");
    assert!(lines.contains(&kept), "{lines:?}");
    plane
        .kubectl(&["-n", &namespace, "get", "configmap", "theirs"])
        .ok();
    let accounts = plane
        .kubectl(&[
            "-n",
            &namespace,
            "get",
            "serviceaccounts,secrets",
            "-o",
            "name",
        ])
        .ok();
    assert_eq!(accounts.trim(), "serviceaccount/default");
    plane
        .kubectl(&["delete", "clusterrole", "subsea-agent"])
        .ok();
}

#[test]
fn a_namespace_that_was_there_gets_its_labels_back() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let namespace = plane.namespace("borrowed");
    let set = |label: &str| {
        let label = ["label", "--overwrite", "namespace", &namespace, label];
        plane.kubectl(&label).ok();
    };
    let enforce = "pod-security.kubernetes.io/enforce";
    set(&format!("{enforce}=baseline"));
    set("team=sea");
    let before = labels(plane, &namespace);
    let objects = of_cluster(&namespace);
    // What somebody else has said is his, until it is taken over.
    let error = apply(plane, &objects).unwrap_err().to_string();
    assert!(error.contains("belongs to `kubectl-label`"), "{error}");
    for _ in 0..2 {
        apply_with(Applier::new(plane.client(), true), &objects).unwrap();
        assert_eq!(labels(plane, &namespace)[enforce], "privileged");
    }
    delete(plane, &objects, LONG).unwrap();
    assert_eq!(labels(plane, &namespace), before);
    let annotations = ["-o", "jsonpath={.metadata.annotations}"];
    let get = [&["get", "namespace", &namespace], &annotations[..]].concat();
    assert_eq!(plane.kubectl(&get).ok(), "");
}

/// Of a broker that nobody is.
fn join_file() -> JoinFile {
    let fleet = "fleet".parse().unwrap();
    let broker = BrokerInfo {
        urls: vec!["https://127.0.0.1:1".into()],
        ca_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
    };
    JoinFile {
        version: 1,
        fleet,
        cluster: "east".parse().unwrap(),
        role: Role::Member,
        expires: UnixMillis(4_000_000_000_000),
        broker,
        token: Token::from_parts(1, [9; 32]),
    }
}

#[test]
fn a_broker_and_a_cluster_share_no_namespace() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = broker(&BrokerOptions {
        namespace: "subsea-shared".to_owned(),
        ..BrokerOptions::default()
    })
    .unwrap();
    apply(plane, &objects).unwrap();
    let subsea = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_subsea"));
        command
            .args(arguments)
            .args(["--context", "east", "--namespace", "subsea-shared"]);
        command.env("KUBECONFIG", plane.kubeconfig());
        bed::run(&mut command).fails()
    };
    let dir = tempfile::tempdir().unwrap();
    let join = dir.path().join("east.join");
    std::fs::write(&join, join_file().to_yaml().unwrap()).unwrap();
    let error = subsea(&["join", join.to_str().unwrap()]);
    assert!(
        error.contains("the broker lives in the namespace subsea-shared"),
        "{error}"
    );
    let error = subsea(&["leave"]);
    assert!(error.contains("nothing was removed"), "{error}");
    plane
        .kubectl(&["-n", "subsea-shared", "get", "statefulset", "subsea-broker"])
        .ok();
    delete(plane, &objects, LONG).unwrap();
    let objects = of_cluster("subsea-shared");
    apply(plane, &objects).unwrap();
    let error = subsea(&["deploy-broker"]);
    assert!(
        error.contains("the daemons of a cluster live in the namespace subsea-shared"),
        "{error}"
    );
    delete(plane, &objects, LONG).unwrap();
}

#[test]
fn a_namespace_that_is_going_is_waited_for() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = broker(&BrokerOptions {
        namespace: "subsea-going".to_owned(),
        expose: Some(Expose::NodePort),
        ..BrokerOptions::default()
    })
    .unwrap();
    apply(plane, &objects).unwrap();
    plane
        .kubectl(&["delete", "namespace", "subsea-going", "--wait=false"])
        .ok();
    let lines = apply(plane, &objects).unwrap();
    assert!(
        lines.contains(&"created Namespace subsea-going".to_owned()),
        "{lines:?}"
    );
    delete(plane, &objects, LONG).unwrap();
}

#[test]
fn a_namespace_that_does_not_go_is_told_with_the_reason() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = broker(&BrokerOptions {
        namespace: "subsea-held".to_owned(),
        ..BrokerOptions::default()
    })
    .unwrap();
    apply(plane, &objects).unwrap();
    let held = [
        "-n",
        "subsea-held",
        "patch",
        "configmap",
        "kube-root-ca.crt",
    ];
    let finalizer = |list: &str| {
        let patch = format!("{{\"metadata\":{{\"finalizers\":{list}}}}}");
        plane
            .kubectl(&[&held[..], &["--type=merge", "-p", &patch]].concat())
            .ok();
    };
    bed::until("the namespace has its certificate", LONG, || {
        let get = ["-n", "subsea-held", "get", "configmaps", "-o", "name"];
        plane.kubectl(&get).ok().contains("kube-root-ca.crt")
    });
    finalizer("[\"example.net/held\"]");
    let error = delete(plane, &objects, Duration::from_secs(30)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("Namespace subsea-held is still there after"),
        "{text}"
    );
    assert!(text.contains("example.net/held"), "{text}");
    finalizer("[]");
    delete(plane, &objects, LONG).unwrap();
}

#[test]
fn what_others_have_applied_is_left_to_them_unless_forced() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let objects = broker(&BrokerOptions {
        namespace: "subsea-conflict".to_owned(),
        ..BrokerOptions::default()
    })
    .unwrap();
    apply(plane, &objects).unwrap();
    plane
        .kubectl(&[
            "-n",
            "subsea-conflict",
            "patch",
            "service",
            "subsea-broker",
            "--field-manager=somebody",
            "--type=merge",
            "-p",
            r#"{"spec":{"type":"NodePort"}}"#,
        ])
        .ok();
    let error = apply(plane, &objects).unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not apply Service subsea-conflict/subsea-broker: `.spec.type` belongs to `somebody`"
    );
    let forced = apply_with(Applier::new(plane.client(), true), &objects).unwrap();
    assert!(
        forced.contains(&"changed Service subsea-conflict/subsea-broker".to_owned()),
        "{forced:?}"
    );
    delete(plane, &objects, LONG).unwrap();
}

#[test]
fn who_may_not_is_told_what_is_missing() {
    let bed = bed::shared();
    let plane = &bed.east;
    let namespace = plane.namespace("stranger");
    plane.service_account(&namespace, "stranger");
    let stranger = Plane::client_of(&plane.kubeconfig_of(&namespace, "stranger"));
    let applier = Applier::new(stranger, false);
    let error = apply_with(applier, &of_cluster(&namespace)).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("not allowed to get "), "{text}");
    assert!(text.contains("customresourcedefinitions"), "{text}");
}

#[test]
fn an_api_server_takes_every_object_as_it_is_printed() {
    let bed = bed::exclusive();
    let plane = &bed.west;
    let objects = of_cluster("subsea-printed");
    // In a dry run, namespaces and definitions do not come about.
    let first: Vec<Object> = objects
        .iter()
        .filter(|o| {
            let kind = o.types.as_ref().unwrap().kind.as_str();
            ["Namespace", "CustomResourceDefinition"].contains(&kind)
        })
        .cloned()
        .collect();
    apply(plane, &first).unwrap();
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    let said = plane
        .kubectl_as(plane.kubeconfig(), &arguments, &print(&objects).unwrap())
        .ok();
    assert_eq!(said.lines().count(), objects.len(), "{said}");
    delete(plane, &objects, LONG).unwrap();
}
