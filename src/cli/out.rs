//! Standard output: data as a table, JSON or YAML. Shell.

use std::io::{self, Write as _};
use std::time::SystemTime;

use clap::ValueEnum;
use serde::Serialize;
use subsea_api::UnixMillis;

use super::failure::Failure;
use crate::telemetry;

/// The `-o` flag of every verb that gives data.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Output {
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

impl Output {
    /// Prints `value`; as a table, what `table` makes of it, which is told whether to colour.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T, bool) -> String,
    ) -> Result<(), Failure> {
        let bad = |e: &dyn std::fmt::Display| {
            Failure::failed(format!("the result cannot be printed: {e}"))
        };
        let text = match self.format {
            Format::Table => table(value, colour()),
            Format::Json => serde_json::to_string_pretty(value).map_err(|e| bad(&e))? + "\n",
            Format::Yaml => serde_saphyr::to_string(value).map_err(|e| bad(&e))?,
        };
        print(&text)
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::output(&e))
}

/// Whether tables are coloured.
pub(super) fn colour() -> bool {
    telemetry::colour_on(&io::stdout())
}

/// The clock, for ages.
pub(super) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis::default().plus(since)
}
