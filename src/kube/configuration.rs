//! Where a daemon in Kubernetes finds what it is told: its environment, and the files that are mounted for it. Shell.
//!
//! The kubelet replaces mounted files by switching a symbolic link, so their content is looked at, not their times.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use subsea_api::NodeName;
use tokio::sync::watch;

use super::settings::{Kept, Settings, SettingsError};
use crate::control::around::Notebook;
use crate::membership::chain;
use crate::state::{self, StateDir};
use crate::telemetry;

/// The settings, in the directory of the `ConfigMap`.
pub const FILE: &str = "config.yaml";
/// How often the files are looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// What is in the log when nobody says it.
const LOG: &str = "info";

/// What the pod is told by its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `NODE_NAME`.
    pub node: NodeName,
    /// `NODE_IP`.
    pub address: Option<IpAddr>,
    /// `POD_NAMESPACE`.
    pub namespace: Option<String>,
}

/// The environment is not that of a pod of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A variable is missing.
    #[error(
        "the environment has no `{0}`: in Kubernetes the manifest sets it from the pod's own fields"
    )]
    Missing(&'static str),
    /// A variable makes no sense.
    #[error("`{name}` of the environment is `{value}`: {why}")]
    Nonsense {
        /// Its name.
        name: &'static str,
        /// What it says.
        value: String,
        /// Why it makes no sense.
        why: String,
    },
}

impl Environment {
    /// Reads it.
    ///
    /// # Errors
    /// [`EnvironmentError`].
    pub fn read() -> Result<Self, EnvironmentError> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(get: impl Fn(&'static str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let node = get("NODE_NAME").ok_or(EnvironmentError::Missing("NODE_NAME"))?;
        let nonsense = |name, value: &str, why: String| EnvironmentError::Nonsense {
            name,
            value: value.chars().take(80).collect(),
            why,
        };
        Ok(Self {
            node: node.parse().map_err(|e: subsea_api::id::NameError| {
                nonsense("NODE_NAME", &node, e.to_string())
            })?,
            address: match get("NODE_IP") {
                Some(text) => {
                    Some(text.parse().map_err(|_| {
                        nonsense("NODE_IP", &text, "it is no IP address".to_owned())
                    })?)
                }
                None => None,
            },
            namespace: get("POD_NAMESPACE"),
        })
    }
}

/// The settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("could not read the settings `{}`", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It makes no sense.
    #[error("the settings `{}` cannot be used: {source}", .path.display())]
    Nonsense {
        /// Which.
        path: PathBuf,
        /// Why; part of the message.
        source: SettingsError,
    },
}

/// Reads the settings of a directory, and their text. No such file says nothing.
///
/// # Errors
/// [`ConfigurationError`].
pub fn read(dir: &Path) -> Result<(String, Settings), ConfigurationError> {
    use std::io::Read as _;
    let path = dir.join(FILE);
    let mut text = String::new();
    let most = super::settings::MAX as u64 + 1;
    let read =
        std::fs::File::open(&path).and_then(|file| file.take(most).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ConfigurationError::Unreadable { path, source }),
    }
    let nonsense = |source| ConfigurationError::Nonsense { path, source };
    let settings = Settings::parse(&text).and_then(|settings| {
        let level = settings.log_level.as_deref().unwrap_or(LOG);
        let check = telemetry::set(level);
        check.map_err(|_| SettingsError(format!("logLevel: `{level}` is no filter of a log")))?;
        Ok(settings)
    });
    settings.map(|settings| (text, settings)).map_err(nonsense)
}

/// The settings to start with: those of the directory, else those that were good last. None, with a word in the notes, while
/// there are neither: to start with other ones than were meant could cut what runs.
pub fn first(dir: &Path, state_dir: &Path, notes: &Notebook) -> Option<Settings> {
    match read(dir) {
        Ok((text, settings)) => {
            notes.problem("configuration", None);
            keep(state_dir, text, notes);
            Some(settings)
        }
        Err(error) => {
            notes.problem("configuration", Some(chain(&error)));
            let state = StateDir::open(state_dir).ok()?;
            let kept: Kept = state.read_json(state::SETTINGS).ok()??;
            Settings::parse(&kept.yaml).ok()
        }
    }
}

/// Follows the settings until the task is dropped, looking at them `every` so often; what is no good is noted, and changes
/// nothing.
pub async fn follow(
    dir: PathBuf,
    state_dir: PathBuf,
    notes: Notebook,
    settings: watch::Sender<Settings>,
    every: Duration,
) {
    let mut known = None;
    loop {
        tokio::time::sleep(every).await;
        let from = dir.clone();
        let reading = tokio::task::spawn_blocking(move || read(&from)).await;
        match reading {
            Ok(Ok((text, new))) => {
                notes.problem("configuration", None);
                if known.as_ref() != Some(&text) {
                    keep(&state_dir, text.clone(), &notes);
                    known = Some(text);
                }
                settings.send_if_modified(|now| {
                    let changed = *now != new;
                    *now = new;
                    changed
                });
            }
            Ok(Err(error)) => notes.problem("configuration", Some(chain(&error))),
            Err(error) => tracing::error!(%error, "the settings were not read"),
        }
    }
}

/// Keeps what is good, for a start at which the file is not.
fn keep(state_dir: &Path, yaml: String, notes: &Notebook) {
    // Before the enrolment there is no such directory.
    let Ok(state) = StateDir::open(state_dir) else {
        return;
    };
    let kept = state.write_json(state::SETTINGS, &Kept { yaml });
    let problem = kept.err().map(|error| {
        format!(
            "the settings could not be kept for a restart: {}",
            chain(&error)
        )
    });
    notes.problem("settings-file", problem);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_environment_must_name_the_node() {
        let of = |all: &[(&'static str, &str)]| {
            Environment::of(|name| {
                let found = all.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let whole = of(&[
            ("NODE_NAME", "n-1"),
            ("NODE_IP", "10.0.0.5"),
            ("POD_NAMESPACE", "subsea"),
        ]);
        let whole = whole.unwrap();
        assert_eq!(whole.node.as_str(), "n-1");
        assert_eq!(whole.address, Some([10, 0, 0, 5].into()));
        assert_eq!(
            of(&[("NODE_IP", "10.0.0.5")]),
            Err(EnvironmentError::Missing("NODE_NAME"))
        );
        for bad in [
            &[("NODE_NAME", "N_1")][..],
            &[("NODE_NAME", "n-1"), ("NODE_IP", "x")],
        ] {
            assert!(matches!(of(bad), Err(EnvironmentError::Nonsense { .. })));
        }
    }

    /// As the kubelet does it: `config.yaml -> ..data/config.yaml`, `..data -> ..1`.
    fn mount(dir: &Path, number: u32, text: &str) {
        let data = dir.join(format!("..{number}"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join(FILE), text).unwrap();
        let new = dir.join("..data_tmp");
        symlink(format!("..{number}"), &new).unwrap();
        std::fs::rename(&new, dir.join("..data")).unwrap();
        if !dir.join(FILE).is_symlink() {
            symlink(format!("..data/{FILE}"), dir.join(FILE)).unwrap();
        }
    }

    #[tokio::test]
    async fn good_settings_are_followed_and_bad_ones_noted() {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let notes = Notebook::default();
        mount(dir.path(), 1, "gateway: {listenPort: 5000}\n");
        let settings = first(dir.path(), state.path(), &notes).unwrap();
        assert_eq!(settings.gateway.listen_port, Some(5000));
        let (sender, mut receiver) = watch::channel(settings);
        let following = follow(
            dir.path().to_owned(),
            state.path().to_owned(),
            notes.clone(),
            sender,
            Duration::from_millis(10),
        );
        let _task = crate::task::Task::spawn("follow", following);

        mount(dir.path(), 2, "gateway: {listenPort: 5001}\n");
        receiver.changed().await.unwrap();
        assert_eq!(receiver.borrow_and_update().gateway.listen_port, Some(5001));

        mount(dir.path(), 3, "gateway: {listnPort: 5002}\n");
        while notes.read().problems.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let problem = notes.read().problems["configuration"].clone();
        assert!(problem.contains("listnPort"), "{problem}");
        assert!(!receiver.has_changed().unwrap());
        // A new start goes on with what was good.
        let again = first(dir.path(), state.path(), &Notebook::default()).unwrap();
        assert_eq!(again.gateway.listen_port, Some(5001));
        let elsewhere = tempfile::tempdir().unwrap();
        let nothing = first(dir.path(), elsewhere.path(), &Notebook::default());
        assert_eq!(nothing, None);

        mount(dir.path(), 4, "");
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), Settings::default());
        assert!(notes.read().problems.is_empty());
    }
}
