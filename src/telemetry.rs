//! Logs on standard error. Shell.
//!
//! `SUBSEA_LOG` filters as `RUST_LOG` does elsewhere, for example `info,subsea::tunnel=debug`.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// The filter is not understood.
#[derive(Debug, thiserror::Error)]
#[error("SUBSEA_LOG is not understood: {0}")]
pub struct FilterError(#[from] tracing_subscriber::filter::ParseError);

/// Starts the log. `default` applies without `SUBSEA_LOG`. A second start changes nothing.
///
/// # Errors
/// [`FilterError`] when `SUBSEA_LOG` is no filter.
pub fn start(format: LogFormat, default: &str) -> Result<(), FilterError> {
    let filter = match std::env::var("SUBSEA_LOG") {
        Ok(filter) if !filter.trim().is_empty() => EnvFilter::try_new(filter)?,
        Ok(_) | Err(_) => EnvFilter::new(default),
    };
    let builder = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(colour_on(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Only a test that starts twice in one process gets here; its first log goes on.
    drop(started);
    Ok(())
}

/// Whether `stream` shows colours: a terminal does, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colour_on(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
