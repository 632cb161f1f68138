//! What a gateway shows of itself and of the fleet in its own cluster: objects, when to write them, and events. PURE but for
//! this file, which wires.
//!
//! ```text
//! Status --shown--> objects --ledger--> what to write now --publish--> API server
//!                              ^  |                            |
//!                              |  +-> events                   |
//!                              +------- what is there <--------+
//! ```

pub mod change;
pub mod events;
pub mod ledger;
pub mod names;
pub mod object;
pub mod shown;

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod ledger_tests;
