//! Without the command line: two clusters of which everything comes by `kubectl apply -k`, and that a Job has admitted.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bed::{self, Plane};
use crate::ground::{Ground, LONG, objects};
use crate::wait::until;

/// The base with the component that has a cluster admitted.
const OVERLAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/overlays/admission");
const JOB: &[&str] = &[
    "-n",
    "subsea",
    "get",
    "job",
    "subsea-admission",
    "-o",
    "json",
];

fn apply(plane: &Plane, overlay: &Path) {
    let overlay = overlay.to_str().expect("a path of UTF-8");
    plane
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-k", overlay])
        .ok();
}

/// An overlay on the overlay, whose Job has one argument more.
fn with_argument(dir: &Path, argument: &str) -> PathBuf {
    let overlay = dir.join("overlay");
    std::fs::create_dir_all(&overlay).expect("a directory");
    let overlay = overlay.canonicalize().expect("a directory");
    let up = "../".repeat(overlay.components().count() - 1);
    let base = OVERLAY.trim_start_matches('/');
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: ['{up}{base}']
patches:
  - target: {{kind: Job, name: subsea-admission}}
    patch: |
      - {{op: add, path: /spec/template/spec/containers/0/args/-, value: '{argument}'}}
"
    );
    std::fs::write(overlay.join("kustomization.yaml"), text).expect("an overlay");
    overlay
}

/// Waits until the Job has ended; gives the condition that says how.
fn ended(plane: &Plane) -> Value {
    let mut condition = Value::Null;
    until("the Job has ended", LONG, || {
        let job: Value = serde_json::from_str(&plane.kubectl(JOB).ok()).expect("JSON");
        let all = job["status"]["conditions"].as_array().cloned();
        let is_last = |c: &Value| c["type"] == "Complete" || c["type"] == "Failed";
        let last = all.into_iter().flatten().find(is_last);
        condition = last.unwrap_or_default();
        !condition.is_null()
    });
    condition
}

fn end_job(plane: &Plane) {
    plane
        .kubectl(&["-n", "subsea", "delete", "job", "subsea-admission"])
        .ok();
}

fn give(plane: &Plane, file: &Path) {
    let from = format!("--from-file=join.yaml={}", file.display());
    let secret = ["-n", "subsea", "create", "secret", "generic", "subsea-join"];
    plane.kubectl(&[&secret[..], &[&from]].concat()).ok();
}

#[test]
fn clusters_are_admitted_by_a_job_and_installed_by_kubectl() {
    // Alone: three control planes and their daemons.
    let _alone = bed::exclusive();
    let ground = Ground::build(&["gw-1", "n-1"], &["gw-1"]);
    ground.deploy_broker();
    let (east, west) = (&ground.east, &ground.west);

    // The program waits for the Secret, as External Secrets may bring it later.
    apply(east, Path::new(OVERLAY));
    until("the Job's pod runs", LONG, || {
        let pods = "pods -n subsea -l app.kubernetes.io/name=subsea-admission";
        let pods = objects(east, pods);
        pods.first()
            .is_some_and(|pod| pod["status"]["phase"] == "Running")
    });
    let first = ground.token("east");
    let first = {
        let kept = ground.dir.join("first.join");
        std::fs::rename(first, &kept).expect("a join file");
        kept
    };
    give(east, &first);
    assert_eq!(ended(east)["type"], "Complete");

    // Blocks that overlap with those of others: no second attempt, and nothing is left of the first.
    let overlay = with_argument(&ground.dir, "--pod-cidr=10.1.0.0/17");
    apply(west, &overlay);
    give(west, &ground.token("west"));
    let failed = ended(west);
    let why = [&failed["type"], &failed["reason"]].map(|text| text.as_str().unwrap_or_default());
    assert_eq!(why, ["Failed", "PodFailurePolicy"], "{failed}");
    let pods = objects(
        west,
        "pods -n subsea -l app.kubernetes.io/name=subsea-admission",
    );
    let state = &pods[0]["status"]["containerStatuses"][0]["state"]["terminated"];
    let message = state["message"].as_str().unwrap_or_default();
    assert!(message.contains("pairs of blocks conflict"), "{pods:?}");
    west.kubectl(&["-n", "subsea", "get", "secret", "subsea-enrolment"])
        .fails();
    end_job(west);
    apply(west, Path::new(OVERLAY));
    assert_eq!(ended(west)["type"], "Complete");

    until("the gateways are connected", LONG, || {
        [east, west].iter().all(|plane| {
            let ready = |c: &Value| {
                let all = c["status"]["conditions"].as_array().cloned();
                let mut all = all.into_iter().flatten();
                all.any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            let all = objects(plane, "connections");
            all.len() == 1 && all.iter().all(ready)
        })
    });
    // What a pod sends before the agent of its node is ready goes where it always went.
    for plane in [east, west] {
        let rollout = [
            "rollout",
            "status",
            "daemonset/subsea-agent",
            "--timeout=60s",
        ];
        plane
            .kubectl(&[&["-n", "subsea"], &rollout[..]].concat())
            .ok();
    }
    ground.talk(&[("east/n-1", "west/gw-1"), ("west/gw-1", "east/n-1")]);
    repeats(&ground, &first);

    ground.subsea("leave --context yonder --timeout 120s").ok();
    ground.is_clean("west", west);
    leaves_in_two_steps(&ground);
}

/// A leave that was interrupted after the broker had been told knows the second time, too, whose nodes it sweeps.
fn leaves_in_two_steps(ground: &Ground) {
    let east = &ground.east;
    let pods = objects(
        east,
        "pods -n subsea -l app.kubernetes.io/name=subsea-agent",
    );
    let held = pods.iter().find(|pod| pod["spec"]["nodeName"] == "n-1");
    let held = held.and_then(|pod| pod["metadata"]["name"].as_str());
    let held = held.expect("the agent of n-1");
    let hold = |finalizers: &str| {
        let patch = format!("{{\"metadata\":{{\"finalizers\":{finalizers}}}}}");
        let pod = ["-n", "subsea", "patch", "pod", held, "--type=merge", "-p"];
        east.kubectl(&[&pod[..], &[&patch]].concat()).ok();
    };
    hold("[\"example.net/held\"]");
    let leave = "leave --context hither --timeout 30s";
    let said = ground.subsea(leave).fails_with(1);
    for wanted in [
        "cluster east has left fleet",
        "pods of subsea-agent are still there",
        "on node n-1",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    hold("null");
    // The disk of the node is another's by now.
    let member = "east/disks/n-1/var/lib/subsea/agent/member.json";
    let member = ground.dir.join(member);
    let text = std::fs::read_to_string(&member).expect("who the agent is");
    assert!(text.contains("\"east\""), "{text}");
    std::fs::write(&member, text.replace("\"east\"", "\"north\"")).expect("who it is now");
    let said = ground
        .subsea("leave --context hither --timeout 60s")
        .fails_with(1);
    for wanted in [
        "the broker was told by an earlier leave",
        "swept 1 nodes",
        "node n-1 is not swept: left as it is: /var/lib/subsea/agent is of cluster north of fleet",
        "not of cluster east of fleet",
        "deleted Namespace subsea",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    assert!(member.exists());
}

/// The Job can run again, also with a file that is spent; from a laptop it is the same verb.
fn repeats(ground: &Ground, first: &Path) {
    let east = &ground.east;
    let credential = || {
        let path = ["-o", "jsonpath={.data.credential}"];
        let get = ["-n", "subsea", "get", "secret", "subsea-enrolment"];
        east.kubectl(&[&get[..], &path].concat()).ok()
    };
    let before = credential();
    end_job(east);
    apply(east, Path::new(OVERLAY));
    assert_eq!(ended(east)["type"], "Complete");
    // Nor does it need the file, once the cluster is admitted.
    let forget = ["-n", "subsea", "delete", "secret", "subsea-join"];
    east.kubectl(&forget).ok();
    end_job(east);
    apply(east, Path::new(OVERLAY));
    assert_eq!(ended(east)["type"], "Complete");
    let enrol = |file: &Path| {
        ground.subsea(&format!(
            "join {} --context hither --enrol-only",
            file.display()
        ))
    };
    let said = enrol(first).said();
    assert!(
        said.contains("with this join file: nothing to do"),
        "{said}"
    );
    // A new file changes what there is, and the old one is of no use then.
    let second = ground.token("east");
    let said = enrol(&second).said();
    assert!(said.contains("cluster east is a member of fleet"), "{said}");
    let said = enrol(&second).said();
    assert!(
        said.contains("with this join file: nothing to do"),
        "{said}"
    );
    let said = enrol(first).said();
    assert!(
        said.contains("this join file was used: nothing to do"),
        "{said}"
    );
    assert_eq!(
        credential(),
        before,
        "nodes that enrol just now are not cut off"
    );
    // The Secret of another cluster is not taken.
    let said = enrol(&ground.token("west")).fails_with(2);
    assert!(said.contains("enrols cluster east of fleet"), "{said}");
}
