//! Where the programs of a control plane are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const PROGRAMS: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
];

/// The directory with all of them.
pub(super) fn directory() -> PathBuf {
    for variable in ["SUBSEA_KUBE_BIN", "KUBEBUILDER_ASSETS"] {
        if let Some(value) = set(variable) {
            let dir = PathBuf::from(value);
            let missing = missing(&dir);
            assert!(
                missing.is_empty(),
                "{variable} is {}, and these are not in it: {}; run scripts/build-kube",
                dir.display(),
                missing.join(", ")
            );
            return dir;
        }
    }
    let cache = cache();
    newest(&cache).unwrap_or_else(|| {
        panic!(
            "the programs of a Kubernetes control plane are not in {}: run scripts/build-kube",
            cache.display()
        )
    })
}

/// What `scripts/build-kube` fills, one directory for each version.
fn cache() -> PathBuf {
    set("XDG_CACHE_HOME")
        .map_or_else(
            || PathBuf::from(set("HOME").expect("HOME is set")).join(".cache"),
            PathBuf::from,
        )
        .join("subsea/kube")
}

/// The script touches the directory that it names.
fn newest(cache: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(cache).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|dir| missing(dir).is_empty())
        .max_by_key(|dir| {
            dir.metadata()
                .and_then(|m| m.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH)
        })
}

fn missing(dir: &Path) -> Vec<&'static str> {
    PROGRAMS
        .into_iter()
        .filter(|program| !dir.join(program).is_file())
        .collect()
}

/// A variable that is set to nothing is not set.
fn set(variable: &str) -> Option<OsString> {
    std::env::var_os(variable).filter(|value| !value.is_empty())
}
