//! The broker of a Subsea fleet: members, public keys, endpoints and CIDR allocations. It is never on the data
//! path and decides nothing about liveness.
//!
//! [`serve()`] wires the rooms: `registry` and `ipam` decide (PURE), `store` makes durable, `http` speaks to
//! members and operators, `hub` tells the fleet. Start with [`registry`].
#![forbid(unsafe_code)]

mod address;
pub mod auth;
mod clock;
mod data_dir;
pub mod http;
mod hub;
pub mod ipam;
mod lease;
mod local;
mod publish;
pub mod registry;
mod serve;
mod server;
mod stall;
mod status;
pub mod store;
pub mod tls;
mod url;

pub use local::{reissue_admin, restore_local};
pub use publish::SecretName;
pub use serve::{LEASE, ServeConfig, ServeError, serve};
