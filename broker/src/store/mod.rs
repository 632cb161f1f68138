//! The store: what is durable, and its mirror in memory. Shell.
//!
//! One writer at a time decides on the mirror, makes the effects durable in ONE transaction of the
//! [`Engine`], and only then applies them to the mirror. So a check and the write that rests on it cannot be
//! parted by another write, readers never wait for a disk, and what a reader sees is on disk.

mod change_log;
mod error;
mod restore;
pub mod sqlite;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use subsea_api::admin::AuditEntry;
use subsea_api::snapshot::Change;
use subsea_api::{Problem, UnixMillis};

pub use change_log::ChangeLog;
pub use error::StoreError;
pub(crate) use restore::identity_json;
pub use restore::{Carried, prepare};

use crate::registry::{Cut, Decision, Effect, Identity, Note, State, changes, sweep};

/// What makes records durable.
pub trait Engine: Send + std::fmt::Debug {
    /// Reads everything that the mirror needs.
    ///
    /// # Errors
    /// When the store cannot be read or a record is damaged.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes one commit durable, or none of it.
    ///
    /// # Errors
    /// When it is not durable.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), StoreError>;

    /// The number of the newest audit entry; 0 before the first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn audit_sequence(&self) -> Result<u64, StoreError>;

    /// Audit entries above `after`, at most `limit`, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditEntry>, StoreError>;

    /// A single record of the fleet table.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn fleet(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Sets a single record of the fleet table.
    ///
    /// # Errors
    /// When it is not durable.
    fn set_fleet(&mut self, name: &str, value: &str) -> Result<(), StoreError>;

    /// Writes a consistent copy of the store to `to`, an existing empty file.
    ///
    /// # Errors
    /// When the copy is not whole.
    fn backup(&self, to: &Path) -> Result<(), StoreError>;

    /// Replaces the whole content by that of the store in `from`, or nothing of it.
    ///
    /// # Errors
    /// When nothing was replaced.
    fn replace(&mut self, from: &Path) -> Result<(), StoreError>;
}

/// What a store holds, as read at the start.
#[derive(Debug)]
pub struct Loaded {
    /// What it was born with.
    pub identity: Identity,
    /// The newest revision.
    pub revision: u64,
    /// Every record.
    pub records: Vec<Effect>,
    /// The change log, oldest first.
    pub changes: Vec<(u64, Vec<Change>)>,
}

/// What goes into one transaction.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The records.
    pub effects: &'a [Effect],
    /// The new revision, what it changes, and below which revision the change log may be cut.
    pub revision: Option<Revision<'a>>,
    /// The line of the audit log.
    pub audit: Option<Line<'a>>,
}

/// A new revision.
#[derive(Debug)]
pub struct Revision<'a> {
    /// Its number.
    pub number: u64,
    /// What changes in the snapshot.
    pub changes: &'a [Change],
    /// The oldest revision that the change log must keep.
    pub keep_from: u64,
}

/// A line of the audit log, but for its number.
#[derive(Debug)]
pub struct Line<'a> {
    /// When.
    pub at: UnixMillis,
    /// Who.
    pub who: &'a str,
    /// What.
    pub note: &'a Note,
}

/// The mirror of the store in memory.
#[derive(Debug)]
pub struct Memory {
    /// The records.
    pub state: State,
    /// The newest changes.
    pub log: ChangeLog,
}

impl Memory {
    /// What a store holds, in memory.
    pub fn of(loaded: Loaded) -> Self {
        let mut state = State::new(loaded.identity);
        state.revision = loaded.revision;
        for effect in loaded.records {
            state.apply(effect);
        }
        Self {
            state,
            log: ChangeLog::new(loaded.revision, loaded.changes),
        }
    }
}

/// The store and its mirror.
#[derive(Debug)]
pub struct Store {
    engine: Mutex<Box<dyn Engine>>,
    memory: RwLock<Memory>,
    revision: tokio::sync::watch::Sender<u64>,
}

/// What a write leaves for its caller.
#[derive(Debug)]
pub struct Committed<T> {
    /// The decision's answer.
    pub answer: T,
    /// Whose streams to cut now.
    pub cut: Option<Cut>,
}

impl Store {
    /// Takes an engine and reads it.
    ///
    /// # Errors
    /// When the store cannot be read or a record is damaged.
    pub fn open(mut engine: Box<dyn Engine>) -> Result<Self, StoreError> {
        let memory = Memory::of(engine.load()?);
        let (revision, _) = tokio::sync::watch::channel(memory.state.revision);
        Ok(Self {
            engine: Mutex::new(engine),
            memory: RwLock::new(memory),
            revision,
        })
    }

    /// The mirror, for reading. Hold it briefly: a commit waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision, as it grows.
    pub fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Decides on the mirror and commits what was decided. Blocks on the disk.
    ///
    /// # Errors
    /// The refusal of `decide`, or `store-unavailable`; nothing was changed then.
    pub fn write<T>(
        &self,
        who: &str,
        now: UnixMillis,
        decide: impl FnOnce(&State) -> Result<Decision<T>, Problem>,
    ) -> Result<Committed<T>, Problem> {
        let mut engine = self.engine();
        self.sweep_with(engine.as_mut(), now)?;
        let decision = decide(&self.read().state)?;
        if !decision.effects.is_empty() || decision.note.is_some() {
            let line = decision
                .note
                .as_ref()
                .map(|note| Line { at: now, who, note });
            self.commit(engine.as_mut(), decision.effects, line)?;
        }
        Ok(Committed {
            answer: decision.answer,
            cut: decision.cut,
        })
    }

    /// Commits what the broker itself decided.
    ///
    /// # Errors
    /// When it is not durable; nothing was changed then.
    pub fn put(
        &self,
        who: &str,
        now: UnixMillis,
        decision: Decision<()>,
    ) -> Result<(), StoreError> {
        let line = decision
            .note
            .as_ref()
            .map(|note| Line { at: now, who, note });
        self.commit(self.engine().as_mut(), decision.effects, line)
    }

    /// Takes away what has had its time. Blocks on the disk.
    ///
    /// # Errors
    /// When it is not durable; nothing was changed then.
    pub fn sweep(&self, now: UnixMillis) -> Result<(), StoreError> {
        self.sweep_with(self.engine().as_mut(), now)
    }

    fn sweep_with(&self, engine: &mut dyn Engine, now: UnixMillis) -> Result<(), StoreError> {
        let effects = sweep(&self.read().state, now);
        if effects.is_empty() {
            return Ok(());
        }
        self.commit(engine, effects, None)
    }

    fn commit(
        &self,
        engine: &mut dyn Engine,
        effects: Vec<Effect>,
        audit: Option<Line<'_>>,
    ) -> Result<(), StoreError> {
        let changed = changes(&effects);
        let number = self.read().state.revision + 1;
        let revision = (!changed.is_empty()).then(|| Revision {
            number,
            changes: &changed,
            keep_from: self.read().log.keep_from(),
        });
        let with_revision = revision.is_some();
        let before = engine.audit_sequence()?;
        let commit = Commit {
            effects: &effects,
            revision,
            audit,
        };
        if let Err(error) = engine.commit(&commit) {
            if !is_durable(engine, before, commit.audit.as_ref()) {
                return Err(error);
            }
            // A commit can fail after it became durable; then the mirror follows the disk.
            let memory = Memory::of(engine.load()?);
            let revision = memory.state.revision;
            self.set_memory(memory);
            self.revision.send_replace(revision);
            return Ok(());
        }
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        for effect in effects {
            memory.state.apply(effect);
        }
        if with_revision {
            memory.state.revision = number;
            memory.log.push(number, changed);
        }
        drop(memory);
        if with_revision {
            self.revision.send_replace(number);
        }
        Ok(())
    }

    /// Audit entries above `after`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditEntry>, StoreError> {
        self.engine().audit(after, limit)
    }

    /// The newest audit entries, at most `limit`, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest_audit(&self, limit: u64) -> Result<Vec<AuditEntry>, StoreError> {
        let engine = self.engine();
        let newest = engine.audit_sequence()?;
        engine.audit(newest.saturating_sub(limit), limit)
    }

    /// A single record of the fleet table.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn fleet(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.engine().fleet(name)
    }

    /// Sets a single record of the fleet table.
    ///
    /// # Errors
    /// When it is not durable.
    pub fn set_fleet(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.engine().set_fleet(name, value)
    }

    /// Writes a consistent copy to `to`.
    ///
    /// # Errors
    /// When the copy is not whole.
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.engine().backup(to)
    }

    /// Replaces everything by a prepared copy; see [`prepare`]. `ready` gets what must not be lost and makes
    /// the copy ready while no write can come between.
    ///
    /// # Errors
    /// Those of `ready`, or when nothing was replaced.
    pub fn restore<E: From<StoreError>>(
        &self,
        from: &Path,
        ready: impl FnOnce(Carried) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut engine = self.engine();
        let carried = Carried::of(&self.read().state, engine.as_ref())?;
        ready(carried)?;
        engine.replace(from)?;
        let memory = Memory::of(engine.load()?);
        let revision = memory.state.revision;
        self.set_memory(memory);
        self.revision.send_replace(revision);
        Ok(())
    }

    fn set_memory(&self, memory: Memory) {
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    fn engine(&self) -> MutexGuard<'_, Box<dyn Engine>> {
        // A panic inside a transaction rolled it back, so what the lock guards is whole.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a commit is on disk by its line in the audit log. That the log grew says nothing: a local verb writes to
/// it beside the broker.
fn is_durable(engine: &dyn Engine, before: u64, line: Option<&Line<'_>>) -> bool {
    /// More than local verbs can write in the time of a commit.
    const LINES: u64 = 64;
    let Some(line) = line else {
        return false;
    };
    let is_it = |e: &AuditEntry| {
        e.at == line.at
            && e.who == line.who
            && e.action == line.note.action
            && e.subject == line.note.subject
            && e.detail == line.note.detail
    };
    engine
        .audit(before, LINES)
        .is_ok_and(|entries| entries.iter().any(is_it))
}

/// A store shared by tasks.
pub type SharedStore = Arc<Store>;

#[cfg(test)]
mod tests;
