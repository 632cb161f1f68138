//! At home in Kubernetes: what is installed there, and what a cluster shows of its part of the fleet. This file wires.

pub mod apply;
pub mod connect;
pub mod deploy;
pub mod error;
pub mod labels;
pub mod manifests;
pub mod obstacles;
pub mod resources;
