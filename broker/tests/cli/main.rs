//! The command line of the broker, by its real binary: texts, exit codes and tables.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod help;
mod publish;
mod support;
mod usage;
mod verbs;
