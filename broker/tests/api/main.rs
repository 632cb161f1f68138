//! The broker's API over real HTTPS on a free port.
#![expect(
    clippy::used_underscore_binding,
    reason = "the directory lives as long as its broker"
)]

mod common;
mod join;
