//! `subsea status`. Shell.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use subsea_api::Role;
use tokio::time::Instant;

use super::agent_view;
use super::args::{self, StateArg};
use super::failure::{Failure, say};
use super::out::{self, Output};
use super::readiness::{self, Missing};
use super::view;
use crate::agent::status::Status as AgentStatus;
use crate::control::{self, Answer, ControlError, Verb};
use crate::gateway::status::Status;
use crate::state::StateDir;

/// How often `--wait` looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Shows how the running gateway or agent of a state directory stands with the other gateways
///
/// Exits with 0 when the gateway answered, whatever the state of its paths, and with 1 when none runs. With `--wait`,
/// exits with 0 as soon as every other cluster has a gateway and each of them is connected, else with 1 at the end of
/// the time, naming those that are not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    state: StateArg,

    /// Wait until everything is connected, at most this long
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    wait: Option<Duration>,

    #[command(flatten)]
    output: Output,
}

/// Asks the daemon and prints.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let dir = args.state.state_dir.as_path();
    if role(dir)? == Some(Role::Agent) {
        return of_agent(&args, dir).await;
    }
    let (status, missing) = match args.wait {
        Some(limit) => wait(dir, limit).await?,
        None => (
            ask::<Status>(dir).await.map_err(|e| e.failure(dir))?,
            Vec::new(),
        ),
    };
    args.output.print(&status, |status, colour| {
        view::table(status, out::now(), colour)
    })?;
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(Failure::failed(format!(
        "not connected in time:\n  {}",
        names.join("\n  ")
    )))
}

/// Whose state directory it is; none before a join.
fn role(dir: &Path) -> Result<Option<Role>, Failure> {
    let membership = StateDir::open(dir)?.membership()?;
    Ok(membership.map(|membership| membership.role))
}

/// The same of an agent: with `--wait`, until every other cluster is reached through a gateway.
async fn of_agent(args: &Args, dir: &Path) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let limit = args.wait.unwrap_or(Duration::ZERO);
    let mut told = false;
    let (status, missing) = loop {
        let is_over = start.elapsed() >= limit;
        match ask::<AgentStatus>(dir).await {
            Ok(status) => {
                let missing = agent_view::missing(&status);
                if missing.is_empty() || is_over {
                    break (status, missing);
                }
                if !told {
                    say(&format!("waiting: {}\n", missing.join("; ")));
                    told = true;
                }
            }
            Err(error) if is_over || !error.may_pass() => return Err(error.failure(dir)),
            Err(_) => {}
        }
        tokio::time::sleep(INTERVAL.min(limit.saturating_sub(start.elapsed()))).await;
    };
    args.output.print(&status, |status, colour| {
        agent_view::table(status, out::now(), colour)
    })?;
    if args.wait.is_none() || missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::failed(format!(
        "not reached in time:\n  {}",
        missing.join("\n  ")
    )))
}

/// Asks until nothing is missing or the time is over; gives the last answer and what is missing in it.
async fn wait(dir: &Path, limit: Duration) -> Result<(Status, Vec<Missing>), Failure> {
    let start = Instant::now();
    let mut told = String::new();
    let mut known: Vec<Missing> = Vec::new();
    loop {
        let is_over = start.elapsed() >= limit;
        let progress = match ask::<Status>(dir).await {
            Ok(status) => {
                let missing = readiness::missing(&status);
                if missing.is_empty() || is_over {
                    return Ok((status, missing));
                }
                if !is_same(&missing, &known) {
                    known = missing;
                    told.clear();
                }
                known
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("; ")
            }
            Err(error) if is_over || !error.may_pass() => return Err(error.failure(dir)),
            Err(_) => "the gateway does not answer yet".to_owned(),
        };
        // Reasons count seconds: they are said once for each set of what is missing.
        if told.is_empty() || (known.is_empty() && told != progress) {
            say(&format!("waiting: {progress}\n"));
            told = progress;
        }
        tokio::time::sleep(INTERVAL.min(limit.saturating_sub(start.elapsed()))).await;
    }
}

fn is_same(a: &[Missing], b: &[Missing]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_same(b))
}

async fn ask<S: DeserializeOwned + std::fmt::Debug>(dir: &Path) -> Result<S, AskError> {
    let state = StateDir::open(dir).map_err(|e| AskError::State(e.into()))?;
    match control::request(&state.socket_path(), Verb::Status)
        .await
        .map_err(AskError::Control)?
    {
        Answer::Status(status) => Ok(*status),
        answer @ (Answer::Stopping { .. } | Answer::Noted | Answer::Error { .. }) => Err(
            AskError::Control(ControlError::Protocol(format!("{answer:?}"))),
        ),
    }
}

enum AskError {
    State(Failure),
    Control(ControlError),
}

impl AskError {
    /// Whether it can be otherwise in a moment.
    fn may_pass(&self) -> bool {
        match self {
            Self::State(_) => true,
            Self::Control(error) => {
                matches!(
                    error,
                    ControlError::NotRunning { .. } | ControlError::Timeout { .. }
                )
            }
        }
    }

    fn failure(self, dir: &Path) -> Failure {
        match self {
            Self::State(failure) => failure,
            Self::Control(error @ ControlError::NotRunning { .. }) => {
                let verb = match role(dir) {
                    Ok(Some(Role::Agent)) => "agent",
                    Ok(_) | Err(_) => "gateway",
                };
                let hint = format!("is `subsea {verb} --state-dir {}` running?", dir.display());
                Failure::of(&error).hint(hint)
            }
            Self::Control(
                error @ (ControlError::Io { .. }
                | ControlError::Timeout { .. }
                | ControlError::Protocol(_)),
            ) => Failure::of(&error),
        }
    }
}
