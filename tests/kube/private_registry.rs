//! An image that is pulled with a Secret.

use serde_json::{Value, json};

use crate::bed::{self, Plane};
use crate::ground::{Ground, objects};

const IMAGE: &str = "registry.example.net/sea/subsea:1";
/// Said twice is said once.
const FLAGS: &str =
    "--image registry.example.net/sea/subsea:1 --pull-secret registry --pull-secret registry";

/// Every pod of that kind is pulled so.
fn is_pulled(plane: &Plane, kind: &str, secret: &str) {
    let all = objects(plane, kind);
    assert!(!all.is_empty(), "no {kind}");
    for object in all {
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], IMAGE);
        assert_eq!(pod["imagePullSecrets"], json!([{"name": secret}]));
    }
}

fn make_secret(plane: &Plane, namespace: &str, name: &str) {
    let login = ["--docker-username=sea", "--docker-password=none"];
    let server = "--docker-server=registry.example.net";
    let make = [
        "-n",
        namespace,
        "create",
        "secret",
        "docker-registry",
        name,
        server,
    ];
    plane.kubectl(&[&make[..], &login].concat()).ok();
}

#[test]
fn an_image_is_pulled_with_a_secret_which_stays_until_another_is_named() {
    let _alone = bed::exclusive();
    let ground = Ground::build(&["gw-1"], &["gw-1"]);
    let (hub, east) = (&ground.manager, &ground.east);
    let absent = |namespace: &str| {
        format!("Secret {namespace}/registry, with which the image is to be pulled, is not there")
    };

    // Nothing is touched before it is there.
    let said = ground.deploy_broker_with(FLAGS).fails_with(1);
    assert!(said.contains(&absent("subsea-broker")), "{said}");
    assert!(
        said.contains("kubectl create secret docker-registry registry --namespace subsea-broker"),
        "{said}"
    );
    assert_ne!(
        hub.kubectl(&["get", "namespace", "subsea-broker"]).code,
        Some(0)
    );
    hub.kubectl(&["create", "namespace", "subsea-broker"]).ok();
    make_secret(hub, "subsea-broker", "registry");
    ground.deploy_broker_with(FLAGS).ok();
    is_pulled(hub, "statefulsets -n subsea-broker", "registry");
    let said = ground.deploy_broker();
    assert!(
        said.contains(&format!("keeps image {IMAGE}; `--image` changes it")),
        "{said}"
    );
    assert!(
        said.contains("keeps pull secret registry; `--pull-secret` changes it"),
        "{said}"
    );
    is_pulled(hub, "statefulsets -n subsea-broker", "registry");

    let file = ground.token("east");
    let said = ground.join("east", &file, FLAGS).fails_with(1);
    assert!(said.contains(&absent("subsea")), "{said}");
    assert_ne!(east.kubectl(&["get", "namespace", "subsea"]).code, Some(0));
    let dry = ground.join("east", &file, &format!("{FLAGS} --dry-run -o yaml"));
    assert!(
        dry.stderr
            .contains(&format!("warning: {}", absent("subsea"))),
        "{dry}"
    );
    assert_eq!(dry.ok().matches("imagePullSecrets").count(), 2);
    east.kubectl(&["create", "namespace", "subsea"]).ok();
    make_secret(east, "subsea", "registry");
    ground.join("east", &file, FLAGS).ok();
    is_pulled(east, "daemonsets -n subsea", "registry");
    make_secret(east, "subsea", "other");
    let said = ground.join("east", &file, "--pull-secret other").said();
    assert!(
        said.contains(&format!("keeps image {IMAGE}; `--image` changes it")),
        "{said}"
    );
    is_pulled(east, "daemonsets -n subsea", "other");

    // What was kept may be gone, and need not be there.
    east.kubectl(&["-n", "subsea", "delete", "secret", "other"])
        .ok();
    let said = ground.join("east", &file, "").said();
    let wanted = "warning: Secret subsea/other, with which the image is to be pulled, is not there";
    assert!(said.contains(wanted), "{said}");
    ground.join("east", &file, "--no-pull-secret").ok();
    for daemon in objects(east, "daemonsets -n subsea") {
        let pod = &daemon["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"], Value::Null);
    }

    // The Secrets and the namespace are not ours.
    ground.subsea("leave --context hither --timeout 60s").ok();
    let left: Vec<Value> = objects(east, "secrets -n subsea");
    assert_eq!(left.len(), 1, "{left:?}");
}
