//! At home in Kubernetes: what a cluster shows of its part of the fleet, and the daemons in it. This file wires.

pub mod client;
pub mod fault;
pub mod labels;
pub mod node;
pub mod publish;
pub mod reflect;
pub mod resources;
