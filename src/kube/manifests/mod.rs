//! The objects that are installed: the YAML under `manifests/` in this program, with what was chosen put in. This file wires.

mod broker;
mod cluster;
mod edit;
mod image;
mod yaml;

pub use kube::api::DynamicObject as Object;

pub use self::broker::{BrokerOptions, Expose, broker};
pub use self::cluster::{ClusterOptions, NAMESPACE, admission, cluster, sweeper};
pub use self::image::Image;
pub(in crate::kube) use self::yaml::name;
pub use self::yaml::{ManifestError, object, parse, print};

/// The image that is installed unless another one is named: both programs are in it.
pub const IMAGE: &str = concat!("subsea:", env!("CARGO_PKG_VERSION"));

/// The ConfigMap of the daemons' settings.
pub const SETTINGS: &str = "subsea-config";
/// The key in it.
pub const CONFIG: &str = "config.yaml";

#[cfg(test)]
mod tests;
