//! The nodes behind this one: who lives, who is forgotten, and what a restart needs to know of them. Shell.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::room::Room;
use super::server::Nodes;
use crate::membership::{Link, chain};
use crate::state;

/// How often the roster is looked at: who lives, who is forgotten, what is to be saved.
const ROLL_CALL: Duration = Duration::from_secs(5);
/// Who is new is saved so soon, with those who come meanwhile: an agent that crashes leaves them in the kernel, and the next one
/// must know whose that is.
const SAVE: Duration = Duration::from_millis(200);

/// What an earlier process knew of them.
pub(super) fn recall(nodes: &Nodes, link: &Link) {
    match link.state.read_json(state::NODES) {
        Ok(known) => drop(nodes.roster.send_replace(known.unwrap_or_default())),
        Err(error) => link.problem("nodes", Some(chain(&error))),
    }
}

/// Notes who lives, forgets who has not for long, and saves what a restart needs.
pub(super) async fn run(room: Arc<Room>) {
    let mut roster = room.nodes.roster.subscribe();
    let mut next = Instant::now() + ROLL_CALL;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => next = Instant::now() + ROLL_CALL,
            Ok(()) = roster.changed() => {
                tokio::time::sleep(SAVE).await;
                save(&room);
                continue;
            }
        }
        let now = room.link.clock.now();
        let alive = room.alive(now.mono);
        let with_session = room.nodes.with_session();
        room.nodes.roster.send_if_modified(|roster| {
            // Also one whose echo does not get through: it may yet.
            for node in &with_session {
                roster.hear(node, now.wall);
            }
            for (node, _) in alive.iter().filter(|(_, alive)| **alive) {
                roster.hear(node, now.wall);
            }
            roster.forget(now.wall)
        });
        let roster = room.nodes.roster.borrow().clone();
        room.nodes.seals.send_if_modified(|seals| {
            let before = seals.len();
            seals.retain(|node, _| roster.nodes().contains_key(node));
            seals.len() != before
        });
        save(&room);
    }
}

/// Saves them for a restart.
pub(super) fn save(room: &Room) {
    let roster = room.nodes.roster.borrow().clone();
    let saved = room.link.state.write_json(state::NODES, &roster);
    let problem = saved.err().map(|error| {
        format!(
            "the nodes behind us could not be saved for a restart: {}",
            chain(&error)
        )
    });
    room.link.problem("nodes", problem);
}
