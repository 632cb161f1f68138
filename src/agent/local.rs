//! Follows the gateway daemon of this node, if there is one. Shell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control::feed::{BEAT, Feed};
use crate::control::{ControlError, Following};
use crate::state::SOCKET;

/// How soon a gateway that does not run is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// One that is silent for so long stands still.
const SILENCE: Duration = Duration::from_secs(1);

/// What the gateway of this node said last; none while none runs.
pub(super) type Own = Option<Arc<Feed>>;

/// Follows the gateway whose socket is in `dir` until the task is dropped.
pub(super) async fn run(dir: PathBuf, own: watch::Sender<Own>) {
    let socket = dir.join(SOCKET);
    loop {
        let ended = follow(&socket, &own).await;
        let was = own.send_replace(None);
        match ended {
            Ok(()) => tracing::warn!("the gateway of this node has ended"),
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) if was.is_some() => {
                tracing::warn!(%error, "the gateway of this node is not followed any more");
            }
            Err(error) => tracing::debug!(%error, "the gateway of this node"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow(socket: &std::path::Path, own: &watch::Sender<Own>) -> Result<(), ControlError> {
    const { assert!(SILENCE.as_millis() >= 4 * BEAT.as_millis()) };
    let mut following = Following::begin(socket).await?;
    loop {
        let late = |_| ControlError::Timeout {
            path: socket.to_owned(),
        };
        let next = tokio::time::timeout(SILENCE, following.next());
        let Some(feed) = next.await.map_err(late)?? else {
            return Ok(());
        };
        own.send_if_modified(|now| {
            let changed = now.as_deref() != Some(&feed);
            if changed {
                if now.is_none() {
                    tracing::info!("the gateway of this node runs");
                }
                *now = Some(Arc::new(feed));
            }
            changed
        });
    }
}
