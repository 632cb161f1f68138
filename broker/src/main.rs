//! The `subsea-broker` binary: the broker daemon and its admin verbs.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
