//! Blocks held for clusters: reserved before they join, released by hand, listed. PURE.

use subsea_api::admin::{AllocationInfo, AllocationState, Reservation};
use subsea_api::conflict::{Claim, Owner, conflicts};
use subsea_api::{Allocation, Cidr, CidrRequest, Code, Kind, Problem};

use super::leave::infra;
use super::{Decision, Effect, Held, HeldState, Note, State, conflict_problem, exhausted_problem};
use crate::ipam;

/// The most reserved and resting blocks.
const MAX_HELD: usize = 100_000;

/// Reserves a block for a cluster, which need not be a member yet.
///
/// # Errors
/// `cidr-conflict`, `pool-exhausted`, or `bad-request` for inner addresses.
pub fn reserve(state: &State, request: &Reservation) -> Result<Decision<AllocationInfo>, Problem> {
    if request.kind == Kind::Infra {
        return Err(Problem::new(
            Code::BadRequest,
            "inner addresses of gateways cannot be reserved",
        )
        .hint("reserve pod, service, node or global blocks"));
    }
    if state.held.len() >= MAX_HELD {
        return Err(Problem::new(
            Code::Overloaded,
            "too many blocks are reserved",
        ));
    }
    let cidr = match request.cidr {
        CidrRequest::Exact(cidr) => cidr,
        CidrRequest::Auto { family, prefix_len } => state
            .pools()
            .iter()
            .filter(|p| p.kind == request.kind && p.cidr.family() == family)
            // What is already held for the cluster is in the way here: it wants a further block.
            .find_map(|p| ipam::first_fit(state.index(), p.cidr, prefix_len, &[], |_| false))
            .ok_or_else(|| {
                exhausted_problem(ipam::Exhausted {
                    kind: request.kind,
                    family: if family == subsea_api::Family::V4 {
                        "IPv4"
                    } else {
                        "IPv6"
                    },
                    prefix_len,
                })
            })?,
    };
    let held = Held {
        cluster: request.cluster.clone(),
        allocation: Allocation {
            kind: request.kind,
            cidr,
            exported: true,
        },
        state: HeldState::Reserved,
    };
    let found = conflicts(&[held.claim()], state.index(), state.pools());
    if !found.is_empty() {
        return Err(conflict_problem(found));
    }
    let known = state.held.get(&held.key()).map(|block| block.state);
    if known == Some(HeldState::Reserved) {
        return Ok(Decision::unchanged(held_info(&held)));
    }
    let note = Note::new(
        "allocation.reserve",
        cidr.to_string(),
        format!("{} for cluster {}", request.kind, request.cluster),
    );
    Ok(Decision::changed(
        held_info(&held),
        vec![Effect::hold(&held)],
        note,
    ))
}

/// Gives up a reservation, or ends the rest of a block.
///
/// # Errors
/// `in-use` when a member routes it, `not-found` when nobody holds it.
pub fn release(state: &State, cidr: Cidr) -> Result<Decision<()>, Problem> {
    let held: Vec<Held> = state
        .held_blocks()
        .filter(|h| h.allocation.cidr == cidr)
        .collect();
    if held.is_empty() {
        let member = state
            .clusters
            .iter()
            .find(|(_, c)| c.allocations.iter().any(|a| a.cidr == cidr));
        return Err(match member {
            Some((id, _)) => Problem::new(Code::InUse, format!("cluster {id} uses {cidr}"))
                .hint("it is released when the cluster leaves or joins again with other blocks"),
            None => Problem::new(Code::NotFound, format!("nobody holds {cidr}"))
                .hint("`subsea-broker allocation list` shows what is held"),
        });
    }
    let owners: Vec<String> = held.iter().map(|h| h.cluster.to_string()).collect();
    let effects = held.iter().map(|h| Effect::Held(h.key(), None)).collect();
    let note = Note::new(
        "allocation.release",
        cidr.to_string(),
        format!("was held for {}", owners.join(", ")),
    );
    Ok(Decision::changed((), effects, note))
}

/// Every block that is held, in address order.
pub fn allocations(state: &State) -> Vec<AllocationInfo> {
    let mut list: Vec<AllocationInfo> = state.held_blocks().map(|h| held_info(&h)).collect();
    for (id, cluster) in &state.clusters {
        let inner = cluster
            .gateways
            .values()
            .flat_map(|g| &g.inner)
            .map(|ip| infra(*ip));
        for allocation in cluster.allocations.iter().copied().chain(inner) {
            let claim = Claim::of(Owner::Cluster(id.clone()), allocation);
            list.push(info(claim.owner, allocation, AllocationState::Active));
        }
    }
    list.sort_by(|a, b| (a.cidr, &a.owner).cmp(&(b.cidr, &b.owner)));
    list
}

fn held_info(held: &Held) -> AllocationInfo {
    let owner = Owner::Reservation(held.cluster.clone());
    match held.state {
        HeldState::Reserved => info(owner, held.allocation, AllocationState::Reserved),
        HeldState::Resting(until) => AllocationInfo {
            free_at: Some(until),
            ..info(owner, held.allocation, AllocationState::Resting)
        },
    }
}

fn info(owner: Owner, allocation: Allocation, state: AllocationState) -> AllocationInfo {
    AllocationInfo {
        owner,
        kind: allocation.kind,
        cidr: allocation.cidr,
        exported: allocation.exported,
        state,
        free_at: None,
    }
}
