//! Who owns the state directory. Shell.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::StateError;

/// Held by the owner of a state directory; the kernel lets go of it when the process dies, however it dies.
#[derive(Debug)]
#[must_use = "the directory is owned as long as the lock lives"]
pub struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Self, StateError> {
        loop {
            let file = open(path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
                    return Err(StateError::Locked {
                        path: dir,
                        pid: holder(&file),
                    });
                }
                Err(e) => return Err(StateError::io("lock", path, e.into())),
            }
            // `leave` may have removed the file between the open and the lock: then it is nobody's lock.
            if is_at(&file, path) {
                // For the message of whoever comes second; on a full disk it goes without.
                if let Err(error) = note(&file) {
                    tracing::debug!(%error, "could not note the pid in the lock file");
                }
                return Ok(Self { _file: file });
            }
        }
    }
}

fn open(path: &Path) -> Result<File, StateError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| StateError::io("open", path, e))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

/// Of fixed length, over what was there: a file cut first would lose its place on a full disk.
fn note(file: &File) -> io::Result<()> {
    file.write_all_at(format!("{:<11}\n", std::process::id()).as_bytes(), 0)
}

/// The process that noted itself, if it is alive: a note may be older than the lock.
fn holder(file: &File) -> Option<u32> {
    let mut note = [0; 12];
    let length = file.read_at(&mut note, 0).ok()?;
    let pid: u32 = std::str::from_utf8(&note[..length])
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}
