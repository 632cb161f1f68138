//! `subsea deploy-broker` and `subsea token create`, with a real broker that stands where its pod would run.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use subsea_api::join_file::JoinFile;

use crate::bed::{self, LONG, Plane, Ran, until};

/// Ended with the test.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen then.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Broker {
    /// As the container of the manifests is started, with the rights of its account.
    fn start(plane: &Plane, namespace: &str, dir: &Path, url: &str) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_subsea")).with_file_name("subsea-broker");
        assert!(
            binary.is_file(),
            "{} is missing: cargo build --workspace",
            binary.display()
        );
        let listen = url.strip_prefix("https://").unwrap();
        let child = Command::new(binary)
            .args(["serve", "--data-dir"])
            .arg(dir.join("data"))
            .args(["--listen", listen, "--advertise", url])
            .arg(format!("--publish-admin={namespace}/subsea-broker-admin"))
            .env(
                "KUBECONFIG",
                plane.kubeconfig_of(namespace, "subsea-broker"),
            )
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }
}

fn free_url() -> String {
    format!("https://127.0.0.1:{}", bed::free_port())
}

fn subsea(plane: &Plane, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subsea"));
    command
        .args(arguments)
        .env("KUBECONFIG", plane.kubeconfig());
    bed::run(&mut command)
}

/// What a kubelet says of a pod that serves.
fn say_ready(plane: &Plane, namespace: &str) {
    let pod = ["-n", namespace, "get", "pod", "subsea-broker-0"];
    until("the StatefulSet has made its pod", LONG, || {
        plane.kubectl(&pod).code == Some(0)
    });
    let status =
        r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    plane
        .kubectl(&[
            "-n",
            namespace,
            "patch",
            "pod",
            "subsea-broker-0",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ])
        .ok();
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

#[test]
fn the_broker_is_deployed_and_gives_tokens() {
    let bed = bed::shared();
    let plane = &bed.east;
    let namespace = "subsea-deploy";
    let dir = tempfile::tempdir().unwrap();
    let url = free_url();
    let deploy = [
        "deploy-broker",
        "--context",
        "east",
        "--namespace",
        namespace,
        "--expose",
        &url,
    ];
    let brief = ["--timeout", "15s"];
    let first = ["--image", "subsea:typo", "--storage-size", "2Gi"];
    subsea(plane, &[&deploy[..], &brief, &first].concat()).fails();
    // A pod that never gets ready is not in the way of what mends it. Nothing runs this one either: what stands in the way
    // is told.
    let error = subsea(plane, &[&deploy[..], &brief].concat()).fails();
    assert!(
        error.contains("pod subsea-broker-0 is not ready as it was, and is replaced"),
        "{error}"
    );
    let get = |what: &str, at: &str| {
        let at = format!("jsonpath={at}");
        plane
            .kubectl(&["-n", namespace, "get", what, "-o", &at])
            .ok()
    };
    let image = get("pod/subsea-broker-0", "{.spec.containers[0].image}");
    assert!(image != "subsea:typo", "{image}");
    assert!(error.contains("changed StatefulSet"), "{error}");
    assert!(error.contains("pod subsea-broker-0: Pending"), "{error}");
    assert!(
        error.contains("volume claim data-subsea-broker-0"),
        "{error}"
    );

    let token = [
        "token",
        "create",
        "--context",
        "east",
        "--namespace",
        namespace,
        "--cluster",
        "east",
    ];
    let error = subsea(plane, &token).fails();
    assert!(error.contains("has not written it yet"), "{error}");

    say_ready(plane, namespace);
    let broker = Broker::start(plane, namespace, dir.path(), &url);
    let answer = subsea(plane, &deploy);
    assert!(answer.code == Some(0), "{answer}\n{}", log(dir.path()));
    assert!(
        answer.stdout.contains(&format!("answers at {url}")),
        "{answer}"
    );
    // A second time changes nothing, and leaves what the broker has written.
    let bare = &deploy[..5];
    for again in [&deploy[..], bare] {
        let again = subsea(plane, again);
        assert!(again.code == Some(0), "{again}");
        let changed = again.stderr.lines().any(|l| l.starts_with("changed "));
        assert!(!changed, "{again}");
    }
    let size = [bare, &["--storage-size", "3Gi"]].concat();
    let error = subsea(plane, &size).fails();
    assert!(
        error.contains("the volume of the broker that is there has 2Gi"),
        "{error}"
    );
    assert_eq!(get("service/subsea-broker", "{.spec.type}"), "ClusterIP");

    let path: PathBuf = dir.path().join("join.yaml");
    let file = ["-o", path.to_str().unwrap()];
    subsea(plane, &[&token[..], &file].concat()).ok();
    let join = JoinFile::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(join.cluster.to_string(), "east");
    assert_eq!(join.broker.urls, [url.as_str()]);

    drop(broker);
    let away = subsea(plane, &[&deploy[..], &["--timeout", "2s"]].concat()).fails();
    assert!(
        away.contains("the broker runs, but it does not answer this host"),
        "{away}"
    );
    assert!(subsea(plane, &token).fails().contains("cannot be reached"));
    plane
        .kubectl(&["delete", "namespace", namespace, "--wait=false"])
        .ok();
}

#[test]
fn a_load_balancer_that_does_not_come_and_nodes_are_told() {
    let bed = bed::exclusive();
    let plane = &bed.west;
    let namespace = "subsea-expose";
    let deploy = [
        "deploy-broker",
        "--namespace",
        namespace,
        "--timeout",
        "2s",
        "--expose",
    ];
    let error = subsea(plane, &[&deploy[..], &["loadbalancer"]].concat()).fails();
    assert!(error.contains("has got no address"), "{error}");
    assert!(error.contains("--expose nodeport"), "{error}");
    let balanced = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.7"}]}}}"#;
    let patch = ["-n", namespace, "patch", "service", "subsea-broker"];
    let status = ["--subresource=status", "--type=merge", "-p", balanced];
    plane.kubectl(&[&patch[..], &status].concat()).ok();
    let error = subsea(plane, &[&deploy[..], &["loadbalancer"]].concat()).fails();
    assert!(
        error.contains("members reach it at https://203.0.113.7:8443\n"),
        "{error}"
    );

    plane.fake_node("expose-1", &[], "192.0.2.71", &[]);
    let error = subsea(plane, &[&deploy[..], &["nodeport"]].concat()).fails();
    let line = error.lines().find(|l| l.contains("members reach it at"));
    let line = line.unwrap_or_else(|| panic!("{error}"));
    assert!(line.contains("https://192.0.2.71:3"), "{line}");
    let advertised = || {
        plane
            .kubectl(&[
                "-n",
                namespace,
                "get",
                "statefulset",
                "subsea-broker",
                "-o",
                "jsonpath={.spec.template.spec.containers[0].args}",
            ])
            .ok()
    };
    let args = advertised();
    let new = args.find("--advertise=https://192.0.2.71:3");
    // Members may know it.
    let old = args.find("--advertise=https://203.0.113.7:8443");
    assert!(new.is_some() && old.is_some() && new < old, "{args}");
    let error = subsea(plane, &[&deploy[..5], &["--drop-urls"]].concat()).fails();
    assert!(
        error.contains("members reach it at https://192.0.2.71:3"),
        "{error}"
    );
    assert!(!advertised().contains("203.0.113.7"));
    plane.kubectl(&["delete", "node", "expose-1"]).ok();
    plane
        .kubectl(&["delete", "namespace", namespace, "--wait=false"])
        .ok();
}
