//! How the state directory fails. PURE.

use std::io;
use std::path::{Path, PathBuf};

/// Why the state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such directory.
    #[error("there is no state directory `{}`", .path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// A directory that is somebody else's.
    #[error("`{}` holds other files and is open to others (mode {mode:o})", .path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process owns the directory.
    #[error("another process{} uses the state directory `{}`", holder(*.pid), .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Which, when it can be told.
        pid: Option<u32>,
    },
    /// The disk is full.
    #[error("the disk is full: `{}` was not written, what was there before is untouched", .path.display())]
    DiskFull {
        /// What.
        path: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("`{}` is damaged: {why}", .path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// The operating system refused.
    #[error("could not {what} `{}`", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No key could be made.
    #[error("no key could be made: {what}")]
    Random {
        /// Why.
        what: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl StateError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            Self::DiskFull {
                path: path.to_owned(),
            }
        } else {
            Self::Io {
                what,
                path: path.to_owned(),
                source,
            }
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Missing { .. } => "check `--state-dir`; `subsea join` makes it",
            Self::Foreign { .. } => {
                "choose a directory of its own, or `chmod 700` this one if it is meant"
            }
            Self::Locked { .. } => {
                "one state directory belongs to one daemon: stop it, or give this one its own directory"
            }
            Self::DiskFull { .. } => "make room and try again",
            Self::Corrupt { .. } => {
                "restore it from a backup, or `subsea leave --force` and join again with a new token"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as the user that owns the state directory, usually root"
            }
            Self::Io { .. } | Self::Random { .. } => return None,
        };
        Some(text.to_owned())
    }
}
