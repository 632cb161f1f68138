//! At home in Kubernetes: what a cluster shows of its part of the fleet, and the daemons in it. This file wires.

pub mod client;
pub mod configuration;
pub mod daemon;
pub mod fault;
mod identity;
pub mod labels;
pub mod node;
pub mod publish;
pub mod reflect;
pub mod resources;
pub mod settings;
