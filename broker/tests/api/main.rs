//! The broker's API over real HTTPS on a free port.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod agents;
mod bounds;
mod certificate;
mod common;
mod durability;
mod enrolment;
mod join;
mod kill;
mod leases;
mod listeners;
mod openapi;
mod rights;
#[path = "../signer/mod.rs"]
mod signer;
mod watch;
