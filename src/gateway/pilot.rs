//! Moves flows between devices in the moment in which a gateway goes or comes, beside the pass over the kernel, which may
//! take long. Shell; [`super::spread`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::mesh::{Mesh, PathId};
use super::shared::{chain, lock};
use super::spread::Ways;
use crate::host::desired::Desired;
use crate::host::{Steering, Swap};
use crate::net::netlink::Group;
use crate::tunnel::Tunnel;

/// For so long after the start the groups that an earlier process left stay as they are, while not all paths are known to
/// work: not to be heard of yet is no reason to move flows.
const GRACE: Duration = Duration::from_secs(2);

/// The fast way. For a driver with one device there is nothing to do.
pub(super) struct Pilot {
    swap: Swap,
    tunnel: Arc<dyn Tunnel>,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last decision.
    number: u64,
    in_use: BTreeSet<PathId>,
    made: Option<Made>,
    /// Groups that were steered since the last pass, and the number of the decision that did it.
    steered: BTreeMap<u32, u64>,
}

/// What the last pass was made for.
struct Made {
    mesh: Arc<Mesh>,
    lost: BTreeMap<String, String>,
    groups: BTreeMap<u32, Group>,
}

/// What a pass has to start from.
pub(super) struct Decision {
    pub(super) number: u64,
    pub(super) in_use: BTreeSet<PathId>,
}

impl Pilot {
    pub(super) fn new(swap: Swap, tunnel: Arc<dyn Tunnel>) -> Self {
        Self {
            swap,
            tunnel,
            started: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// These paths are in use from now on. Blocks for some microseconds for each group that changes.
    pub(super) fn steer(&self, in_use: &BTreeSet<PathId>) {
        if !self.tunnel.leaves_checks() {
            return;
        }
        let mut state = lock(&self.state);
        let State {
            number,
            in_use: now,
            made,
            steered,
        } = &mut *state;
        *number += 1;
        now.clone_from(in_use);
        let Some(made) = made else { return };
        let ways = Ways {
            mesh: &made.mesh,
            in_use,
            device_of: &|slot| self.tunnel.device_of(slot),
            lost: &made.lost,
        };
        let groups = ways.groups().into_iter();
        // One that the kernel does not have yet is for the pass.
        let turned = groups.filter(|(id, group)| {
            let before = made.groups.get(id);
            before.is_some_and(|before| before != group || steered.contains_key(id))
        });
        let groups: BTreeMap<u32, Group> = turned.collect();
        steered.extend(groups.keys().map(|id| (*id, *number)));
        if groups.is_empty() {
            return;
        }
        let moved = groups.len();
        let steering = Steering {
            number: *number,
            groups,
            rules: BTreeMap::new(),
        };
        match self.swap.steer(steering) {
            Ok(()) => tracing::debug!(groups = moved, "flows moved"),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "flows were not moved at once: the next pass moves them"
                );
            }
        }
    }

    /// What was decided last.
    pub(super) fn decision(&self) -> Decision {
        let state = lock(&self.state);
        Decision {
            number: state.number,
            in_use: state.in_use.clone(),
        }
    }

    /// Whether groups that stand must stay as they are.
    pub(super) fn waits(&self, mesh: &Mesh) -> bool {
        let in_use = &lock(&self.state).in_use;
        let heard = mesh.paths.iter().all(|path| in_use.contains(&path.id));
        !heard && self.started.elapsed() < GRACE
    }

    /// A pass was made for this.
    pub(super) fn made(&self, mesh: &Arc<Mesh>, lost: &BTreeMap<String, String>, wanted: &Desired) {
        let groups = wanted.groups.iter();
        let mut state = lock(&self.state);
        state.steered.retain(|_, number| *number > wanted.steering);
        state.made = (!wanted.hold).then(|| Made {
            mesh: Arc::clone(mesh),
            lost: lost.clone(),
            groups: groups.map(|group| (group.id, group.clone())).collect(),
        });
    }
}
