//! `subsea-broker backup`.

use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use super::failure::Failure;
use super::file::SecretFile;
use super::output::Output;

/// Write a copy of the running broker's store to a file (mode 0600)
///
/// The copy holds the fleet's CA key: whoever reads it can admit members. Keep it as you keep the data directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    output: Output,
}

/// What was written.
#[derive(Serialize)]
struct Backup {
    file: PathBuf,
    bytes: u64,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let client = context.client()?;
    let mut file = SecretFile::create(&args.file)?;
    let bytes = client.download("/v1/admin/backup", &mut file).await?;
    let backup = Backup {
        file: file.commit()?,
        bytes,
    };
    args.output.print(&backup, |b| {
        format!("{} bytes written to {}\n", b.bytes, b.file.display())
    })
}
