//! What becomes of a copy before it replaces the store: it gets a new epoch, and learns what must not be
//! forgotten. Shell.

use std::path::Path;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use subsea_api::admin::{AuditEntry, Pool};
use subsea_api::snapshot::{Gone, Tombstone};
use subsea_api::{Cidr, FleetName, UnixMillis};
use zeroize::Zeroize as _;

use super::sqlite::{signed, unsigned};
use super::{Engine, StoreError};
use crate::registry::{Effect, Identity, State, Table};

/// What the present store knows and no copy may undo: revocations, burnt tokens, owners of keys, newer credentials and
/// keys of clusters, the audit log, and the operators' key.
pub struct Carried {
    records: Vec<Effect>,
    audit: Vec<AuditEntry>,
    fleet: FleetName,
    authority: Option<String>,
    fleet_rows: Vec<(&'static str, String)>,
    revision: u64,
}

/// The rows of the fleet table that belong to the installation, not to its past.
const KEPT: [&str; 3] = ["server", "admin", "broker"];

impl std::fmt::Debug for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Carried(keys redacted)")
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.authority.zeroize();
        for (_, value) in &mut self.fleet_rows {
            value.zeroize();
        }
    }
}

impl Carried {
    /// Collects it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(state: &State, engine: &dyn Engine) -> Result<Self, StoreError> {
        let revoked = state
            .revoked
            .iter()
            .map(|(id, at)| Effect::Revoked(id.clone(), Some(*at)));
        // Who comes back only now must drop a revoked peer at once, not keep it as merely missing.
        let tombstones = state.revoked.iter().map(|(id, at)| {
            let tombstone = Tombstone {
                reason: Gone::Revoked,
                at: *at,
            };
            Effect::Tombstone(id.clone(), Some(tombstone))
        });
        let tokens = state
            .tokens
            .iter()
            .map(|(id, token)| Effect::Token(id.clone(), Some(token.clone())));
        let keys = state
            .keys
            .iter()
            .map(|(key, owner)| Effect::Key(*key, owner.clone()));
        let admissions = state.admissions.iter().map(|(id, admission)| {
            Effect::Admission(id.clone(), Some(Box::new(admission.clone())))
        });
        let mut fleet_rows = Vec::new();
        for name in KEPT {
            fleet_rows.extend(engine.fleet(name)?.map(|value| (name, value)));
        }
        Ok(Self {
            records: revoked
                .chain(tombstones)
                .chain(admissions)
                .chain(tokens)
                .chain(keys)
                .collect(),
            audit: engine.audit(0, u64::MAX)?,
            fleet: state.identity.fleet.clone(),
            authority: engine.fleet("authority")?,
            fleet_rows,
            revision: state.revision,
        })
    }
}

/// Makes the copy in `file` ready to become the store.
///
/// # Errors
/// When it is no whole store, or one of another fleet.
pub fn prepare(
    file: &Path,
    carried: Option<&Carried>,
    epoch: &str,
    who: &str,
    now: UnixMillis,
) -> Result<(), StoreError> {
    super::sqlite::check(file)?;
    let mut engine = super::sqlite::Sqlite::open(file)?;
    let mut loaded = engine.load()?;
    if let Some(carried) = carried {
        let same = engine.fleet("authority")? == carried.authority;
        if loaded.identity.fleet != carried.fleet || !same {
            return Err(StoreError::Foreign(format!(
                "the backup is of fleet {} with another authority; this broker serves fleet {}. To take over another fleet, stop the broker and restore into an empty directory",
                loaded.identity.fleet, carried.fleet
            )));
        }
    }
    drop(engine);
    epoch.clone_into(&mut loaded.identity.epoch);
    let sql = |e| StoreError::sql("prepare", file, e);
    let mut connection = Connection::open(file).map_err(sql)?;
    connection
        .pragma_update(None, "journal_mode", "DELETE")
        .map_err(sql)?;
    let tx = connection.transaction().map_err(sql)?;
    let set = |name: &str, value: &str| {
        tx.execute(
            "INSERT OR REPLACE INTO fleet (key, body) VALUES (?1, ?2)",
            [name, value],
        )
        .map_err(sql)
    };
    set("identity", &identity_json(&loaded.identity))?;
    tx.execute("DELETE FROM changes", []).map_err(sql)?;
    let newest: i64 = tx
        .query_row("SELECT coalesce(max(sequence), 0) FROM audit", [], |r| {
            r.get(0)
        })
        .map_err(sql)?;
    let mut revision = loaded.revision;
    if let Some(carried) = carried {
        revision = revision.max(carried.revision);
        for (name, value) in &carried.fleet_rows {
            set(name, value)?;
        }
        for effect in &carried.records {
            carry(&tx, effect).map_err(sql)??;
        }
        for entry in carried
            .audit
            .iter()
            .filter(|e| e.sequence > unsigned(newest))
        {
            tx.execute(
                "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    signed(entry.sequence),
                    signed(entry.at.0),
                    entry.who,
                    entry.action,
                    entry.subject,
                    entry.detail
                ],
            )
            .map_err(sql)?;
        }
    }
    set("revision", &(revision + 1).to_string())?;
    tx.execute(
        "INSERT INTO audit (at, who, action, subject, detail) VALUES (?1, ?2, 'store.restore', ?3, ?4)",
        params![signed(now.0), who, loaded.identity.fleet.as_str(), format!("epoch {epoch}")],
    )
    .map_err(sql)?;
    tx.commit().map_err(sql)?;
    connection.close().map_err(|(_, e)| sql(e))
}

/// Puts a record that the copy may not undo; a cluster revoked since is taken out of it.
fn carry(connection: &Connection, effect: &Effect) -> rusqlite::Result<Result<(), StoreError>> {
    let row = match effect.row() {
        Ok(row) => row,
        Err(source) => {
            return Ok(Err(StoreError::Damaged {
                path: "the present store".into(),
                source,
            }));
        }
    };
    if row.table == Table::Admissions {
        // The copy's credential may have been replaced because it got lost. A cluster that the copy does not know so
        // stays as the copy has it.
        connection.execute(
            "UPDATE admissions SET body = ?2 WHERE key = ?1",
            params![row.key, row.body],
        )?;
        return Ok(Ok(()));
    }
    connection.execute(
        &format!(
            "INSERT OR REPLACE INTO {} (key, body) VALUES (?1, ?2)",
            row.table.name()
        ),
        params![row.key, row.body],
    )?;
    if row.table == Table::Revoked {
        connection.execute("DELETE FROM clusters WHERE key = ?1", [&row.key])?;
        connection.execute("DELETE FROM admissions WHERE key = ?1", [&row.key])?;
        connection.execute(
            "DELETE FROM enrolments WHERE key LIKE ?1",
            [format!("{}/%", row.key)],
        )?;
    }
    Ok(Ok(()))
}

#[derive(Serialize, Deserialize)]
struct IdentityRow {
    fleet: FleetName,
    epoch: String,
    ula: Cidr,
    pools: Vec<Pool>,
}

/// The row that keeps an identity.
pub(crate) fn identity_json(identity: &Identity) -> String {
    serde_json::json!({
        "fleet": identity.fleet,
        "epoch": identity.epoch,
        "ula": identity.ula,
        "pools": identity.pools,
    })
    .to_string()
}

/// The identity that a row keeps.
pub(crate) fn identity_of(json: &str) -> Option<Identity> {
    let row: IdentityRow = serde_json::from_str(json).ok()?;
    Some(Identity {
        fleet: row.fleet,
        epoch: row.epoch,
        ula: row.ula,
        pools: row.pools,
    })
}
