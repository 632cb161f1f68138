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

mod crash;
mod faults;
mod harness;
mod identity;
mod publish;
