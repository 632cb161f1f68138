//! Ends the leases of gateways that the broker hears nothing of. Shell.

use std::sync::Arc;

use crate::clock;
use crate::http::App;
use crate::registry::{self, BATCH};

/// Looks after the leases, for ever.
pub(crate) async fn run(app: Arc<App>) {
    let pause = app.leases().pause();
    loop {
        let worker = app.clone();
        let looked = tokio::task::spawn_blocking(move || end(&worker)).await;
        if let Err(error) = looked {
            tracing::error!(%error, "the leases were not looked after");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Ends every lease that is over, some in each commit.
fn end(app: &App) {
    let over = {
        let memory = app.store.read();
        app.leases().look(&memory.state, clock::since_boot())
    };
    let mut more = over;
    while more {
        let now = clock::now();
        let ended = app.store.write("broker", now, |state| {
            let names = app.leases().end(state, clock::since_boot());
            more = names.len() == BATCH;
            Ok(registry::expire(state, &names, now))
        });
        if let Err(error) = ended {
            // The records still say nothing: the next look finds the same.
            tracing::warn!(%error, "could not write down which leases are over");
            return;
        }
    }
}
