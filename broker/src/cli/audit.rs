//! `subsea-broker audit`.

use subsea_api::admin::AuditEntry;

use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::{Context, format};

/// Read the audit log: every change, who made it and when
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    List(List),
}

/// List the newest entries, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// At most so many entries
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,

    /// Only entries after this sequence number, from there on
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,

    #[command(flatten)]
    output: Output,
}

pub(crate) async fn run(context: &Context, verb: Verb) -> Result<(), Failure> {
    let client = context.client()?;
    let Verb::List(args) = verb;
    let limit = args.limit;
    let path = match args.after {
        Some(after) => format!("/v1/admin/audit?limit={limit}&after={after}"),
        None => format!("/v1/admin/audit?limit={limit}"),
    };
    let entries: Vec<AuditEntry> = client.get(&path).await?;
    args.output.print(&entries, |e| table(e))
}

fn table(entries: &[AuditEntry]) -> Table<6> {
    let mut table = Table::new(["SEQUENCE", "AT", "WHO", "ACTION", "SUBJECT", "DETAIL"]);
    for entry in entries {
        table.row([
            entry.sequence.to_string(),
            format::time(entry.at),
            entry.who.clone(),
            entry.action.clone(),
            entry.subject.clone(),
            entry.detail.clone(),
        ]);
    }
    table
}
