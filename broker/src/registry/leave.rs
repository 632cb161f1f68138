//! Departure: a member leaves, is forgotten or is revoked. PURE.

use subsea_api::snapshot::{Gone, Tombstone};
use subsea_api::{Allocation, Cidr, ClusterId, Code, Kind, NodeName, Problem, UnixMillis};

use super::{Cut, Decision, Effect, Held, HeldState, Note, REST, State, not_a_member};

/// A member leaves by its founder `by`.
///
/// # Errors
/// `in-use` when it has other gateways and `force` is not set.
pub fn leave(
    state: &State,
    id: &ClusterId,
    by: &NodeName,
    force: bool,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    let cluster = state.member(id)?;
    let others: Vec<String> = cluster
        .gateways
        .keys()
        .filter(|node| *node != by)
        .map(ToString::to_string)
        .collect();
    if !others.is_empty() && !force {
        return Err(Problem::new(
            Code::InUse,
            format!("cluster {id} has other gateways: {}", others.join(", ")),
        )
        .hint("let them leave first, or force the whole cluster out with `--force`"));
    }
    Ok(gone(state, id, Gone::Left, now))
}

/// An operator removes a member, or lets a revoked cluster id join again.
///
/// # Errors
/// `not-found` when it is neither.
pub fn forget(state: &State, id: &ClusterId, now: UnixMillis) -> Result<Decision<()>, Problem> {
    if state.clusters.contains_key(id) {
        return Ok(gone(state, id, Gone::Forgotten, now));
    }
    if state.revoked.contains_key(id) {
        return Ok(Decision::changed(
            (),
            vec![Effect::Revoked(id.clone(), None)],
            Note::new(
                "cluster.forget",
                id.as_str(),
                "it was revoked and can join again",
            ),
        ));
    }
    Err(unknown(id))
}

/// An operator shuts a member out: its certificates are refused from now on.
///
/// # Errors
/// `not-found` when it is no member.
pub fn revoke(state: &State, id: &ClusterId, now: UnixMillis) -> Result<Decision<()>, Problem> {
    if state.clusters.contains_key(id) {
        return Ok(gone(state, id, Gone::Revoked, now));
    }
    if state.revoked.contains_key(id) {
        return Ok(Decision::unchanged(()));
    }
    Err(unknown(id))
}

fn unknown(id: &ClusterId) -> Problem {
    let mut problem = not_a_member(id).hint("`subsea-broker cluster list` shows the members");
    problem.code = Code::NotFound;
    problem
}

/// What becomes of a member that is gone for `reason`.
pub(super) fn gone(state: &State, id: &ClusterId, reason: Gone, now: UnixMillis) -> Decision<()> {
    let mut effects = Vec::new();
    if let Some(cluster) = state.clusters.get(id) {
        for block in &cluster.allocations {
            effects.extend(rest(state, id, *block, now));
        }
        for ip in cluster.gateways.values().flat_map(|g| &g.inner) {
            effects.extend(rest(state, id, infra(*ip), now));
        }
    }
    let nodes = state.enrolments.keys().filter(|k| k.cluster == *id);
    effects.extend(nodes.map(|k| Effect::Enrolment(k.clone(), None)));
    // Nor may its credential enrol anything in what comes after it.
    if state.admissions.contains_key(id) {
        effects.push(Effect::Admission(id.clone(), None));
    }
    // Tokens made for the member that is gone must not admit what comes after it.
    if reason == Gone::Revoked {
        for (token, record) in &state.tokens {
            if record.cluster == *id && record.used.is_none() && !record.revoked {
                let mut record = record.clone();
                record.revoked = true;
                effects.push(Effect::Token(token.clone(), Some(record)));
            }
        }
        effects.push(Effect::Revoked(id.clone(), Some(now)));
    }
    effects.push(Effect::Cluster(id.clone(), None));
    effects.push(Effect::Tombstone(
        id.clone(),
        Some(Tombstone { reason, at: now }),
    ));
    let action = match reason {
        Gone::Left => "cluster.leave",
        Gone::Forgotten => "cluster.forget",
        Gone::Revoked => "cluster.revoke",
    };
    Decision::changed((), effects, Note::new(action, id.as_str(), ""))
        .cutting(Cut::Cluster(id.clone()))
}

/// Lays a released block to rest; one that is reserved for the cluster stays so.
pub(super) fn rest(
    state: &State,
    id: &ClusterId,
    allocation: Allocation,
    now: UnixMillis,
) -> Option<Effect> {
    let held = Held {
        cluster: id.clone(),
        allocation,
        state: HeldState::Resting(now.plus(REST)),
    };
    let reserved = state
        .held
        .get(&held.key())
        .is_some_and(|block| block.state == HeldState::Reserved);
    (!reserved).then(|| Effect::hold(&held))
}

/// An inner address as a block.
pub(super) fn infra(ip: std::net::IpAddr) -> Allocation {
    Allocation {
        kind: Kind::Infra,
        cidr: Cidr::host(ip),
        exported: true,
    }
}
