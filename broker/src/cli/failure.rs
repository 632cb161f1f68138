//! How a verb fails: exit code, `error:` and `hint:`. Shell.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use subsea_api::Code;

use super::client::ClientError;
use super::output;

/// Why a verb failed and what the user can do.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Failed,
    Conflicts,
    Usage,
    /// Whoever read standard output has gone, which is no failure.
    ReaderGone,
}

impl Failure {
    /// The verb could not be done: exit 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The command line makes no sense: exit 64.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Standard output could not be written.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            Self::new(Kind::ReaderGone, "")
        } else {
            Self::failed(format!("cannot write to standard output: {error}"))
        }
    }

    /// An error of the broker's own code, with its causes.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause in their own text.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self::failed(message)
    }

    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it on standard error and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        if self.kind != Kind::ReaderGone {
            let mut text = format!("error: {}\n", self.message);
            if let Some(hint) = &self.hint {
                text.push_str("\nhint: ");
                text.push_str(hint);
                text.push('\n');
            }
            // When standard error is gone too, the exit code is all that is left to say.
            drop(std::io::stderr().lock().write_all(text.as_bytes()));
        }
        ExitCode::from(match self.kind {
            Kind::ReaderGone => 0,
            Kind::Failed => 1,
            Kind::Conflicts => 2,
            Kind::Usage => 64,
        })
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let conflicts = matches!(&error, ClientError::Problem(p) if p.code == Code::CidrConflict);
        let kind = if conflicts {
            Kind::Conflicts
        } else {
            Kind::Failed
        };
        Self {
            kind,
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}

/// Prints clap's answer: help and version on standard output with exit 0, the rest on standard error with 64.
pub(crate) fn usage_exit(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() {
        return ExitCode::from(64);
    }
    match printed.and_then(|()| output::flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => Failure::output(&e).report(),
    }
}
