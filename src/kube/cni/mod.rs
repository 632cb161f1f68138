//! What a cluster's network plugin and service proxy are, and which of their settings stand in Subsea's way.
//!
//! One file a plugin: what it looks like in the API, which blocks it hands out, what of it stands in the way. `docs/cni.md`
//! says the same for people, with the sources. [`plugin::detect`] tells which one runs, [`findings`] what to set.

mod aws;
mod calico;
mod cilium;
mod finding;
mod flannel;
mod ovn;
mod plugin;
mod proxy;
mod traces;

pub use aws::AwsVpc;
pub use calico::{Calico, DataPlane, Ipam, Pool};
pub use cilium::{Cilium, Masquerade};
pub use finding::{Finding, Marks, Severity, Surroundings, findings};
pub use flannel::Flannel;
pub use ovn::{GatewayMode, Ovn};
pub(crate) use plugin::claims;
pub use plugin::{Cni, detect};
pub use proxy::{Proxy, ProxyMode};
pub use traces::{Device, MarkRule, ProxyTrace, Traces};
