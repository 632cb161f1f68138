//! How a verb fails: exit code, `error:` and `hint:`. Shell.

use std::error::Error;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use subsea_api::Code;

use crate::agent::AgentError;
use crate::enrol::EnrolError;
use crate::gateway::GatewayError;
use crate::kube::deploy::DeployError;
use crate::kube::error::KubeError;
use crate::kube::install::InstallError;
use crate::kube::remove::RemoveError;
use crate::state::StateError;

/// The check found conflicts, or the broker refused for good.
pub(super) const CONFLICTS: u8 = 2;

/// Why a verb failed and what the user can do.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// The verb could not be done: exit 1.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
            hint: None,
        }
    }

    /// The command line makes no sense: exit 64.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 64,
            ..Self::failed(message)
        }
    }

    /// An error with its causes, each said once.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            next = cause.source();
        }
        Self::failed(message)
    }

    /// Standard output could not be written. That whoever read it has gone is no failure.
    pub(super) fn output(error: &io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            Self {
                code: 0,
                message: String::new(),
                hint: None,
            }
        } else {
            Self::failed(format!("standard output cannot be written: {error}"))
        }
    }

    /// Adds what to do about it.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// What failed, without what to do.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Adds what to do about it, where that is known.
    pub(super) fn hint_if(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// Ends with this exit code.
    pub(super) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Prints it on standard error and gives the exit code.
    pub(super) fn report(self) -> ExitCode {
        if self.code != 0 {
            let mut text = format!("error: {}\n", self.message);
            if let Some(hint) = &self.hint {
                text.push_str("\nhint: ");
                text.push_str(hint);
                text.push('\n');
            }
            say(&text);
        }
        ExitCode::from(self.code)
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        let code = if matches!(error, EnrolError::Conflicts(_)) {
            CONFLICTS
        } else if error.is_usage() {
            64
        } else {
            1
        };
        Self {
            code,
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self {
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        Self {
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

impl From<KubeError> for Failure {
    fn from(error: KubeError) -> Self {
        Self::of(&error).hint_if(error.hint())
    }
}

impl From<DeployError> for Failure {
    fn from(error: DeployError) -> Self {
        Self::of(&error).hint_if(error.hint())
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let conflicts = matches!(&error, InstallError::Broker(source) if source.code() == Some(Code::CidrConflict));
        let code = if conflicts {
            CONFLICTS
        } else if matches!(error, InstallError::Auto | InstallError::Role(_)) {
            64
        } else {
            1
        };
        Self {
            code,
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

impl From<RemoveError> for Failure {
    fn from(error: RemoveError) -> Self {
        Self {
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self {
            hint: error.hint(),
            ..Self::of(&error)
        }
    }
}

/// Prints on standard error. When that is gone too, the exit code is all that is left to say.
pub(super) fn say(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Prints clap's answer: help and version on standard output with exit 0, the rest on standard error with 64.
pub(super) fn usage_exit(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() {
        return ExitCode::from(64);
    }
    match printed.and_then(|()| io::stdout().lock().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => Failure::output(&e).report(),
    }
}
