//! The blocks that a cluster asks for: what it would be given, what stands against it, and what changes. PURE.

use std::borrow::Cow;

use subsea_api::conflict::{Claim, Conflict, Owner, conflicts};
use subsea_api::member::{CidrRequests, OwnedAllocation};
use subsea_api::snapshot::Cluster;
use subsea_api::{Allocation, AllocationIndex, Cidr, ClusterId, Code, Kind, Problem, UnixMillis};

use super::leave::rest;
use super::{Effect, HeldState, State, conflict_problem, exhausted_problem};
use crate::ipam;

/// The most blocks of one kind in a request.
const MAX_BLOCKS: usize = 64;

/// Blocks that can be given.
pub(super) struct Blocks {
    /// The cluster's record with them, and what becomes of the blocks that it had.
    pub(super) effects: Vec<Effect>,
    /// All that it has then.
    pub(super) allocations: Vec<Allocation>,
    /// They, for the audit log.
    pub(super) text: String,
}

/// Gives a cluster its blocks, new or a member already; those that it had and asks for no more rest.
///
/// # Errors
/// `cidr-conflict`, `pool-exhausted`, `bad-request`.
pub(super) fn take_blocks(
    state: &State,
    id: &ClusterId,
    requests: &CidrRequests,
    now: UnixMillis,
) -> Result<Blocks, Problem> {
    let old = state.clusters.get(id);
    let (allocations, found) = plan(state, id, requests)?;
    if !found.is_empty() {
        return Err(conflict_problem(found));
    }
    let mut effects = Vec::new();
    for held in state.held_by(id) {
        if allocations
            .iter()
            .any(|a| a.cidr.common(held.allocation.cidr).is_some())
        {
            effects.push(Effect::Held(held.key(), None));
        }
    }
    let released = old.iter().flat_map(|old| &old.allocations);
    for block in released.filter(|b| !allocations.iter().any(|a| a.cidr == b.cidr)) {
        effects.extend(rest(state, id, *block, now));
    }
    if state.tombstones.contains_key(id) {
        effects.push(Effect::Tombstone(id.clone(), None));
    }
    let record = Cluster {
        joined_at: old.map_or(now, |old| old.joined_at),
        allocations: allocations.clone(),
        gateways: old.map(|old| old.gateways.clone()).unwrap_or_default(),
    };
    effects.push(Effect::Cluster(id.clone(), Some(Box::new(record))));
    let texts: Vec<String> = allocations
        .iter()
        .map(|a| format!("{} {}", a.kind, a.cidr))
        .collect();
    Ok(Blocks {
        effects,
        allocations,
        text: texts.join(", "),
    })
}

/// The blocks that requests would give a cluster, and every pair that may not meet. The cluster's present
/// blocks are not in the way: they are what the request replaces.
pub(super) fn plan(
    state: &State,
    id: &ClusterId,
    requests: &CidrRequests,
) -> Result<(Vec<Allocation>, Vec<Conflict>), Problem> {
    let lists = [
        requests.pod.len(),
        requests.service.len(),
        requests.node.len(),
    ];
    if requests.pod.is_empty() && requests.service.is_empty() {
        return Err(
            Problem::new(Code::BadRequest, format!("cluster {id} asks for no block"))
                .hint("give at least `--pod-cidr` or `--service-cidr`"),
        );
    }
    if lists.iter().any(|len| *len > MAX_BLOCKS) {
        return Err(Problem::new(
            Code::BadRequest,
            format!("more than {MAX_BLOCKS} blocks of one kind"),
        ));
    }
    let own: &[Allocation] = state.clusters.get(id).map_or(&[], |c| &c.allocations);
    let mut index: Cow<'_, AllocationIndex> = Cow::Borrowed(state.index());
    let owner = Owner::Cluster(id.clone());
    for allocation in own {
        index
            .to_mut()
            .remove(&Claim::of(owner.clone(), *allocation));
    }
    let reserved = state.held_by(id).filter(|h| h.state == HeldState::Reserved);
    let mut preferred = own.to_vec();
    preferred.extend(reserved.map(|h| h.allocation));
    let space = ipam::Space {
        index: &index,
        pools: state.pools(),
        cluster: id,
        preferred: &preferred,
    };
    let allocations = ipam::resolve(space, requests).map_err(exhausted_problem)?;
    let wanted: Vec<Claim> = allocations
        .iter()
        .map(|a| Claim::of(owner.clone(), *a))
        .collect();
    let found = conflicts(&wanted, &index, state.pools());
    Ok((allocations, found))
}

/// What the other members route.
pub(super) fn others(state: &State, id: &ClusterId) -> Vec<OwnedAllocation> {
    let mut found = Vec::new();
    for (other, cluster) in state.clusters.iter().filter(|(other, _)| *other != id) {
        let inner = cluster
            .gateways
            .values()
            .flat_map(|g| &g.inner)
            .map(|ip| Allocation {
                kind: Kind::Infra,
                cidr: Cidr::host(*ip),
                exported: true,
            });
        for allocation in cluster.allocations.iter().copied().chain(inner) {
            found.push(OwnedAllocation {
                owner: Owner::Cluster(other.clone()),
                allocation,
            });
        }
    }
    found
}
