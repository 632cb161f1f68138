//! The `subsea` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    subsea::cli::run()
}
