//! The broker's directory: one broker at a time, files for its eyes only, each written whole or not at all. Shell.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::store::StoreError;
use crate::store::sqlite::{sibling, sync_directory};
use crate::tls::{TlsError, random};

/// The store.
pub(crate) const STORE: &str = "store.db";
/// Where a restore puts the store that it replaces.
pub(crate) const OLD_STORE: &str = "store.db.old";
/// How an operator reaches the broker.
pub(crate) const ADMIN_FILE: &str = "admin.yaml";
/// The address that the broker listens on.
pub(crate) const LISTEN: &str = "listen";
/// What drafts of copies begin with; they are removed at the start.
pub(crate) const DRAFT_PREFIX: &str = ".draft-";

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another broker works on it.
    #[error(
        "the data directory {path} is in use by the broker with process id {pid}: stop it first, or use another directory"
    )]
    Locked {
        /// Which.
        path: PathBuf,
        /// Whose.
        pid: String,
    },
    /// It is a directory of others.
    #[error(
        "the data directory {path} holds other files and is open to others (mode {mode:o}): use a directory of its own, or `chmod 700` this one if it is meant"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] StoreError),
    /// A restore put the store aside and did not get to the end.
    #[error(
        "{old} exists without {store}: a restore was cut short. Repeat `subsea-broker restore`, or move it away to start an empty fleet"
    )]
    CutShort {
        /// What was put aside.
        old: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// The store is gone but its log is there.
    #[error(
        "{log} exists without {store}: put the store back beside it, or move both away to start an empty fleet"
    )]
    Orphan {
        /// The log.
        log: PathBuf,
        /// The store.
        store: PathBuf,
    },
}

/// A directory that this process has for itself.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, and takes it.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] while another broker has it; [`DataDirError::Foreign`] for a directory that is
    /// not ours to close.
    pub(crate) fn take(path: &Path) -> Result<Self, DataDirError> {
        if let Some(mode) = foreign(path).map_err(|e| StoreError::io("read", path, e))? {
            return Err(DataDirError::Foreign {
                path: path.to_owned(),
                mode,
            });
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)))
            .map_err(|e| StoreError::io("create", path, e))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| StoreError::io("open", &lock_path, e))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(StoreError::io("lock", &lock_path, error.into()).into());
            }
            let mut pid = String::new();
            // The name of the holder is a kindness; the refusal stands without it.
            let _ = lock.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(DataDirError::Locked {
                path: path.to_owned(),
                pid,
            });
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|e| StoreError::io("write", &lock_path, e))?;
        let dir = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        dir.remove_drafts();
        Ok(dir)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The store's file, whether or not it exists.
    ///
    /// # Errors
    /// [`DataDirError::Orphan`] when a log is there without its store: an empty store would swallow it;
    /// [`DataDirError::CutShort`] when only the store that a restore put aside is there.
    pub(crate) fn store(&self) -> Result<(PathBuf, bool), DataDirError> {
        let store = self.path.join(STORE);
        let exists = store
            .try_exists()
            .map_err(|e| StoreError::io("look for", &store, e))?;
        let log = sibling(&store, "-wal");
        if !exists && std::fs::metadata(&log).is_ok_and(|m| m.len() > 0) {
            return Err(DataDirError::Orphan { log, store });
        }
        let old = self.path.join(OLD_STORE);
        if !exists && old.exists() {
            return Err(DataDirError::CutShort { old, store });
        }
        Ok((store, exists))
    }

    /// Removes what a killed process left half copied.
    fn remove_drafts(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else {
            return;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(DRAFT_PREFIX)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(file = %entry.path().display(), %error, "could not remove a stale draft");
            }
        }
    }
}

/// The mode of a directory that is open to others and holds files, but none of a broker's.
fn foreign(path: &Path) -> std::io::Result<Option<u32>> {
    let mode = match std::fs::metadata(path) {
        Ok(meta) => meta.permissions().mode() & 0o777,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let for_others = mode & 0o077;
    if for_others == 0 {
        return Ok(None);
    }
    let mut empty = true;
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if [STORE, DRAFT_PREFIX, ADMIN_FILE]
            .iter()
            .any(|ours| name.starts_with(ours))
        {
            return Ok(None);
        }
        // The root of a fresh volume has this one.
        empty &= name == "lost+found";
    }
    Ok((!empty).then_some(mode))
}

/// Writes a file of mode 0600 whole or not at all.
///
/// # Errors
/// When it is not durable; an earlier file is untouched then.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let io = |e| StoreError::io("write", path, e);
    // Its mode is 0600 from the beginning.
    let mut draft = tempfile::Builder::new()
        .prefix(DRAFT_PREFIX)
        .tempfile_in(dir)
        .map_err(io)?;
    draft.write_all(content).map_err(io)?;
    draft.as_file().sync_all().map_err(io)?;
    draft.persist(path).map_err(|e| io(e.error))?;
    sync_directory(path)
}

/// A random name for a history.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn new_epoch() -> Result<String, TlsError> {
    Ok(crate::auth::hex(&random::<8>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_broker_is_refused_and_told_by_whom() {
        let tmp = tempfile::tempdir().unwrap();
        let first = DataDir::take(tmp.path()).unwrap();
        let error = DataDir::take(tmp.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        assert!(
            DataDir::take(tmp.path()).is_ok(),
            "a stale lock is no obstacle"
        );
    }

    #[test]
    fn drafts_go_and_files_are_private() {
        let tmp = tempfile::tempdir().unwrap();
        let draft = tmp.path().join(".draft-x");
        std::fs::write(&draft, "x").unwrap();
        let dir = DataDir::take(tmp.path()).unwrap();
        assert!(!draft.exists());
        let file = dir.path().join("f");
        write_private(&file, b"1").unwrap();
        write_private(&file, b"2").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"2");
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_directory_of_others_is_not_closed_to_them() {
        let tmp = tempfile::tempdir().unwrap();
        let mode = |to| std::fs::set_permissions(tmp.path(), std::fs::Permissions::from_mode(to));
        let is = || std::fs::metadata(tmp.path()).unwrap().permissions().mode() & 0o777;
        std::fs::write(tmp.path().join("theirs"), "x").unwrap();
        mode(0o755).unwrap();
        let error = DataDir::take(tmp.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Foreign { mode: 0o755, .. }));
        assert_eq!(is(), 0o755);
        assert!(!tmp.path().join("lock").exists());
        std::fs::write(tmp.path().join(STORE), "x").unwrap();
        drop(DataDir::take(tmp.path()).unwrap());
        assert_eq!(is(), 0o700, "our own is closed");
    }

    #[test]
    fn a_restore_that_was_cut_short_does_not_become_an_empty_fleet() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join(OLD_STORE), "x").unwrap();
        let dir = DataDir::take(tmp.path()).unwrap();
        assert!(matches!(dir.store(), Err(DataDirError::CutShort { .. })));
        std::fs::write(tmp.path().join(STORE), "x").unwrap();
        assert!(dir.store().unwrap().1);
    }

    #[test]
    fn a_log_without_its_store_is_not_swallowed() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("store.db-wal"), "x").unwrap();
        let dir = DataDir::take(tmp.path()).unwrap();
        assert!(matches!(dir.store(), Err(DataDirError::Orphan { .. })));
    }
}
