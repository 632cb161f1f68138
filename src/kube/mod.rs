//! At home in Kubernetes: installing, discovering, the daemons there, and what a cluster shows of its part of the fleet. This
//! file wires.
//!
//! | file | what |
//! |---|---|
//! | `resources`, `labels` | the custom resources, and the labels of what is ours. PURE |
//! | `manifests/` | the YAML under `manifests/`, with what was chosen put in. PURE |
//! | `discover/`, `cni/` | what a cluster says about its network, and settings that stand in the way |
//! | `gateway_nodes`, `obstacles`, `progress`, `rollout` | which nodes are gateways; what is not as it should be, in words; how far a DaemonSet is. PURE |
//! | `connect`, `apply`, `error`, `tenants`, `live_image` | the API server that is meant; server-side apply and deletion; whose namespace it is; which image the daemons run |
//! | `deploy`, `install`, `wait`, `remove`, `operator_token` | what the verbs do, in order |
//! | `ground`, `patience` | what is looked at again and again, and looks that fail for a moment |
//! | `settings`, `configuration`, `identity`, `node`, `daemon` | a daemon's settings from files, its enrolment, its node, its life |
//! | `network/` | which network plugin and proxy there are, and what of them stands in the way |
//! | `reflect/`, `fault`, `publish` | what a gateway shows in its cluster: objects and events |
//! | `keys`, `clearing` | what a gateway tells the broker of its cluster: who signs tokens, and which nodes are no more |

pub mod apply;
pub mod clearing;
pub mod cni;
pub mod configuration;
pub mod connect;
pub mod daemon;
pub mod deploy;
pub mod discover;
pub mod error;
pub mod fault;
pub mod gateway_nodes;
mod ground;
mod identity;
pub mod install;
pub mod keys;
pub mod labels;
pub mod live_image;
pub mod manifests;
pub mod network;
pub mod node;
pub mod obstacles;
mod operator_token;
mod patience;
pub mod prefixes;
pub mod progress;
pub mod publish;
pub mod reflect;
pub mod remove;
pub mod resources;
pub mod rollout;
pub mod settings;
mod tenants;
pub mod wait;
