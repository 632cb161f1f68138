//! `subsea-broker openapi`.

use super::failure::Failure;
use super::output::Output;

/// Print the description of the broker's HTTP API (OpenAPI), as a running broker serves it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let document = subsea_broker::http::document();
    args.output.print(&document, |d| {
        let calls = d.paths.paths.iter().map(|(path, item)| {
            let methods = [
                ("GET", &item.get),
                ("PUT", &item.put),
                ("POST", &item.post),
                ("DELETE", &item.delete),
            ];
            let methods = methods
                .into_iter()
                .filter(|(_, operation)| operation.is_some());
            (
                super::format::list(methods.map(|(name, _)| name)),
                path.clone(),
            )
        });
        let mut table = super::table::Table::new(["METHODS", "PATH"]);
        for (methods, path) in calls {
            table.row([methods, path]);
        }
        table
    })
}
