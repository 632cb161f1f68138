//! Real control planes: etcd, kube-apiserver and kube-controller-manager on loopback, without nodes.
//!
//! `scripts/build-kube` builds the programs. A test takes the planes that all tests share with [`bed::shared`], or, to
//! stop or restart something, with [`bed::exclusive`], and makes itself a namespace:
//!
//! ```ignore
//! let bed = bed::shared();
//! let namespace = bed.east.namespace("what-i-test");
//! bed.east.kubectl(&["-n", &namespace, "get", "pods"]).ok();
//! ```

#![expect(
    clippy::print_stderr,
    reason = "a failing test prints the logs of its control planes"
)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bed;
mod kubelet;

// Nodes, pods and packets are those of the namespace tests.
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/cluster.rs"]
mod cluster;
#[path = "../netns/command.rs"]
mod command;
#[path = "../netns/daemon.rs"]
mod daemon;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/namespace.rs"]
mod namespace;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/node.rs"]
mod node;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/site.rs"]
mod site;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/traffic.rs"]
mod traffic;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/wait.rs"]
mod wait;
#[expect(dead_code, reason = "others use the rest")]
#[path = "../netns/world.rs"]
mod world;

mod crash;
mod deploy;
mod dry_run;
mod faults;
mod fleet;
mod gitops;
mod ground;
mod harness;
mod identity;
mod install;
mod leave;
mod lost_node;
mod network;
mod prefixes;
mod private_registry;
mod publish;
mod roles;
mod takeover;
mod writers;
