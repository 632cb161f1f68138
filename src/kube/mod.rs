//! At home in Kubernetes: what a cluster shows of its part of the fleet. This file wires.

pub mod labels;
pub mod resources;
