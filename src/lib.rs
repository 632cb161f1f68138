//! Subsea: encrypted cross-cluster networking for Kubernetes over WireGuard.
//!
//! One law makes the tree learnable: in every room `mod.rs` wires, PURE files decide, shells move bytes.
//! Arrows point one way: `api <- PURE <- shells (net, broker_client, state) <- rooms <- cli <- main`.
//! `docs/architecture.md` is the map; [`gateway`] is the room to enter first.

pub mod agent;
pub mod broker_client;
pub mod cli;
pub mod control;
pub mod enrol;
pub mod gateway;
pub mod host;
pub mod key;
pub mod kube;
pub mod membership;
pub mod monitor;
pub mod net;
pub mod state;
pub mod task;
pub mod telemetry;
pub mod tunnel;
