//! The `subsea` binary.
fn main() {}
