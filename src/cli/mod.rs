//! The command line of a node: one verb a file, no logic. This file wires.

mod agent;
mod agent_view;
mod args;
mod conflicts;
mod deploy_broker;
mod drain;
mod dry_run;
mod enrol_cluster;
mod failure;
#[cfg(test)]
mod fixture;
mod format;
mod gateway;
mod heading;
mod image;
mod join;
mod join_cluster;
mod kubernetes;
mod leave;
mod leave_cluster;
mod out;
mod preflight;
mod preflight_cluster;
mod readiness;
mod secret_file;
mod signals;
mod status;
mod sweep;
mod table;
mod token;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::failure::Failure;
use crate::telemetry::{self, LogFormat};

/// Encrypted cross-cluster networking for Kubernetes: the daemons of a cluster's nodes, and the verbs by which a
/// node joins and leaves a fleet.
///
/// Exit codes: 0 done, 1 failed, 2 the check found conflicts, 64 wrong usage, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "subsea", version, max_term_width = 100)]
struct Cli {
    /// How the log on standard error looks: text or json. `SUBSEA_LOG` sets what is in it, for example
    /// `info,subsea::gateway=debug`
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    log_format: LogFormat,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Preflight(preflight::Args),
    Join(join::Args),
    Gateway(gateway::Args),
    Agent(agent::Args),
    Status(status::Args),
    Drain(drain::Args),
    Leave(leave::Args),
    #[command(hide = true)]
    Sweep(sweep::Args),
    DeployBroker(deploy_broker::Args),
    Token(token::Args),
}

/// Parses the command line, does the verb and reports.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage_exit(&error),
    };
    match perform(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn perform(cli: Cli) -> Result<ExitCode, Failure> {
    let is_daemon = matches!(cli.verb, Verb::Gateway(_) | Verb::Agent(_));
    // What a verb asks an API server in vain, it tells by itself.
    let default = if is_daemon {
        "info"
    } else {
        "warn,kube_client=off"
    };
    telemetry::start(cli.log_format, default).map_err(|e| Failure::usage(e.to_string()))?;
    let mut runtime = if is_daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("the runtime cannot be started: {e}")))?;
    runtime.block_on(async {
        match cli.verb {
            Verb::Preflight(args) => preflight::run(args).await,
            Verb::Join(args) => join::run(args).await,
            Verb::Gateway(args) => Box::pin(gateway::run(args)).await,
            Verb::Agent(args) => Box::pin(agent::run(args)).await,
            Verb::Drain(args) => drain::run(args).await,
            Verb::Status(args) => status::run(args).await,
            Verb::Leave(args) => leave::run(args).await,
            Verb::Sweep(args) => sweep::run(args).await,
            Verb::DeployBroker(args) => deploy_broker::run(args).await,
            Verb::Token(args) => token::run(args).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
