//! Subsea in Kubernetes. [`discover`] reads what a cluster says about its own network, and [`cni`] names the settings of its
//! network plugin that stand in the way.

pub mod cni;
pub mod discover;
