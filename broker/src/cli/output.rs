//! Standard output: data as a table, JSON or YAML. Shell.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::SystemTime;

use clap::ValueEnum;
use serde::Serialize;
use subsea_api::UnixMillis;

use super::failure::Failure;

/// The `-o` flag of every verb that gives data.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// How to print the result
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        default_value = "table"
    )]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// What a verb without data of its own reports.
#[derive(Debug, Serialize)]
pub(crate) struct Done<'a> {
    /// What was done, named as in the audit log.
    pub(crate) action: &'a str,
    /// What it was done to.
    pub(crate) subject: &'a str,
}

impl Output {
    /// Prints `value`; as a table, what `table` makes of it.
    pub(crate) fn print<T: Serialize, D: Display>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> D,
    ) -> Result<(), Failure> {
        let bad = |e: String| Failure::failed(format!("cannot print the answer: {e}"));
        let text = match self.format {
            Format::Table => table(value).to_string(),
            Format::Json => {
                serde_json::to_string_pretty(value).map_err(|e| bad(e.to_string()))? + "\n"
            }
            Format::Yaml => serde_saphyr::to_string(value).map_err(|e| bad(e.to_string()))?,
        };
        print(text.as_bytes())
    }

    /// Prints that something was done; the sentence is for the table.
    pub(crate) fn done(&self, done: &Done<'_>, sentence: &str) -> Result<(), Failure> {
        self.print(done, |_| format!("{sentence}\n"))
    }
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::output(&e))
}

/// Flushes standard output.
pub(crate) fn flush() -> io::Result<()> {
    io::stdout().lock().flush()
}

/// The clock, for ages.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis::default().plus(since)
}
