//! What can go wrong with an API server, and with the way to it.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Config};
use serde_json::json;
use subsea::kube::apply::Applier;
use subsea::kube::connect::answering;
use subsea::kube::error::KubeError;
use subsea::kube::manifests::{ClusterOptions, Object, cluster};
use subsea::kube::wait::{Interrupt, Limits, rolled_out};

use crate::bed::{self, LONG, Plane, Relay, run, until};

fn maps(plane: &Plane, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(plane.client(), namespace)
}

fn create(plane: &Plane, namespace: &str, name: &str) -> ConfigMap {
    let map = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    let maps = maps(plane, namespace);
    Plane::block_on(maps.create(&PostParams::default(), &map)).unwrap()
}

#[test]
fn a_restart_of_the_api_server_keeps_all() {
    let mut bed = bed::exclusive();
    let namespace = bed.east.namespace("restart");
    let before = create(&bed.east, &namespace, "kept");
    bed.east.service_account(&namespace, "keeper");
    let config = bed.east.kubeconfig_of(&namespace, "keeper");
    let address = bed.east.address();

    bed.east.stop_api_server();
    assert!(TcpStream::connect(address).is_err());
    let error = bed.east.kubectl(&["get", "nodes"]).fails();
    assert!(error.contains("refused"), "{error}");

    bed.east.start_api_server();
    assert_eq!(bed.east.address(), address);
    let maps = maps(&bed.east, &namespace);
    let after = Plane::block_on(maps.get("kept")).unwrap();
    assert_eq!(after.metadata.uid, before.metadata.uid);
    // The same certificate and keys too.
    let whoami = ["auth", "whoami"];
    bed.east.kubectl_as(&config, &whoami, "").ok();
}

#[test]
fn a_paused_api_server_does_not_answer_until_it_goes_on() {
    let mut bed = bed::exclusive();
    bed.east.pause_api_server();
    let late = bed
        .east
        .kubectl(&["get", "--raw", "/readyz", "--request-timeout=1s"]);
    late.fails();
    // The kernel still takes connections: that is what makes it another fault than a stop.
    TcpStream::connect(bed.east.address()).unwrap();
    bed.east.resume_api_server();
    bed.east.kubectl(&["get", "--raw", "/readyz"]).ok();
}

#[test]
fn an_api_server_that_hangs_is_taken_for_one_that_is_away() {
    let mut bed = bed::exclusive();
    let file = Kubeconfig::read_from(bed.east.kubeconfig()).unwrap();
    Plane::block_on(async {
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await;
        let client = answering(config.unwrap()).unwrap();
        let nodes: Api<Node> = Api::all(client);
        nodes.list(&ListParams::default()).await.unwrap();
        // In the middle of a connection that stands.
        bed.east.pause_api_server();
        let late = nodes.list(&ListParams::default()).await.unwrap_err();
        bed.east.resume_api_server();
        let late = KubeError::of("list", "nodes", late);
        assert!(late.is_transient(), "{late}");
        nodes.list(&ListParams::default()).await.unwrap();
    });
}

#[test]
fn a_test_that_leaves_a_server_stopped_harms_no_other() {
    let mut bed = bed::exclusive();
    bed.east.stop_api_server();
    bed.west.pause_api_server();
    drop(bed);
    let bed = bed::shared();
    for plane in [&bed.east, &bed.west] {
        assert_eq!(plane.kubectl(&["get", "--raw", "/readyz"]).ok(), "ok");
    }
}

#[test]
fn a_watch_from_forgotten_history_is_gone() {
    let mut bed = bed::exclusive();
    let namespace = bed.east.namespace("gone");
    let old = Plane::block_on(maps(&bed.east, &namespace).list(&ListParams::default())).unwrap();
    let old = old.metadata.resource_version.unwrap();
    for number in 0..5 {
        create(&bed.east, &namespace, &format!("later-{number}"));
    }
    let watched = |plane: &Plane| {
        let maps = maps(plane, &namespace);
        let first = async {
            let events = maps.watch(&WatchParams::default(), &old).await.unwrap();
            pin_mut!(events);
            events.next().await.unwrap()
        };
        Plane::block_on(async { tokio::time::timeout(LONG, first).await.unwrap() })
    };
    assert!(matches!(watched(&bed.east), Ok(WatchEvent::Added(_))));
    bed.east.forget_history();
    let code = match watched(&bed.east) {
        Ok(WatchEvent::Error(status)) | Err(kube::Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code, 410);
}

#[test]
fn a_relay_cuts_watches_and_refuses() {
    let bed = bed::shared();
    let plane = &bed.east;
    let namespace = plane.namespace("relay");
    let relay = Relay::to(plane.address());
    plane.service_account(&namespace, "watcher");
    let admin = std::fs::read_to_string(plane.kubeconfig()).unwrap();
    let admin: serde_json::Value = serde_json::from_str(&admin).unwrap();
    let token = admin["users"][0]["user"]["token"].as_str().unwrap();
    let config = plane.kubeconfig_for(token, relay.address());
    let maps: Api<ConfigMap> = Api::namespaced(Plane::client_of(&config), &namespace);
    // Until its stream ends.
    let ended = Plane::block_on(async {
        let events = maps.watch(&WatchParams::default(), "0").await.unwrap();
        pin_mut!(events);
        let first = tokio::time::timeout(LONG, events.next()).await.unwrap();
        assert!(matches!(first, Some(Ok(WatchEvent::Added(_)))), "{first:?}");
        relay.cut();
        tokio::time::timeout(LONG, async {
            while let Some(Ok(_)) = events.next().await {}
        })
        .await
    });
    ended.unwrap();
    let get = ["get", "--raw", "/readyz"];
    plane.kubectl_as(&config, &get, "").ok();
    relay.refuse(true);
    plane.kubectl_as(&config, &get, "").fails();
    relay.refuse(false);
    plane.kubectl_as(&config, &get, "").ok();
    let address = relay.address();
    drop(relay);
    until("nobody listens any more", LONG, || {
        TcpStream::connect(address).is_err()
    });
}

/// A namespace of the kernel, not of the cluster.
struct Netns(String);

impl Netns {
    fn make() -> Self {
        let name = format!("subsea-{}-kube", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name])).ok();
        let made = Self(name);
        made.run(&["ip", "link", "set", "lo", "up"]).ok();
        made
    }

    fn run(&self, words: &[&str]) -> bed::Ran {
        let mut command = Command::new("ip");
        run(command.args(["netns", "exec", &self.0]).args(words))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

#[test]
fn the_same_kubeconfig_works_in_a_network_namespace() {
    let bed = bed::shared();
    let netns = Netns::make();
    let SocketAddr::V4(address) = bed.east.address() else {
        panic!("loopback is IPv4 here");
    };
    let get = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
    let connect = ["bash", "-c", &get];
    netns.run(&connect).fails();
    let relay = Relay::inside(&netns.0, bed.east.address());
    netns.run(&connect).ok();
    let (kubectl, config) = (bed.east.kubectl_path(), bed.east.kubeconfig());
    let ready = netns.run(&[
        kubectl.to_str().unwrap(),
        "--kubeconfig",
        config.to_str().unwrap(),
        "get",
        "--raw",
        "/readyz",
    ]);
    assert_eq!(ready.ok(), "ok");
    drop(relay);
}

/// The DaemonSet that runs on every node, and what it needs, with a node that is ready and one that is down.
fn half_up(plane: &Plane, namespace: &str) -> Object {
    let options = ClusterOptions {
        namespace: namespace.to_owned(),
        ..ClusterOptions::default()
    };
    let objects = cluster(&options).unwrap();
    let mut applier = Applier::new(plane.client(), false);
    Plane::block_on(applier.apply(&objects, &mut |_| {})).unwrap();
    for node in ["up", "down"] {
        plane.fake_node(node, &[], "192.0.2.77", &[]);
    }
    let unknown =
        r#"{"status":{"conditions":[{"type":"Ready","status":"Unknown","message":"gone"}]}}"#;
    let patch = ["patch", "node", "down", "--subresource=status"];
    plane
        .kubectl(&[&patch[..], &["--type=strategic", "-p", unknown]].concat())
        .ok();
    until("there are pods", LONG, || {
        let pods = ["-n", namespace, "get", "pods", "-o", "name"];
        plane.kubectl(&pods).ok().lines().count() == 2
    });
    objects.into_iter().next_back().unwrap()
}

/// When the API server answers again.
#[derive(Clone, Copy)]
enum Back {
    /// So long after it has gone.
    After(Duration),
    /// When nobody waits any more, but maxUnavailable is still being put back.
    Late,
}

#[test]
fn a_rollout_bears_an_api_server_that_is_away_and_leaves_no_room_behind() {
    let bed = bed::exclusive();
    let plane = &bed.east;
    let namespace = "subsea-patience";
    let agent = half_up(plane, namespace);
    let unavailable = || {
        let at = "jsonpath={.spec.updateStrategy.rollingUpdate.maxUnavailable}";
        let get = ["-n", namespace, "get", "daemonset", "subsea-agent", "-o"];
        plane.kubectl(&[&get[..], &[at]].concat()).ok()
    };
    let relay = Relay::to(plane.address());
    let admin = std::fs::read_to_string(plane.kubeconfig()).unwrap();
    let admin: serde_json::Value = serde_json::from_str(&admin).unwrap();
    let token = admin["users"][0]["user"]["token"].as_str().unwrap();
    let client = Plane::client_of(&plane.kubeconfig_for(token, relay.address()));
    let roomy = |line: &str| line.contains("ready on 0 of 1 nodes");
    // The time, and when the API server is back: long before its end, and after it. A slow machine needs seconds to begin.
    for (timeout, back, error) in [
        (20, Back::After(Duration::from_secs(2)), "is not rolled out"),
        (10, Back::Late, "does not answer"),
    ] {
        let timeout = Duration::from_secs(timeout);
        let mut lines = Vec::new();
        let mut raised = String::new();
        let end = Instant::now() + timeout;
        let ended = std::thread::scope(|scope| {
            let mut progress = |line: &str| {
                lines.push(line.to_owned());
                if raised.is_empty() && roomy(line) {
                    raised = unavailable();
                    relay.refuse(true);
                    relay.cut();
                    let away = match back {
                        Back::After(away) => away,
                        Back::Late => {
                            end.saturating_duration_since(Instant::now()) + Duration::from_secs(5)
                        }
                    };
                    let relay = &relay;
                    scope.spawn(move || {
                        std::thread::sleep(away);
                        relay.refuse(false);
                    });
                }
            };
            let mut applier = Applier::new(client.clone(), false);
            let limits = Limits {
                timeout,
                interrupt: &Interrupt::new(false),
            };
            Plane::block_on(rolled_out(&mut applier, &agent, limits, &mut progress))
        });
        let said = ended.unwrap_err().to_string();
        assert!(said.contains(error), "{said}: {lines:?}");
        for wanted in [
            "waiting until the API server answers: could not list",
            "the API server answers again",
        ] {
            assert!(lines.iter().any(|l| l.starts_with(wanted)), "{lines:?}");
        }
        assert_eq!([raised, unavailable()], ["2", "1"], "{lines:?}");
    }
    // Somebody who does not want to wait any more.
    let interrupt = Interrupt::new(false);
    let (mut raised, mut asked) = (String::new(), None);
    let mut progress = |line: &str| {
        if asked.is_none() && roomy(line) {
            raised = unavailable();
            asked = Some(Instant::now());
            interrupt.send_replace(true);
        }
    };
    let mut applier = Applier::new(client, false);
    let limits = Limits {
        timeout: LONG * 2,
        interrupt: &interrupt,
    };
    let ended = Plane::block_on(rolled_out(&mut applier, &agent, limits, &mut progress));
    assert!(matches!(ended, Err(KubeError::Interrupted)), "{ended:?}");
    let took = asked.expect("it was asked to end").elapsed();
    assert!(took < LONG / 2, "{took:?}");
    assert_eq!([raised, unavailable()], ["2", "1"]);
    plane.kubectl(&["delete", "node", "up", "down"]).ok();
    let mut applier = Applier::new(plane.client(), false);
    let objects = cluster(&ClusterOptions {
        namespace: namespace.to_owned(),
        ..ClusterOptions::default()
    });
    Plane::block_on(applier.delete(&objects.unwrap(), LONG, &mut |_| {})).unwrap();
}
