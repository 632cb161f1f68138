//! Why the store refuses, and what to do about it.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use subsea_api::{Code, Problem};

use crate::registry::RowError;

/// The store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not a whole store. It is left as it is.
    #[error(
        "the store {path} is damaged and was left as it is: {reason}. Restore a backup with `subsea-broker restore`, or move the directory away to start an empty fleet"
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// A later version wrote it.
    #[error(
        "the store {path} has format {found}, this broker reads format {known}: use a newer `subsea-broker`"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// No room.
    #[error("the disk that holds the store {path} is full: free some space; nothing was changed")]
    Full {
        /// Which.
        path: PathBuf,
    },
    /// Something else went wrong with the file.
    #[error("could not {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else went wrong in the database.
    #[error("could not {doing} the store {path}: {source}")]
    Sql {
        /// What was tried.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A record cannot be read.
    #[error("in the store {path}: {source}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where and how.
        source: RowError,
    },
    /// A copy is no store of this fleet.
    #[error("{0}")]
    Foreign(String),
}

impl StoreError {
    /// Names what a database error means for an operator.
    pub fn sql(doing: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt {
                path,
                reason: source.to_string(),
            },
            _ => Self::Sql {
                doing,
                path,
                source,
            },
        }
    }

    /// Names what a file error means for an operator.
    pub fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == std::io::ErrorKind::StorageFull {
            Self::Full { path }
        } else {
            Self::Io {
                doing,
                path,
                source,
            }
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::Foreign(message) = error {
            return Self::new(Code::BadRequest, message);
        }
        tracing::error!(%error, "the store failed");
        let message = match error {
            StoreError::Full { .. } => "the broker's disk is full; nothing was changed",
            StoreError::Corrupt { .. }
            | StoreError::Newer { .. }
            | StoreError::Io { .. }
            | StoreError::Sql { .. }
            | StoreError::Damaged { .. }
            | StoreError::Foreign(_) => "the broker's store failed; nothing was changed",
        };
        Self::new(Code::StoreUnavailable, message)
            .hint("the broker's log says why; try again when it is mended")
    }
}
