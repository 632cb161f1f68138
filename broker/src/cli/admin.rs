//! `subsea-broker admin`: verbs on the broker's own host.

use std::path::PathBuf;

use super::failure::Failure;
use super::output::{Done, Output};

/// Manage the admin file, on the broker's host
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    Reissue(Reissue),
}

/// Write DATA-DIR/admin.yaml anew, with a new certificate; the broker may run or not
#[derive(Debug, clap::Args)]
pub(crate) struct Reissue {
    /// The broker's data directory
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(verb: Verb) -> Result<(), Failure> {
    let Verb::Reissue(args) = verb;
    let file = subsea_broker::reissue_admin(&args.data_dir).map_err(|e| Failure::of(&e))?;
    let file = file.display().to_string();
    let done = Done {
        action: "admin.reissue",
        subject: &file,
    };
    args.output.done(&done, &format!("{file} is written"))
}
