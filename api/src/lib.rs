//! What every part of Subsea agrees on: names, keys, CIDR arithmetic, allocation rules, the fleet
//! snapshot and the bodies of the broker's HTTP API. PURE: no clock, socket, file or environment.
//!
//! Start with [`snapshot::Snapshot`]: it is what gateways, agents and DNS act on.
#![forbid(unsafe_code)]

pub mod admin;
pub mod allocation;
pub mod cidr;
pub mod conflict;
pub mod enrolment;
pub mod enrolment_file;
pub mod id;
pub mod join_file;
pub mod jwks;
pub mod key;
pub mod member;
pub mod problem;
pub mod secret;
pub mod service_account;
pub mod snapshot;
pub mod time;

pub use allocation::{Allocation, AllocationIndex, Kind};
pub use cidr::{Cidr, CidrRequest, Family};
pub use conflict::{Conflict, Owner};
pub use id::{ClusterId, FleetName, Issuer, Namespace, NodeName, Role};
pub use jwks::Jwks;
pub use key::PublicKey;
pub use problem::{Code, Problem};
pub use secret::Token;
pub use service_account::ServiceAccountToken;
pub use snapshot::{Delta, Snapshot};
pub use time::UnixMillis;
