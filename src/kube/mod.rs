//! At home in Kubernetes: what is installed there, and what a cluster shows of its part of the fleet. This file wires.

pub mod labels;
pub mod resources;
