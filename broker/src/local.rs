//! Verbs on the data directory itself: a new admin file, and a restore while the broker is stopped. Shell.

use std::path::{Path, PathBuf};

use subsea_api::admin::BrokerStatus;

use crate::clock;
use crate::data_dir::{self, DataDir, OLD_STORE, STORE};
use crate::registry::Note;
use crate::serve::{OPERATOR, ServeError, admin_file, authority_of, write_admin};
use crate::status::status;
use crate::store::sqlite::{self, Sqlite};
use crate::store::{Carried, Commit, Engine, Line, Memory, StoreError, prepare};

/// Writes `admin.yaml` anew with a new key; the earlier one is refused from now on. The broker may run.
///
/// # Errors
/// When there is no store, or a file cannot be written.
pub fn reissue_admin(data_dir: &Path) -> Result<PathBuf, ServeError> {
    let path = data_dir.join(STORE);
    if !path.exists() {
        return Err(ServeError::NoStore(data_dir.to_owned()));
    }
    let mut engine = Sqlite::open(&path)?;
    let loaded = engine.load()?;
    let authority = authority_of(&engine, data_dir, &loaded.identity)?;
    let memory = Memory::of(loaded);
    let (file, key) = admin_file(&authority, &memory.state.broker)?;
    let note = Note::new("admin.reissue", OPERATOR, "");
    engine.commit(&Commit {
        effects: &[],
        revision: None,
        audit: Some(Line {
            at: clock::now(),
            who: "local",
            note: &note,
        }),
    })?;
    engine.set_fleet("admin", &key)?;
    write_admin(&file, data_dir)
}

/// Replaces the store of a stopped broker by a backup, under a new epoch, and writes `admin.yaml` anew. What the
/// present store knows and a backup of the same fleet may not undo (revocations, burnt tokens, owners of keys)
/// is carried over when the present store can still be read; it is kept aside as `store.db.old`.
///
/// # Errors
/// When the broker runs, the file is no whole store, or nothing was replaced.
pub fn restore_local(data_dir: &Path, file: &Path) -> Result<BrokerStatus, ServeError> {
    let dir = DataDir::take(data_dir)?;
    let copy = tempfile::Builder::new()
        .prefix(data_dir::DRAFT_PREFIX)
        .tempfile_in(dir.path())
        .map_err(|e| StoreError::io("write to", dir.path(), e))?;
    // Not `fs::copy`, which would give the store the mode of the backup.
    let read = |e| StoreError::io("read", file, e);
    let mut source = std::fs::File::open(file).map_err(read)?;
    std::io::copy(&mut source, &mut copy.as_file()).map_err(read)?;
    sqlite::check(copy.path()).map_err(|error| named(error, file))?;
    let (store, old) = (dir.path().join(STORE), dir.path().join(OLD_STORE));
    // After a restore that was cut short, the present store is the one that it put aside.
    let present = if store.exists() { &store } else { &old };
    let carried = present
        .exists()
        .then(|| carried(present, copy.path()))
        .flatten();
    let epoch = data_dir::new_epoch()?;
    prepare(copy.path(), carried.as_ref(), &epoch, "local", clock::now())
        .map_err(|error| named(error, file))?;
    for suffix in ["", "-wal", "-shm"] {
        let replaced = sqlite::sibling(&store, suffix);
        let aside = sqlite::sibling(&old, suffix);
        match std::fs::rename(&replaced, &aside) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && suffix.is_empty() => {}
            // A log beside the old store that is not there any more must not stay beside it either.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let _ = std::fs::remove_file(&aside);
            }
            Err(e) => return Err(StoreError::io("put aside", &replaced, e).into()),
        }
    }
    copy.as_file()
        .sync_all()
        .map_err(|e| StoreError::io("write", copy.path(), e))?;
    copy.persist(&store)
        .map_err(|e| StoreError::io("put in place", &store, e.error))?;
    sqlite::sync_directory(&store)?;
    reissue_admin(dir.path())?;
    summary(dir.path(), &store)
}

/// What must not be lost of the present store; nothing when it cannot be read or is of another fleet.
fn carried(present: &Path, copy: &Path) -> Option<Carried> {
    let read = |path: &Path| -> Result<_, StoreError> {
        sqlite::check(path)?;
        let mut engine = Sqlite::open(path)?;
        let loaded = engine.load()?;
        let authority = engine.fleet("authority")?;
        Ok((engine, loaded, authority))
    };
    let (engine, loaded, own) = match read(present) {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(%error, "nothing is carried over from the present store: revocations and used tokens since the backup are forgotten");
            return None;
        }
    };
    let (_, _, other) = read(copy).ok()?;
    if own != other {
        tracing::warn!("the backup is of another fleet: nothing is carried over");
        return None;
    }
    Carried::of(&Memory::of(loaded).state, &engine).ok()
}

/// Says of the file that the operator named what was found in our copy of it.
fn named(error: StoreError, file: &Path) -> ServeError {
    match error {
        StoreError::Corrupt { reason, .. } => StoreError::Foreign(format!(
            "{} is no whole backup: {reason}; nothing was changed",
            file.display()
        ))
        .into(),
        other @ (StoreError::Newer { .. }
        | StoreError::Full { .. }
        | StoreError::Io { .. }
        | StoreError::Sql { .. }
        | StoreError::Damaged { .. }
        | StoreError::Foreign(_)) => other.into(),
    }
}

fn summary(data_dir: &Path, store: &Path) -> Result<BrokerStatus, ServeError> {
    let mut engine = Sqlite::open(store)?;
    let loaded = engine.load()?;
    let authority = authority_of(&engine, data_dir, &loaded.identity)?;
    let memory = Memory::of(loaded);
    Ok(status(&memory.state, authority.expires(), clock::now(), 0))
}
