//! What the fuzz targets do with bytes. `tests/fuzz_replay.rs` includes these files, so that all of it also runs where
//! there is no fuzzer.

pub mod coalesce;
pub mod fair_queue;
pub mod inner_packet;
pub mod input;
pub mod packet;
pub mod split;
pub mod vnet;
pub mod wire;
