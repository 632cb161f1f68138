//! Keeps the fleet on disk, so that a restart without the broker finds it. Shell.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::fleet::{Kept, View};
use super::standing;
use super::{Link, chain};
use crate::state::{KEPT, Membership, StateDir, StateError};

/// How soon a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Saves every change until the task is dropped; changes that come during a write are saved together.
pub(crate) async fn run(link: Arc<Link>, mut view: watch::Receiver<Arc<View>>, start: Arc<View>) {
    let mut saved = start;
    loop {
        let wanted = view.borrow_and_update().clone();
        let failed = match save(&link, &saved, &wanted).await {
            Ok(()) => {
                link.problem("disk", None);
                saved = wanted;
                false
            }
            Err(error) => {
                let what = format!(
                    "the fleet could not be saved for a restart: {}",
                    chain(&error)
                );
                link.problem("disk", Some(what));
                true
            }
        };
        if failed {
            tokio::time::sleep(RETRY).await;
        } else if view.changed().await.is_err() {
            return;
        }
    }
}

/// Writes what differs from what was saved.
pub(crate) async fn save(
    link: &Link,
    saved: &Arc<View>,
    wanted: &Arc<View>,
) -> Result<(), StateError> {
    let state = link.state.clone();
    let member = link.membership.clone();
    let (saved, wanted) = (Arc::clone(saved), Arc::clone(wanted));
    let write = move || {
        let broker = |view: &View| {
            view.snapshot
                .as_ref()
                .map(|snapshot| snapshot.broker.clone())
        };
        if let Some(broker) = broker(&wanted).filter(|now| Some(now) != broker(&saved).as_ref()) {
            // So that `subsea leave` finds a broker that has moved, too.
            let broker = standing::broker(Some(&broker), &member.broker);
            if broker != member.broker {
                state.write_membership(&Membership { broker, ..member })?;
            }
        }
        // First what is kept: a crash between the two files leaves more kept, not less.
        if saved.kept != wanted.kept {
            state.write_json(KEPT, &wanted.kept)?;
        }
        match &wanted.snapshot {
            Some(snapshot) if saved.snapshot.as_ref() != Some(snapshot) => {
                state.write_snapshot(snapshot)
            }
            Some(_) | None => Ok(()),
        }
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(done) => done,
        Err(error) => {
            // Only at the end of the process; it is saved again after the next change.
            tracing::warn!(%error, "saving was cut short");
            Ok(())
        }
    }
}

/// Reads what was kept; a damaged file is as good as none.
pub(crate) fn load(state: &StateDir) -> Result<Kept, StateError> {
    Ok(state.read_json(KEPT)?.unwrap_or_default())
}
