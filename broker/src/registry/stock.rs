//! Stock WireGuard peers, registered as gateways by an operator. PURE.

use std::borrow::Cow;
use std::collections::BTreeMap;

use subsea_api::admin::StockGateway;
use subsea_api::conflict::{Claim, Owner, What, conflicts};
use subsea_api::snapshot::{Cluster, Gateway, Listener, ListenerState, StockPeer};
use subsea_api::{Allocation, ClusterId, Kind, NodeName, Problem, UnixMillis};

use super::gateway::{
    MAX_GATEWAYS, bad, check_endpoints, check_listeners, claim_keys, free_slot, name_taken, put,
    seat,
};
use super::leave::rest;
use super::state::host_claim;
use super::{Decision, Effect, HeldState, Note, State, conflict_problem, revoked_problem};

/// Registers a stock WireGuard peer; admits its cluster when it is no member yet.
///
/// # Errors
/// As [`super::register_gateway`]; `name-taken` when a gateway of ours has the name.
pub fn add_stock_gateway(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    request: &StockGateway,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    if state.revoked.contains_key(id) {
        return Err(revoked_problem(id));
    }
    let old = state.clusters.get(id);
    let known = old.and_then(|c| c.gateways.get(node));
    if state.enrolments.contains_key(&seat(id, node)) || known.is_some_and(|g| g.stock.is_none()) {
        return Err(name_taken(id, node));
    }
    if old.is_some_and(|c| known.is_none() && c.gateways.len() >= MAX_GATEWAYS) {
        return Err(bad(format!(
            "cluster {id} has {MAX_GATEWAYS} gateways already"
        )));
    }
    let mut listener = Listener {
        id: "stock".into(),
        public_key: request.public_key,
        port: request.endpoint.port(),
        stripe: 0,
        slot: 0,
        for_slot: None,
        state: ListenerState::Active,
        candidates: vec![request.endpoint],
    };
    check_listeners(std::slice::from_ref(&listener))?;
    let mut effects = claim_keys(state, id, node, [request.public_key])?;
    let mut cluster = match old {
        Some(cluster) => cluster.clone(),
        None => Cluster {
            joined_at: now,
            allocations: Vec::new(),
            gateways: BTreeMap::new(),
        },
    };
    effects.extend(stock_blocks(state, id, &mut cluster, request, now)?);
    check_endpoints(state, id, std::slice::from_ref(&listener))?;
    let slot = known.map_or_else(|| free_slot(&cluster), |g| g.slot);
    listener.slot = slot;
    let gateway = Gateway {
        inner: Vec::new(),
        slot,
        listeners: vec![listener],
        stock: Some(StockPeer {
            probe: request.probe,
        }),
        node_addresses: Vec::new(),
        expired: None,
    };
    let same = old.is_some_and(|c| c.allocations == cluster.allocations);
    if same && known == Some(&gateway) {
        return Ok(Decision::unchanged(()));
    }
    if state.tombstones.contains_key(id) {
        effects.push(Effect::Tombstone(id.clone(), None));
    }
    let note = Note::new(
        "gateway.add",
        format!("{id}/{node}"),
        format!("stock peer at {}", request.endpoint),
    );
    effects.push(put(id, &cluster, node, gateway));
    Ok(Decision::changed((), effects, note))
}

/// Gives a stock peer's cluster its blocks: those of the request and those reserved for it.
fn stock_blocks(
    state: &State,
    id: &ClusterId,
    cluster: &mut Cluster,
    request: &StockGateway,
    now: UnixMillis,
) -> Result<Vec<Effect>, Problem> {
    let joined =
        state.admissions.contains_key(id) || state.enrolments.keys().any(|k| k.cluster == *id);
    if joined || (!cluster.gateways.is_empty() && request.allocations.is_empty()) {
        if request.allocations.is_empty() {
            return Ok(Vec::new());
        }
        return Err(bad(format!(
            "cluster {id} joined by itself: its blocks are those of its join"
        ))
        .hint("leave the blocks out"));
    }
    if request.allocations.iter().any(|a| a.kind == Kind::Infra) {
        return Err(bad("inner addresses are given by the broker alone".into()));
    }
    let mut blocks = request.allocations.clone();
    blocks.extend(
        state
            .held_by(id)
            .filter(|h| h.state == HeldState::Reserved)
            .map(|h| h.allocation)
            .filter(|h| {
                !request
                    .allocations
                    .iter()
                    .any(|a| a.cidr.common(h.cidr).is_some())
            }),
    );
    blocks.sort_unstable();
    blocks.dedup();
    if blocks.is_empty() {
        return Err(bad(format!("cluster {id} is no member and has no blocks")).hint(
            "name the blocks behind the peer, or reserve them first with `subsea-broker allocation reserve`",
        ));
    }
    let owner = Owner::Cluster(id.clone());
    let mut index = Cow::Borrowed(state.index());
    for old in &cluster.allocations {
        index.to_mut().remove(&Claim::of(owner.clone(), *old));
    }
    let mut wanted: Vec<Claim> = blocks
        .iter()
        .map(|a| Claim::of(owner.clone(), *a))
        .collect();
    wanted.push(host_claim(owner, What::Endpoint, request.endpoint.ip()));
    let found = conflicts(&wanted, &index, state.pools());
    if !found.is_empty() {
        return Err(conflict_problem(found));
    }
    let mut effects: Vec<Effect> = state
        .held_by(id)
        .filter(|h| {
            blocks
                .iter()
                .any(|b| b.cidr.common(h.allocation.cidr).is_some())
        })
        .map(|h| Effect::Held(h.key(), None))
        .collect();
    let released = cluster
        .allocations
        .iter()
        .filter(|old| !blocks.iter().any(|b| b.cidr == old.cidr));
    effects.extend(released.filter_map(|old: &Allocation| rest(state, id, *old, now)));
    cluster.allocations = blocks;
    Ok(effects)
}
