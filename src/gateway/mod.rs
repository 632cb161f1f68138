//! The gateway daemon: keeps the tunnels, the kernel and the broker's records as the fleet's snapshot says.

pub mod backoff;
pub mod certificate;
pub mod control;
pub mod describe;
pub mod echo;
pub mod fleet;
pub mod health;
pub mod mesh;
pub mod options;
pub mod registration;
pub mod status;

pub use options::{Driver, Mark, Options};
