//! At home in Kubernetes: what is installed there, what a cluster shows of its part of the fleet, and the daemons in it. This
//! file wires.

pub mod apply;
pub mod cni;
pub mod configuration;
pub mod connect;
pub mod daemon;
pub mod deploy;
pub mod discover;
pub mod error;
pub mod fault;
mod identity;
pub mod keys;
pub mod labels;
pub mod manifests;
pub mod node;
pub mod obstacles;
pub mod prefixes;
pub mod publish;
pub mod reflect;
pub mod resources;
pub mod settings;
