//! The command line of the broker: one verb a file, no logic. Shell; this file wires.

mod admin;
mod allocation;
mod args;
mod audit;
mod backup;
mod client;
mod cluster;
mod conflicts;
mod failure;
mod file;
mod format;
mod gateway;
mod openapi;
mod output;
mod restore;
mod serve;
mod status;
mod table;
mod token;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::client::AdminClient;
use self::failure::Failure;

/// The broker of a Subsea fleet: members, public keys, endpoints and CIDR allocations.
///
/// `serve` is the daemon. The other verbs are for the operator: they speak to a running broker with the admin
/// file that its first start wrote into its data directory.
///
/// Exit codes: 0 done, 1 failed, 2 the blocks conflict, 64 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "subsea-broker", version, max_term_width = 100)]
struct Cli {
    // Read from the environment by hand, so that `--help` does not show what is set there.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help = "The admin file (DATA-DIR/admin.yaml of the broker) [env: SUBSEA_ADMIN]"
    )]
    admin: Option<PathBuf>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::Args),
    #[command(subcommand)]
    Token(token::Verb),
    #[command(subcommand)]
    Cluster(cluster::Verb),
    #[command(subcommand)]
    Gateway(gateway::Verb),
    #[command(subcommand)]
    Allocation(allocation::Verb),
    #[command(subcommand)]
    Audit(audit::Verb),
    Backup(backup::Args),
    Restore(restore::Args),
    Status(status::Args),
    Openapi(openapi::Args),
    #[command(subcommand)]
    Admin(admin::Verb),
}

/// What every verb needs from the outside.
struct Context {
    /// The admin file of the command line or the environment.
    admin: Option<PathBuf>,
    /// Whether it stands on the command line.
    admin_given: bool,
}

impl Context {
    /// Opens the admin file; connects only with the first request.
    fn client(&self) -> Result<AdminClient, Failure> {
        let file = self.admin.as_deref().ok_or_else(|| {
            Failure::usage("this verb needs an admin file").hint(
                "pass `--admin DATA-DIR/admin.yaml`, or set SUBSEA_ADMIN; the broker writes the file at its first start",
            )
        })?;
        Ok(AdminClient::open(file)?)
    }
}

/// Parses the command line, does the verb and reports.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage_exit(&error),
    };
    let environment = std::env::var_os("SUBSEA_ADMIN").filter(|v: &OsString| !v.is_empty());
    let context = Context {
        admin_given: cli.admin.is_some(),
        admin: cli.admin.or(environment.map(PathBuf::from)),
    };
    match perform(&context, cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn perform(context: &Context, verb: Verb) -> Result<(), Failure> {
    let mut runtime = match verb {
        Verb::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        Verb::Token(_)
        | Verb::Cluster(_)
        | Verb::Gateway(_)
        | Verb::Allocation(_)
        | Verb::Audit(_)
        | Verb::Backup(_)
        | Verb::Restore(_)
        | Verb::Status(_)
        | Verb::Openapi(_)
        | Verb::Admin(_) => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(async {
        match verb {
            Verb::Serve(args) => serve::run(args).await,
            Verb::Token(verb) => token::run(context, verb).await,
            Verb::Cluster(verb) => cluster::run(context, verb).await,
            Verb::Gateway(verb) => gateway::run(context, verb).await,
            Verb::Allocation(verb) => allocation::run(context, verb).await,
            Verb::Audit(verb) => audit::run(context, verb).await,
            Verb::Backup(args) => backup::run(context, args).await,
            Verb::Restore(args) => restore::run(context, args).await,
            Verb::Status(args) => status::run(context, &args).await,
            Verb::Openapi(args) => openapi::run(&args),
            Verb::Admin(verb) => admin::run(verb),
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
