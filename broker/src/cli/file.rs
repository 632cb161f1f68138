//! Files with secrets in them: mode 0600, replaced whole or not at all. Shell.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::failure::Failure;

/// A file that appears under its name only when it is complete.
///
/// It is made before the broker is asked for anything, so that a directory that cannot be written costs no
/// token.
#[derive(Debug)]
pub(crate) struct SecretFile {
    temporary: NamedTempFile,
    target: PathBuf,
}

impl SecretFile {
    /// Makes the temporary file beside `path` (0600).
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::failed(format!("cannot write `{}`: {e}", path.display()))
        };
        let target = match fs::canonicalize(path) {
            Ok(target) if !target.is_file() => {
                return Err(failed(&"it exists and is not a regular file"));
            }
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(e) => return Err(failed(&e)),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".subsea-")
            .tempfile_in(directory(&target))
            .map_err(|e| failed(&e.kind()))?;
        Ok(Self { temporary, target })
    }

    /// Puts the file in its place, on disk.
    pub(crate) fn commit(self) -> Result<PathBuf, Failure> {
        let target = self.target;
        let failed =
            |e: io::Error| Failure::failed(format!("cannot write `{}`: {e}", target.display()));
        self.temporary.as_file().sync_all().map_err(failed)?;
        self.temporary
            .persist(&target)
            .map_err(|e| failed(e.error))?;
        File::open(directory(&target))
            .and_then(|d| d.sync_all())
            .map_err(failed)?;
        Ok(target)
    }
}

impl Write for SecretFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

fn directory(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join.yaml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut file = SecretFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        file.commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_not_replaced() {
        assert!(SecretFile::create(Path::new("/dev/null")).is_err());
        assert!(SecretFile::create(Path::new("/nowhere/join.yaml")).is_err());
    }
}
