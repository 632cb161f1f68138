//! The embedded engine: one SQLite file in WAL mode. Shell.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior, params};
use subsea_api::UnixMillis;
use subsea_api::admin::AuditEntry;
use subsea_api::snapshot::Change;

use super::{Commit, Engine, Loaded, StoreError};
use crate::registry::{Effect, Identity, Row, TABLES, Table};

/// The format of the store. Format 2 added the table `admissions`.
const FORMAT: i64 = 2;
/// Marks the file as a broker's store (`file` and the SQLite header show it): "SBSE".
const APPLICATION: i64 = 0x5342_5345;

const SCHEMA: &str = "
CREATE TABLE audit (sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL, who TEXT NOT NULL,
  action TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
CREATE TRIGGER audit_is_append_only_u BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_d BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TABLE changes (revision INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
";

/// A store in one file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
}

/// The records that a store is born with, besides its identity.
pub struct Birth<'a> {
    /// What the store is.
    pub identity: &'a Identity,
    /// Further records of the fleet table.
    pub fleet: &'a [(&'a str, String)],
    /// The first line of the audit log.
    pub at: UnixMillis,
}

impl std::fmt::Debug for Birth<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Birth({}, keys redacted)", self.identity.fleet)
    }
}

impl Sqlite {
    /// Makes a new store. It appears whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written; then there is no store.
    pub fn create(path: &Path, birth: &Birth<'_>) -> Result<(), StoreError> {
        let draft = path.with_extension("new");
        for stale in [
            draft.clone(),
            sibling(&draft, "-wal"),
            sibling(&draft, "-journal"),
        ] {
            match std::fs::remove_file(&stale) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(StoreError::io("remove", &stale, e)),
            }
        }
        let made = Self::draft(&draft, birth);
        if made.is_err() {
            // The error is what counts; a draft left behind is removed by the next try.
            let _ = std::fs::remove_file(&draft);
        }
        made?;
        std::fs::rename(&draft, path).map_err(|e| StoreError::io("create", path, e))?;
        sync_directory(path)
    }

    fn draft(draft: &Path, birth: &Birth<'_>) -> Result<(), StoreError> {
        let sql = |e| StoreError::sql("create", draft, e);
        // It holds the CA's key; SQLite gives the mode of the store to the log beside it.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)
            .map_err(|e| StoreError::io("create", draft, e))?;
        let mut connection = Connection::open(draft).map_err(sql)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sql)?;
        let tx = connection.transaction().map_err(sql)?;
        tx.pragma_update(None, "application_id", APPLICATION)
            .map_err(sql)?;
        tx.pragma_update(None, "user_version", FORMAT)
            .map_err(sql)?;
        tx.execute_batch(SCHEMA).map_err(sql)?;
        for table in TABLES {
            let name = table.name();
            tx.execute_batch(&table_of(name)).map_err(sql)?;
        }
        let identity = super::restore::identity_json(birth.identity);
        let own = [("identity", identity), ("revision", "0".to_owned())];
        for (name, value) in own.iter().chain(birth.fleet) {
            tx.execute(
                "INSERT INTO fleet (key, body) VALUES (?1, ?2)",
                params![name, value],
            )
            .map_err(sql)?;
        }
        tx.execute(
            "INSERT INTO audit VALUES (1, ?1, 'broker', 'store.create', ?2, '')",
            params![signed(birth.at.0), birth.identity.fleet.as_str()],
        )
        .map_err(sql)?;
        tx.commit().map_err(sql)?;
        connection.close().map_err(|(_, e)| sql(e))?;
        let file = std::fs::File::open(draft).map_err(|e| StoreError::io("open", draft, e))?;
        file.sync_all()
            .map_err(|e| StoreError::io("write", draft, e))
    }

    /// Opens a store and checks all of it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a file that is no whole store; nothing was written to it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        check(path)?;
        let sql = |e| StoreError::sql("open", path, e);
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sql)?;
        connection
            .busy_timeout(Duration::from_secs(5))
            .map_err(sql)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(sql)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sql)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(sql)?;
        let mut store = Self {
            path: path.to_owned(),
            connection,
        };
        store.migrate()?;
        Ok(store)
    }

    /// Brings a store of an earlier format to ours, whole or not at all.
    fn migrate(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let sql = |e| StoreError::sql("bring to a newer format", &path, e);
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql)?;
        let found: i64 = tx
            .pragma_query_value(None, "user_version", |r| r.get(0))
            .map_err(sql)?;
        if found >= FORMAT {
            return Ok(());
        }
        if found < 2 {
            tx.execute_batch(&table_of(Table::Admissions.name()))
                .map_err(sql)?;
        }
        tx.pragma_update(None, "user_version", FORMAT)
            .map_err(sql)?;
        tx.commit().map_err(sql)?;
        tracing::info!(store = %path.display(), from = found, to = FORMAT, "the store has a newer format now");
        Ok(())
    }

    fn sql(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + use<'_> {
        move |e| StoreError::sql(doing, &self.path, e)
    }
}

/// What makes a table of records.
fn table_of(name: &str) -> String {
    format!("CREATE TABLE {name} (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;")
}

/// Refuses a file that is not a whole store, without writing to it.
///
/// # Errors
/// [`StoreError::Corrupt`] or [`StoreError::Newer`].
pub fn check(path: &Path) -> Result<(), StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt {
        path: path.to_owned(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|e| StoreError::io("open", path, e))?
        .len();
    if size == 0 {
        return Err(corrupt("it is empty".into()));
    }
    let sql = |e| StoreError::sql("check", path, e);
    // Opened for writing, because a read-only connection cannot recover the log of a killed broker.
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sql)?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(sql)?;
    // What is wrong with it must stay as it is, its log included.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(sql)?;
    let number = |name: &str| -> Result<i64, StoreError> {
        connection
            .pragma_query_value(None, name, |r| r.get(0))
            .map_err(sql)
    };
    if number("application_id")? != APPLICATION {
        return Err(corrupt("it is a database, but not a broker's".into()));
    }
    let found = number("user_version")?;
    if found > FORMAT {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: FORMAT,
        });
    }
    let verdict: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |r| r.get(0))
        .map_err(sql)?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(corrupt(verdict))
    }
}

impl Engine for Sqlite {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let missing = |what: &str| StoreError::Corrupt {
            path: self.path.clone(),
            reason: format!("it has no {what}"),
        };
        let identity = self.fleet("identity")?.ok_or_else(|| missing("identity"))?;
        let identity = super::restore::identity_of(&identity).ok_or_else(|| missing("identity"))?;
        let revision = self.fleet("revision")?.and_then(|r| r.parse().ok());
        let revision = revision.ok_or_else(|| missing("revision"))?;
        let mut records = Vec::new();
        for table in TABLES {
            records.extend(self.table(table)?);
        }
        Ok(Loaded {
            identity,
            revision,
            records,
            changes: self.changes()?,
        })
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), StoreError> {
        let path = self.path.clone();
        let sql = |e| StoreError::sql("write to", &path, e);
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql)?;
        for effect in commit.effects {
            let row = effect.row().map_err(|source| StoreError::Damaged {
                path: path.clone(),
                source,
            })?;
            put(&tx, &row).map_err(sql)?;
        }
        if let Some(revision) = &commit.revision {
            let body = serde_json::to_string(revision.changes)
                .map_err(|e| StoreError::io("write to", &path, e.into()))?;
            tx.prepare_cached("INSERT INTO changes (revision, body) VALUES (?1, ?2)")
                .and_then(|mut s| s.execute(params![signed(revision.number), body]))
                .map_err(sql)?;
            tx.prepare_cached("DELETE FROM changes WHERE revision < ?1")
                .and_then(|mut s| s.execute([signed(revision.keep_from)]))
                .map_err(sql)?;
            tx.prepare_cached("UPDATE fleet SET body = ?1 WHERE key = 'revision'")
                .and_then(|mut s| s.execute([revision.number.to_string()]))
                .map_err(sql)?;
        }
        if let Some(line) = &commit.audit {
            tx.prepare_cached(
                "INSERT INTO audit (at, who, action, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut s| {
                s.execute(params![
                    signed(line.at.0),
                    line.who,
                    line.note.action,
                    line.note.subject,
                    line.note.detail
                ])
            })
            .map_err(sql)?;
        }
        tx.commit().map_err(sql)
    }

    fn audit_sequence(&self) -> Result<u64, StoreError> {
        self.connection
            .prepare_cached("SELECT coalesce(max(sequence), 0) FROM audit")
            .and_then(|mut s| s.query_row([], |r| r.get::<_, i64>(0)))
            .map(unsigned)
            .map_err(self.sql("read"))
    }

    fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditEntry>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT sequence, at, who, action, subject, detail FROM audit WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
            )
            .map_err(self.sql("read"))?;
        let entries = statement
            .query_map(params![signed(after), signed(limit)], |r| {
                Ok(AuditEntry {
                    sequence: unsigned(r.get(0)?),
                    at: UnixMillis(unsigned(r.get(1)?)),
                    who: r.get(2)?,
                    action: r.get(3)?,
                    subject: r.get(4)?,
                    detail: r.get(5)?,
                })
            })
            .map_err(self.sql("read"))?;
        entries.collect::<Result<_, _>>().map_err(self.sql("read"))
    }

    fn fleet(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.connection
            .prepare_cached("SELECT body FROM fleet WHERE key = ?1")
            .and_then(|mut s| s.query_row([name], |r| r.get(0)).optional())
            .map_err(self.sql("read"))
    }

    fn set_fleet(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        self.connection
            .execute(
                "INSERT OR REPLACE INTO fleet (key, body) VALUES (?1, ?2)",
                [name, value],
            )
            .map(|_| ())
            .map_err(self.sql("write to"))
    }

    fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let sql = |e| StoreError::sql("write a backup to", to, e);
        let mut copy = Connection::open(to).map_err(sql)?;
        Backup::new(&self.connection, &mut copy)
            .and_then(|b| b.step(-1))
            .map_err(sql)?;
        // A copy that stands alone: no log beside it.
        copy.pragma_update(None, "journal_mode", "DELETE")
            .map_err(sql)?;
        copy.close().map_err(|(_, e)| sql(e))
    }

    fn replace(&mut self, from: &Path) -> Result<(), StoreError> {
        let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|e| StoreError::sql("read", from, e))?;
        let path = self.path.clone();
        let done = Backup::new(&source, &mut self.connection)
            .and_then(|b| b.step(-1))
            .map_err(|e| StoreError::sql("restore", &path, e))?;
        if done == rusqlite::backup::StepResult::Done {
            Ok(())
        } else {
            Err(StoreError::io(
                "restore",
                &path,
                std::io::ErrorKind::ResourceBusy.into(),
            ))
        }
    }
}

impl Sqlite {
    fn table(&self, table: Table) -> Result<Vec<Effect>, StoreError> {
        let mut statement = self
            .connection
            .prepare(&format!("SELECT key, body FROM {}", table.name()))
            .map_err(self.sql("read"))?;
        let rows = statement
            .query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)))
            .map_err(self.sql("read"))?;
        let mut records = Vec::new();
        for row in rows {
            let (key, body) = row.map_err(self.sql("read"))?;
            let record =
                Effect::from_row(table, &key, &body).map_err(|source| StoreError::Damaged {
                    path: self.path.clone(),
                    source,
                })?;
            records.extend(record);
        }
        Ok(records)
    }

    fn changes(&self) -> Result<Vec<(u64, Vec<Change>)>, StoreError> {
        let mut statement = self
            .connection
            .prepare("SELECT revision, body FROM changes ORDER BY revision")
            .map_err(self.sql("read"))?;
        let rows = statement
            .query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)))
            .map_err(self.sql("read"))?;
        let mut entries = Vec::new();
        for row in rows {
            let (revision, body) = row.map_err(self.sql("read"))?;
            let changes = serde_json::from_str(&body).map_err(|e| StoreError::Corrupt {
                path: self.path.clone(),
                reason: format!("revision {revision} of the change log: {e}"),
            })?;
            entries.push((unsigned(revision), changes));
        }
        Ok(entries)
    }
}

/// Puts a record, or takes it away. A key's first owner stays its owner whatever a caller believes.
fn put(connection: &Connection, row: &Row) -> rusqlite::Result<()> {
    let table = row.table.name();
    let Some(body) = &row.body else {
        let text = format!("DELETE FROM {table} WHERE key = ?1");
        return connection
            .prepare_cached(&text)?
            .execute([&row.key])
            .map(|_| ());
    };
    let how = if row.table == Table::Keys {
        "INSERT"
    } else {
        "INSERT OR REPLACE"
    };
    let text = format!("{how} INTO {table} (key, body) VALUES (?1, ?2)");
    connection
        .prepare_cached(&text)?
        .execute([&row.key, body])
        .map(|_| ())
}

/// A file beside `path`, as SQLite names its companions.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a rename in the directory of `path` durable.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| StoreError::io("write", parent, e))
}

/// SQLite's integers are signed; none of ours comes near the border.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
