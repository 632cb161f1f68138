//! A file of a secret that is written whole or not at all, for the eyes of its owner. Shell.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::failure::Failure;

/// A file that is being written beside the one that it will replace.
pub(super) struct SecretFile {
    draft: PathBuf,
    target: PathBuf,
    file: File,
}

impl SecretFile {
    /// Begins one of mode 0600.
    pub(super) fn create(target: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(format!("`{}` cannot be written: {error}", target.display()))
        };
        let name = target
            .file_name()
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::IsADirectory)))?;
        if fs::metadata(target).is_ok_and(|meta| !meta.is_file()) {
            return Err(failed(io::Error::other("it exists, and is no file")));
        }
        let draft = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let draft = target.with_file_name(draft);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        Ok(Self {
            draft,
            target: target.to_owned(),
            file,
        })
    }

    /// Writes it and puts it in its place.
    pub(super) fn write(mut self, text: &str) -> Result<(), Failure> {
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.draft, &self.target))
            .map_err(|error| {
                Failure::failed(format!(
                    "`{}` cannot be written: {error}",
                    self.target.display()
                ))
            })
    }
}

impl Drop for SecretFile {
    /// Removes the draft of a verb that failed; there is none when it did not.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.draft)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.draft.display(), %error, "could not remove a draft");
        }
    }
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
        drop(SecretFile::create(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        SecretFile::create(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(SecretFile::create(Path::new("/dev/null")).is_err());
        assert!(SecretFile::create(Path::new("/nowhere/x")).is_err());
    }
}
