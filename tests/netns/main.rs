//! The real binaries in network namespaces, used as an operator would: by their command lines.
//!
//! Each test builds a [`world::World`] of its own: an "internet", a broker and clusters, each a gateway and a pod.
//! Root is needed; what cannot run fails with the reason. `scripts/test` sets the machine up and runs it all.

#![expect(
    clippy::print_stderr,
    reason = "a failing test prints the logs of all its daemons"
)]

mod daemon;
mod flows;
mod namespace;
mod numbered;
mod site;
mod traffic;
mod wait;
mod world;

mod broker_away;
mod faults;
mod interop;
mod join;
mod kernel;
mod leave;
mod mtu;
mod offloads;
mod overload;
mod paths;
mod refusals;
mod rekey;
mod security;
mod stripes;
