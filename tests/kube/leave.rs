//! A leave that cannot sweep keeps what its repeat needs.

use crate::bed;
use crate::ground::{Ground, objects};

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
        .subsea("leave --context hither --timeout 8s --image nowhere/subsea:1")
        .fails_with(1);
    for wanted in [
        "cluster east has left fleet",
        "swept 0 nodes",
        "not all nodes are swept; Secret and namespace are kept",
        "node gw-1 is not swept after 8 s: pod subsea-sweeper-",
        "node n-1 is not swept after 8 s: pod subsea-sweeper-",
        "ImagePullBackOff: Back-off pulling image \"nowhere/subsea:1\"",
        "swept with the image nowhere/subsea:1; `--image` names another",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
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
    for wanted in [
        "the broker was told by an earlier leave",
        "swept 2 nodes",
        "deleted Namespace subsea",
        "nothing of Subsea is left in the cluster",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    ground.is_clean("east", east);
}
