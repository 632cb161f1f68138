//! Reads and writes kernel parameters under `/proc/sys`, and remembers what they were before us. Shell.
//!
//! Those under `net` are of the network namespace of the thread that reads them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A parameter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not read.
    #[error("could not read kernel parameter `{key}`: {source}")]
    Read {
        /// Such as `net/ipv4/ip_forward`.
        key: String,
        /// Why.
        source: io::Error,
    },
    /// Not written.
    #[error("could not set kernel parameter `{key}` to {value}: {source}")]
    Write {
        /// Such as `net/ipv4/ip_forward`.
        key: String,
        /// To what.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// What it was could not be kept for later, so it was left as it is.
    #[error(
        "left kernel parameter `{key}` as it is, for its value could not be saved for `subsea leave`: {reason}"
    )]
    Unsaved {
        /// Such as `net/ipv4/ip_forward`.
        key: String,
        /// Why.
        reason: String,
    },
}

/// What a parameter was and what we made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// Its value before us.
    pub before: String,
    /// The value that we set.
    pub set: String,
}

/// Every parameter that we changed: what `subsea leave` needs.
pub type Saved = BTreeMap<String, Changed>;

/// Reads a parameter; `None` when the kernel does not have it.
///
/// # Errors
/// [`SysctlError::Read`].
pub fn read(key: &str) -> Result<Option<String>, SysctlError> {
    match std::fs::read_to_string(path(key)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError::Read {
            key: key.to_owned(),
            source,
        }),
    }
}

/// Writes a parameter.
///
/// # Errors
/// [`SysctlError::Write`].
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let failed = |source| SysctlError::Write {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    };
    std::fs::write(path(key), value).map_err(failed)
}

/// Puts back what each parameter was, unless somebody else has set it since or it went with its device.
///
/// # Errors
/// One for each parameter that could not be put back.
pub fn restore(saved: &Saved) -> Vec<SysctlError> {
    let mut errors = Vec::new();
    let mut ours = Vec::new();
    for (key, changed) in saved {
        match read(key) {
            Ok(now) if now.as_ref() == Some(&changed.set) => ours.push((key, changed)),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
    // The switches of forwarding overwrite others; they go first.
    ours.sort_by_key(|(key, _)| !SWITCHES.contains(&key.as_str()));
    errors.extend(
        ours.into_iter()
            .filter_map(|(key, changed)| write(key, &changed.before).err()),
    );
    errors
}

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const SWITCHES: [&str; 2] = [FORWARD_V4, FORWARD_V6];

/// Keeps what was saved, before a change is made.
pub type Persist = Box<dyn FnMut(&Saved) -> Result<(), String> + Send + Sync>;

/// Sets parameters, and never one that it could not put back.
pub struct Keeper {
    saved: Saved,
    persist: Persist,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("saved", &self.saved)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// Goes on from what an earlier run saved; `persist` is called with all that is saved whenever it grows.
    pub fn new(saved: Saved, persist: Persist) -> Self {
        Self { saved, persist }
    }

    /// Everything changed so far.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Makes a parameter what it should be; false when it is so already, or the kernel does not have it.
    ///
    /// # Errors
    /// When it cannot be read, saved or written.
    pub fn ensure(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        let Some(before) = read(key)?.filter(|now| now != value) else {
            return Ok(false);
        };
        let mut saved = self.saved.clone();
        for (key, changed) in followers(key)? {
            saved.entry(key).or_insert(changed);
        }
        // What was there before the first change counts, not what somebody else made of it since.
        let changed = Changed {
            before,
            set: String::new(),
        };
        value.clone_into(&mut saved.entry(key.to_owned()).or_insert(changed).set);
        if saved != self.saved {
            (self.persist)(&saved).map_err(|reason| SysctlError::Unsaved {
                key: key.to_owned(),
                reason,
            })?;
            self.saved = saved;
        }
        write(key, value)?;
        Ok(true)
    }
}

/// What the kernel changes along with a switch of forwarding, where switching back would not bring it back.
fn followers(key: &str) -> Result<Vec<(String, Changed)>, SysctlError> {
    if !SWITCHES.contains(&key) {
        return Ok(Vec::new());
    }
    let family = if key == FORWARD_V4 { "ipv4" } else { "ipv6" };
    let mut kept = Vec::new();
    // Switching IPv4 on clears it, switching off sets it.
    let redirects = "net/ipv4/conf/all/accept_redirects".to_owned();
    if key == FORWARD_V4 && read(&redirects)?.as_deref() == Some("0") {
        kept.push((
            redirects,
            Changed {
                before: "0".into(),
                set: "0".into(),
            },
        ));
    }
    let conf = format!("net/{family}/conf");
    let failed = |source| SysctlError::Read {
        key: conf.clone(),
        source,
    };
    for device in std::fs::read_dir(path(&conf)).map_err(failed)? {
        let device = device.map_err(failed)?.file_name();
        let key = format!("{conf}/{}/forwarding", device.to_string_lossy());
        // Switching off ends it on every device.
        if device != "all" && read(&key)?.as_deref() == Some("1") {
            kept.push((
                key,
                Changed {
                    before: "1".into(),
                    set: "1".into(),
                },
            ));
        }
    }
    Ok(kept)
}

/// In a container `/proc/sys` is read-only; the manifests mount the host's parameters of the network here.
const MOUNTED: &str = "/host/proc/sys";

fn path(key: &str) -> PathBuf {
    path_with(Path::new(MOUNTED), key)
}

fn path_with(mounted: &Path, key: &str) -> PathBuf {
    if key.starts_with("net/") && mounted.join("net/ipv4").is_dir() {
        mounted.join(key)
    } else {
        Path::new("/proc/sys").join(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_goes_before_what_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = "net/ipv4/ip_forward";
        assert_eq!(
            path_with(dir.path(), key),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        std::fs::create_dir_all(dir.path().join("net/ipv4")).unwrap();
        assert_eq!(path_with(dir.path(), key), dir.path().join(key));
        // Only the network's are mounted.
        assert_eq!(
            path_with(dir.path(), "kernel/hostname"),
            Path::new("/proc/sys/kernel/hostname")
        );
    }
}
