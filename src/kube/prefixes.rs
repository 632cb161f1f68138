//! Feeds the agent with the blocks of its node's pods, as the network plugin has them. Shell.
//!
//! What was known last is kept on disk: an agent that starts while the API server is away goes on with it, for the gateways'
//! nodes take what an agent says for all that is behind it.

use std::time::Duration;

use subsea_api::Cidr;
use tokio::sync::watch;

use super::connect::connect_to_watch;
use super::discover::follow;
use super::discover::prefixes::PrefixSource;
use crate::control::around::Notebook;
use crate::membership::clock::random;
use crate::membership::{backoff, chain};
use crate::state::{self, StateDir};

/// The shortest and the longest pause while there is no way to the API server.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// What was known last; nothing at the very first start.
pub fn known(state: &StateDir, notes: &Notebook) -> Vec<Cidr> {
    let read = state.read_json::<Vec<Cidr>>(state::PREFIXES);
    read.unwrap_or_else(|error| {
        notes.problem("pod-prefixes", Some(chain(&error)));
        None
    })
    .unwrap_or_default()
}

/// Feeds `prefixes` until the task is dropped.
pub async fn feed(
    node: String,
    source: PrefixSource,
    state: StateDir,
    notes: Notebook,
    prefixes: watch::Sender<Vec<Cidr>>,
) {
    let mut failures = 0_u32;
    let client = loop {
        match connect_to_watch().await {
            Ok(client) => break client,
            Err(error) => {
                failures = failures.saturating_add(1);
                let what = format!(
                    "Kubernetes: the blocks of this node's pods: {}",
                    chain(&error)
                );
                notes.problem("pod-prefixes", Some(what));
                tokio::time::sleep(backoff::delay(failures, RETRY.0, RETRY.1, random())).await;
            }
        }
    };
    notes.problem("pod-prefixes", None);
    let remembered = !prefixes.borrow().is_empty();
    let mut following = follow(client, node, source, remembered);
    loop {
        tokio::select! {
            Ok(()) = following.denied.changed() => {
                let denied = following.denied.borrow_and_update().clone();
                notes.problem("pod-prefixes-rights", denied);
                continue;
            }
            Ok(()) = following.prefixes.changed() => {}
            else => return,
        }
        let now = following.prefixes.borrow_and_update().clone();
        let Some(now) = now else {
            continue;
        };
        // First told, then kept: a disk may take its time.
        prefixes.send_if_modified(|before| {
            let changed = *before != now;
            before.clone_from(&now);
            changed
        });
        let kept = state.write_json(state::PREFIXES, &now);
        let problem = kept.err().map(|error| {
            let error = chain(&error);
            format!("the blocks of this node's pods could not be kept for a restart: {error}")
        });
        notes.problem("pod-prefixes", problem);
    }
}
