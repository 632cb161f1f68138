//! Files that are replaced whole or not at all. Shell.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroizing;

use super::error::StateError;

/// The largest file that is read: a snapshot of a fleet far larger than planned.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Tells temporary files of one process apart: two tasks may write at the same time.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether a file of this name is what a crash left of [`replace`].
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(".tmp-")
}

/// Reads a text; none when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, StateError> {
    aside(|| read_now(path))
}

fn read_now(path: &Path) -> Result<Option<Zeroizing<String>>, StateError> {
    let failed = |source| StateError::io("read", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let size = file.metadata().map_err(failed)?.len();
    // Room for all at once: a buffer that grows would leave copies of a secret behind.
    let room = usize::try_from(size.min(MAX_FILE)).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(String::with_capacity(room));
    match file.take(MAX_FILE).read_to_string(&mut text) {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(StateError::Corrupt {
            path: path.to_owned(),
            why: "it is no text".to_owned(),
        }),
        Err(e) => Err(failed(e)),
    }
}

/// Does what may take seconds, as a disk under load does, without a thread of the runtime: its other tasks go on meanwhile. What is
/// in the same task waits.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    let runtime = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if matches!(runtime, Ok(RuntimeFlavor::MultiThread)) {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// Writes a temporary file beside it, and renames that when it is on disk.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    aside(|| replace_now(dir, name, bytes))
}

fn replace_now(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StateError> {
    let target = dir.join(name);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".tmp-{}-{number}-{name}", std::process::id()));
    let written = write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, &target));
    if let Err(error) = written {
        if let Err(error) = fs::remove_file(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temporary.display(), %error, "could not remove a temporary file");
        }
        return Err(StateError::io("write", &target, error));
    }
    // The rename itself must outlive a power cut too.
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| StateError::io("write", &target, e))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_waits_for_a_disk_keeps_no_other_task_waiting() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let (done, disk) = mpsc::channel();
        let waits = runtime.spawn(async move {
            // The runtime would do this next, on the thread that waits for it.
            tokio::spawn(async move { done.send(()) });
            aside(|| disk.recv_timeout(Duration::from_secs(30)))
        });
        assert_eq!(runtime.block_on(waits).unwrap(), Ok(()));
        // Where there are no other threads, or no runtime at all, it is done here.
        assert_eq!(aside(|| 7), 7);
        let alone = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        assert_eq!(alone.block_on(async { aside(|| 7) }), 7);
    }
}
