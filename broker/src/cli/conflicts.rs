//! The table of blocks that may not meet. Shell.

use serde::Deserialize;
use subsea_api::{Code, Conflict};

use super::client::ClientError;
use super::failure::Failure;
use super::format;
use super::output::Output;
use super::table::Table;

/// The details of a [`Code::CidrConflict`].
#[derive(Deserialize)]
struct Details {
    conflicts: Vec<Conflict>,
}

/// Passes an answer on; a refusal for conflicts prints the pairs first, which are the data of such an answer.
pub(crate) fn shown<T>(answer: Result<T, ClientError>, output: &Output) -> Result<T, Failure> {
    if let Err(ClientError::Problem(problem)) = &answer
        && problem.code == Code::CidrConflict
    {
        let details = problem
            .details
            .clone()
            .map(serde_json::from_value::<Details>);
        if let Some(Ok(details)) = details {
            output.print(problem, |_| table(&details.conflicts))?;
        }
    }
    Ok(answer?)
}

fn table(conflicts: &[Conflict]) -> Table<6> {
    let header = [
        "WANTED",
        "OWNER",
        "EXISTING",
        "OWNER",
        "COMMON",
        "FREE INSTEAD",
    ];
    let mut table = Table::new(header);
    for conflict in conflicts {
        let Conflict {
            wanted,
            existing,
            common,
            free,
        } = conflict;
        table.row([
            format!("{} {}", wanted.what, wanted.cidr),
            wanted.owner.to_string(),
            format!("{} {}", existing.what, existing.cidr),
            existing.owner.to_string(),
            common.to_string(),
            format::list(free),
        ]);
    }
    table
}
