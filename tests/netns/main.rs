//! The real binaries in network namespaces, used as an operator would: by their command lines.
//!
//! Each test builds a [`world::World`] of its own: an "internet", a broker and clusters, each a gateway and a pod.
//! Root is needed; what cannot run fails with the reason. `scripts/test` sets the machine up and runs it all.

#![expect(
    clippy::print_stderr,
    reason = "a failing test prints the logs of all its daemons"
)]

mod cluster;
#[expect(dead_code, reason = "others use the rest")]
mod command;
mod daemon;
mod flows;
mod namespace;
mod node;
mod numbered;
mod site;
mod talks;
mod traffic;
mod wait;
mod world;

mod agents;
mod blackhole;
mod broker_away;
mod drain;
mod faults;
mod interop;
mod join;
mod kernel;
mod leave;
mod mtu;
mod offloads;
mod overload;
mod paths;
mod placements;
mod refusals;
mod rekey;
mod security;
mod services;
mod several;
mod sight;
mod stripes;
