//! Logs on standard error. Shell.
//!
//! `SUBSEA_LOG` filters as `RUST_LOG` does elsewhere, for example `info,subsea::tunnel=debug`.

use std::io;
use std::sync::OnceLock;

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

/// Replaces the filter of the log that was started.
type Reload = Box<dyn Fn(EnvFilter) + Send + Sync>;

static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Whether `SUBSEA_LOG` says what is in the log.
fn from_environment() -> Option<String> {
    let filter = std::env::var("SUBSEA_LOG").ok();
    filter.filter(|filter| !filter.trim().is_empty())
}

/// Says anew what is in the log, unless `SUBSEA_LOG` does.
///
/// # Errors
/// [`FilterError`] when `filter` is none; nothing is changed then.
pub fn set(filter: &str) -> Result<(), FilterError> {
    let filter = EnvFilter::try_new(filter)?;
    if from_environment().is_none()
        && let Some(reload) = RELOAD.get()
    {
        reload(filter);
    }
    Ok(())
}

/// Starts the log. `default` applies without `SUBSEA_LOG`. A second start changes nothing.
///
/// # Errors
/// [`FilterError`] when `SUBSEA_LOG` is no filter.
pub fn start(format: LogFormat, default: &str) -> Result<(), FilterError> {
    let filter = match from_environment() {
        Some(filter) => EnvFilter::try_new(filter)?,
        None => EnvFilter::new(default),
    };
    let builder = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => {
            let builder = builder
                .with_ansi(colour_on(&io::stderr()))
                .with_filter_reloading();
            let handle = builder.reload_handle();
            reloading(move |filter| handle.reload(filter));
            builder.try_init()
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            reloading(move |filter| handle.reload(filter));
            builder.try_init()
        }
    };
    // Only a test that starts twice in one process gets here; its first log goes on.
    drop(started);
    Ok(())
}

fn reloading(
    reload: impl Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync + 'static,
) {
    let reload = move |filter| {
        if let Err(error) = reload(filter) {
            tracing::warn!(%error, "the filter of the log could not be replaced");
        }
    };
    // Only a test that starts twice in one process gets here twice; its first log goes on.
    drop(RELOAD.set(Box::new(reload)));
}

/// Whether `stream` shows colours: a terminal does, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colour_on(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
