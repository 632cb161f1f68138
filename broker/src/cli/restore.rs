//! `subsea-broker restore`.

use std::path::PathBuf;

use subsea_api::admin::BrokerStatus;

use super::failure::Failure;
use super::output::{self, Output};
use super::{Context, serve, status};

/// Put a backup in place of the store
///
/// With --admin in a running broker, with --data-dir in a stopped one. The fleet gets a new epoch: members start
/// over from it, and tunnels to members that the backup does not know stay up for 10 minutes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What `backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The data directory of a broker that is not running
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    // clap does not see a conflict with a global flag.
    if args.data_dir.is_some() && context.admin_given {
        return Err(Failure::usage(
            "`--admin` and `--data-dir` cannot be used together: is the broker running or not?",
        ));
    }
    let restored: BrokerStatus = if let Some(dir) = &args.data_dir {
        // It warns when revocations since the backup cannot be carried over.
        serve::log()?;
        subsea_broker::restore_local(dir, &args.file).map_err(|e| Failure::of(&e))?
    } else {
        let client = context.client()?;
        let unreadable = |e| Failure::failed(format!("cannot read `{}`: {e}", args.file.display()));
        let bytes = std::fs::read(&args.file).map_err(unreadable)?;
        client.upload("/v1/admin/restore", bytes).await?
    };
    args.output
        .print(&restored, |s| status::table(s, output::now()))
}
