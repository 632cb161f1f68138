//! `--dry-run -o yaml` of verbs that install. Shell.

use clap::ValueEnum;

use super::failure::Failure;
use super::out;
use crate::kube::manifests::{self, Object};

/// Print instead of install.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct DryRun {
    /// Print the objects, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// How to print them
    #[arg(
        short = 'o',
        long = "output",
        value_name = "FORMAT",
        default_value = "yaml",
        requires = "dry_run"
    )]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
}

impl DryRun {
    /// Whether to print only.
    pub(super) fn wanted(self) -> bool {
        self.dry_run
    }

    /// Prints the objects.
    pub(super) fn print(self, objects: &[Object]) -> Result<(), Failure> {
        let text = match self.format {
            Format::Yaml => manifests::print(objects).map_err(|e| Failure::of(&e))?,
        };
        out::print(&text)
    }
}
