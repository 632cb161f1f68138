//! The state directory of one `subsea` node: who it is, its keys, and what it knew last. Shell.
//!
//! The directory is 0700 and every file in it 0600. Files are replaced whole or not at all, so that a crash or a
//! full disk leaves the old ones. One process at a time owns the directory: it holds [`StateDir::lock`].

mod error;
mod file;
mod lock;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subsea_api::snapshot::{BrokerInfo, MAX_LISTENERS};
use subsea_api::{Allocation, ClusterId, FleetName, NodeName, Role, Snapshot};
use zeroize::Zeroizing;

pub use self::error::StateError;
pub use self::lock::Lock;
use crate::key::PrivateKey;

/// Who this node is: written last by a join, so that with it everything else is there.
pub const MEMBER: &str = "member.json";
/// The key of the node's certificate, PEM.
pub const TLS_KEY: &str = "tls.key";
/// The node's certificate, PEM.
pub const CERTIFICATE: &str = "tls.crt";
/// The WireGuard private keys, base64, by the number of their listener: the stripe, or with the kernel driver the slot
/// that it is for.
pub const WIREGUARD_KEYS: [&str; MAX_LISTENERS] = [
    "wireguard.key",
    "wireguard-1.key",
    "wireguard-2.key",
    "wireguard-3.key",
    "wireguard-4.key",
    "wireguard-5.key",
    "wireguard-6.key",
    "wireguard-7.key",
    "wireguard-8.key",
    "wireguard-9.key",
    "wireguard-10.key",
    "wireguard-11.key",
    "wireguard-12.key",
    "wireguard-13.key",
    "wireguard-14.key",
    "wireguard-15.key",
];
/// The fleet as it was last.
pub const SNAPSHOT: &str = "snapshot.json";
/// What a new history of the broker misses and the gateway still keeps.
pub const KEPT: &str = "kept.json";
/// Kernel settings as they were before us.
pub const SYSCTL: &str = "sysctl.json";
/// The settings that the gateway ran with last.
pub const GATEWAY: &str = "gateway.json";
/// The settings that the agent ran with last.
pub const AGENT: &str = "agent.json";
/// The nodes behind a gateway's node.
pub const NODES: &str = "nodes.json";
/// What the configuration of a daemon in Kubernetes said when it was good last.
pub const SETTINGS: &str = "settings.json";
/// The blocks of this node's pods, as the network plugin had them last.
pub const PREFIXES: &str = "prefixes.json";
/// What the node's object said last.
pub const NODE: &str = "node.json";
/// The socket of the running daemon.
pub const SOCKET: &str = "subsea.sock";
/// Held by the process that owns the directory.
pub const LOCK: &str = "lock";

/// Every file that can be in the directory, in the order in which `leave` removes them: without the first, the
/// node is no member; the last is held while the others go.
pub fn files() -> impl Iterator<Item = &'static str> {
    [MEMBER, CERTIFICATE, TLS_KEY]
        .into_iter()
        .chain(WIREGUARD_KEYS)
        .chain([
            SNAPSHOT, KEPT, SYSCTL, GATEWAY, AGENT, NODES, SETTINGS, PREFIXES, NODE, SOCKET, LOCK,
        ])
}

/// The format of `member.json`.
const MEMBER_VERSION: u32 = 1;

/// Who this node is in which fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The format: 1.
    pub version: u32,
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node, as the certificate names it.
    pub node: NodeName,
    /// What the certificate entitles to.
    pub role: Role,
    /// Where the broker was last.
    pub broker: BrokerInfo,
    /// The cluster's blocks at the join.
    pub allocations: Vec<Allocation>,
    /// The public id of the token of the join: a repeat with the same one needs no broker.
    #[serde(default)]
    pub token: Option<String>,
}

/// A state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Makes the directory, 0700, or takes one that exists.
    ///
    /// # Errors
    /// [`StateError::Foreign`] for a directory that is open to others and holds other things: it is not ours to
    /// close. [`StateError::Io`] when it cannot be made.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        let failed = |what| move |source| StateError::io(what, path, source);
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Parents get the usual mode: they are not ours.
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(failed("create"))?;
                }
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(path)
                    .map_err(failed("create"))?;
            }
            Err(e) => return Err(failed("create")(e)),
        }
        let state = Self::open(path)?;
        let mode = fs::metadata(path)
            .map_err(failed("read"))?
            .permissions()
            .mode()
            & 0o777;
        if mode != 0o700 {
            let names = state.names()?;
            if !names.is_empty() && !files().any(|ours| names.iter().any(|n| n == ours)) {
                return Err(StateError::Foreign {
                    path: path.to_owned(),
                    mode,
                });
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(failed("protect"))?;
        }
        Ok(state)
    }

    /// Takes a directory that exists.
    ///
    /// # Errors
    /// [`StateError::Missing`] when it does not.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Self {
                path: path.to_owned(),
            }),
            Ok(_) => Err(StateError::Missing {
                path: path.to_owned(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StateError::Missing {
                path: path.to_owned(),
            }),
            Err(e) => Err(StateError::io("read", path, e)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the running daemon.
    pub fn socket_path(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Lets the socket be in another directory, which others may see that are to see no key, and leads there from here: whoever
    /// looks for the socket in the state directory finds it. Gives where it is. For the owner of the directory.
    ///
    /// # Errors
    /// [`StateError::Foreign`] when the other directory is open to others and holds other things than a socket.
    pub fn lead_socket_to(&self, dir: &Path) -> Result<PathBuf, StateError> {
        let there = Self::create(dir)?.socket_path();
        let here = self.socket_path();
        let canonical = |path: &Path| {
            let failed = |source| StateError::io("read", path, source);
            fs::canonicalize(path).map_err(failed)
        };
        if canonical(dir)? == canonical(&self.path)? {
            return Ok(here);
        }
        self.remove(SOCKET)?;
        std::os::unix::fs::symlink(&there, &here)
            .map_err(|source| StateError::io("create", &here, source))?;
        Ok(there)
    }

    /// Makes this process the owner until the lock is dropped, and sweeps what a crash left half written.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another live process is the owner; a dead one is no obstacle.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let lock = Lock::take(&self.path.join(LOCK))?;
        for name in self.names()?.iter().filter(|n| file::is_temporary(n)) {
            self.remove(name)?;
        }
        Ok(lock)
    }

    /// Who this node is; none before a join.
    pub fn membership(&self) -> Result<Option<Membership>, StateError> {
        let membership: Option<Membership> = self.read_json(MEMBER)?;
        match membership {
            Some(m) if m.version != MEMBER_VERSION => Err(StateError::Corrupt {
                path: self.path.join(MEMBER),
                why: format!(
                    "its format is version {}, this program reads version 1",
                    m.version
                ),
            }),
            membership => Ok(membership),
        }
    }

    /// Keeps who this node is.
    pub fn write_membership(&self, membership: &Membership) -> Result<(), StateError> {
        self.write_json(MEMBER, membership)
    }

    /// The key of the node's certificate, made if there is none.
    pub fn tls_key_or_create(&self) -> Result<Zeroizing<String>, StateError> {
        if let Some(key) = self.tls_key()? {
            return Ok(key);
        }
        let key = crate::broker_client::new_tls_key().map_err(|e| StateError::Random {
            what: e.to_string(),
        })?;
        self.write(TLS_KEY, key.as_bytes())?;
        Ok(key)
    }

    /// The key of the node's certificate, if it was made.
    pub fn tls_key(&self) -> Result<Option<Zeroizing<String>>, StateError> {
        self.read(TLS_KEY)
    }

    /// The node's certificate, PEM; none before a join.
    pub fn certificate(&self) -> Result<Option<String>, StateError> {
        Ok(self.read(CERTIFICATE)?.map(|text| text.to_string()))
    }

    /// Keeps the node's certificate, PEM.
    pub fn write_certificate(&self, pem: &str) -> Result<(), StateError> {
        self.write(CERTIFICATE, pem.as_bytes())
    }

    /// The WireGuard private key of this number, made if there is none.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] for a file that holds no key: it is never replaced, for the fleet knows it.
    /// [`StateError::Io`] for a number that has no file in [`WIREGUARD_KEYS`].
    pub fn wireguard_key_or_create(&self, number: u16) -> Result<PrivateKey, StateError> {
        let name = *WIREGUARD_KEYS.get(usize::from(number)).ok_or_else(|| {
            let path = self.path.join(format!("wireguard-{number}.key"));
            StateError::io("make", &path, io::ErrorKind::InvalidInput.into())
        })?;
        if let Some(text) = self.read(name)? {
            return PrivateKey::from_base64(&text).map_err(|_| StateError::Corrupt {
                path: self.path.join(name),
                why: "it holds no private key".to_owned(),
            });
        }
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(|e| StateError::Random {
            what: e.to_string(),
        })?;
        let key = PrivateKey::from_bytes(*bytes);
        let text = Zeroizing::new(format!("{}\n", *key.expose_base64()));
        self.write(name, text.as_bytes())?;
        Ok(key)
    }

    /// The fleet as it was last; none before the first snapshot.
    ///
    /// # Errors
    /// [`StateError::Corrupt`] when the file is no snapshot: the broker has a new one.
    pub fn snapshot(&self) -> Result<Option<Snapshot>, StateError> {
        self.read_json(SNAPSHOT)
    }

    /// Keeps the fleet as it is.
    pub fn write_snapshot(&self, snapshot: &Snapshot) -> Result<(), StateError> {
        self.write_json(SNAPSHOT, snapshot)
    }

    /// Reads a file of the directory; none when there is no such file.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(text) = self.read(name)? else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| StateError::Corrupt {
                path: self.path.join(name),
                why: error.to_string(),
            })
    }

    /// Replaces a file of the directory.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(value).map_err(|error| {
            StateError::io("write", &self.path.join(name), io::Error::other(error))
        })?;
        self.write(name, &text)
    }

    /// Whether the directory holds a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.path.join(name).symlink_metadata().is_ok()
    }

    /// Removes a file of the directory; whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StateError::io("remove", &path, e)),
        }
    }

    /// Removes the directory if nothing is left in it; whether it is gone.
    pub fn remove_if_empty(&self) -> Result<bool, StateError> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                ) =>
            {
                Ok(false)
            }
            Err(e) => Err(StateError::io("remove", &self.path, e)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>, StateError> {
        file::read(&self.path.join(name))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        file::replace(&self.path, name, bytes)
    }

    fn names(&self) -> Result<Vec<String>, StateError> {
        let failed = |source| StateError::io("list", &self.path, source);
        fs::read_dir(&self.path)
            .map_err(failed)?
            .map(|entry| {
                Ok(entry
                    .map_err(failed)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
