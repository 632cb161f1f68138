//! The broker's API over real HTTPS on a free port.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod agents;
mod bounds;
mod certificate;
mod common;
mod durability;
mod join;
mod kill;
mod leases;
mod listeners;
mod openapi;
mod rights;
mod watch;
