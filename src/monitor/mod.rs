//! `/healthz`, `/readyz` and `/metrics` of a daemon, on a TCP port of the node. This file wires.
//!
//! `verdict` and `families` decide (PURE), `server` moves bytes. Nothing here asks the broker or a peer: a daemon is ready
//! when its own node is served, whatever becomes of the rest.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use crate::control::around::Door;
use crate::membership::lock;

pub mod families;
mod limits;
pub mod server;
pub mod verdict;

use self::verdict::{Pulse, Report, Stage, Verdict};

/// How long a daemon may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many questions may be open at once: one that is never answered holds a thread.
const OPEN: usize = 4;

/// A daemon as it is asked over HTTP.
#[derive(Debug)]
pub struct Subject<S> {
    door: Door<S>,
    stage: watch::Receiver<Stage>,
    pulse: Mutex<Pulse>,
    start: Instant,
    open: Arc<Semaphore>,
}

impl<S: Report> Subject<S> {
    /// The daemon behind `door`; `stage` says how far it is while there is none.
    pub fn new(door: Door<S>, stage: watch::Receiver<Stage>) -> Self {
        Self {
            door,
            stage,
            pulse: Mutex::default(),
            start: Instant::now(),
            open: Arc::new(Semaphore::new(OPEN)),
        }
    }

    /// Whether its main loops are alive.
    async fn health(&self) -> Verdict {
        let asked = self.ask().await;
        let now = self.start.elapsed();
        lock(&self.pulse).health(asked.as_ref(), now)
    }

    /// Whether it does its work on its own node.
    async fn readiness(&self) -> Verdict {
        let stage = self.stage.borrow().clone();
        verdict::readiness(&stage, self.ask().await.as_ref())
    }

    /// Its metrics.
    async fn metrics(&self) -> Result<String, String> {
        let status = self.ask().await;
        let status = status.map_err(|Silent| verdict::SILENT.to_owned())?;
        families::text(status).map_err(|_| "the metrics cannot be written".to_owned())
    }

    /// Its status; none while no daemon runs.
    async fn ask(&self) -> Result<Option<S>, Silent> {
        let Some(daemon) = self.door.daemon() else {
            return Ok(None);
        };
        let asking = async {
            let permit = Arc::clone(&self.open).acquire_owned().await;
            let permit = permit.map_err(|_| Silent)?;
            // On a thread of its own: it takes locks, and may never get them.
            let asking = move || {
                let status = daemon.status();
                drop(permit);
                status
            };
            let status = tokio::task::spawn_blocking(asking).await;
            status.map(Some).map_err(|_| Silent)
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or(Err(Silent))
    }
}

/// The daemon did not say how it is in time.
#[derive(Debug, Clone, Copy)]
pub struct Silent;
