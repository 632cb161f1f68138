//! Gateways, registered and removed by their own node, cleared by another one of their cluster, or forgotten by an operator. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use subsea_api::conflict::{Claim, Owner, What, conflicts};
use subsea_api::member::{node_address_fault, node_addresses};
use subsea_api::snapshot::{
    Cluster, Gateway, Listener, ListenerState, MAX_LISTENERS, MAX_NODE_ADDRESSES,
};
use subsea_api::{ClusterId, Code, Kind, NodeName, Problem, PublicKey, Role, UnixMillis};

use super::leave::{infra, rest};
use super::state::host_claim;
use super::{
    Cut, Decision, Effect, KeyOwner, NodeKey, Note, Seat, State, conflict_problem,
    exhausted_problem,
};
use crate::ipam;

/// The most candidates of a listener.
const MAX_CANDIDATES: usize = 8;
/// The most gateways of a cluster.
pub(super) const MAX_GATEWAYS: usize = 64;

/// Replaces a gateway's listeners and node addresses; a lease that was over is none any more. Possession of the
/// listeners' keys was shown to the shell.
///
/// # Errors
/// `bad-request`, `key-taken`, `cidr-conflict` for an endpoint inside a routed block, `pool-exhausted`.
pub fn register_gateway(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    listeners: &[Listener],
    addresses: &[IpAddr],
) -> Result<Decision<Gateway>, Problem> {
    let cluster = state.member(id)?;
    let old = cluster.gateways.get(node);
    if old.is_some_and(|g| g.stock.is_some()) {
        return Err(name_taken(id, node));
    }
    if old.is_none() && cluster.gateways.len() >= MAX_GATEWAYS {
        return Err(bad(format!(
            "cluster {id} has {MAX_GATEWAYS} gateways already"
        )));
    }
    check_listeners(listeners)?;
    let node_addresses = checked_node_addresses(addresses)?;
    let mut effects = claim_keys(state, id, node, listeners.iter().map(|l| l.public_key))?;
    check_endpoints(state, id, listeners)?;
    let slot = old.map_or_else(|| free_slot(cluster), |g| g.slot);
    let inner = match old {
        Some(g) => g.inner.clone(),
        None => ipam::inner_addresses(state.index(), state.pools(), state.identity.ula, id)
            .map_err(exhausted_problem)?,
    };
    let mut listeners = listeners.to_vec();
    for listener in &mut listeners {
        listener.slot = slot;
    }
    let gateway = Gateway {
        inner,
        slot,
        listeners,
        stock: None,
        node_addresses,
        expired: None,
    };
    if old == Some(&gateway) {
        return Ok(Decision::unchanged(gateway));
    }
    for ip in &gateway.inner {
        let resting = (id.clone(), Kind::Infra, infra(*ip).cidr);
        if state.held.contains_key(&resting) {
            effects.push(Effect::Held(resting, None));
        }
    }
    let note = Note::new(
        "gateway.register",
        format!("{id}/{node}"),
        listeners_text(&gateway.listeners),
    );
    effects.push(put(id, cluster, node, gateway.clone()));
    Ok(Decision::changed(gateway, effects, note))
}

/// Removes a gateway at its own node's wish. The founder stays enrolled; another node is enrolled no more.
///
/// # Errors
/// `not-found` when there is none.
pub fn remove_gateway(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    role: Role,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    let cluster = state.member(id)?;
    let mut effects = Vec::new();
    if cluster.gateways.contains_key(node) {
        effects = without(state, id, cluster, node, now);
    } else if role == Role::Member {
        return Err(no_gateway(id, node));
    }
    let note = Note::new("gateway.remove", format!("{id}/{node}"), "");
    if role == Role::Member {
        return Ok(Decision::changed((), effects, note));
    }
    let key = seat(id, node);
    effects.push(Effect::Enrolment(key.clone(), None));
    Ok(Decision::changed((), effects, note).cutting(Cut::Node(key)))
}

/// Removes a gateway and its node's enrolment at the wish of another gateway of its cluster, which knows that the node is no more.
/// A gateway whose lease runs is not taken for gone, whoever says so.
///
/// # Errors
/// `not-found` when there is none, `forbidden` while its lease runs.
pub fn clear_gateway(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    let gateway = state.member(id)?.gateways.get(node);
    let gateway = gateway.ok_or_else(|| no_gateway(id, node))?;
    // A stock WireGuard peer has no lease that could be over.
    if gateway.expired.is_none() {
        let message = format!("gateway {id}/{node} has not lapsed: only its own node removes it");
        return Err(Problem::new(Code::Forbidden, message).hint(format!(
            "an operator can: `subsea-broker gateway forget --cluster {id} --node {node}`"
        )));
    }
    strike(state, id, node, "gateway.clear", now)
}

/// Removes a gateway and its node's enrolment at an operator's wish.
///
/// # Errors
/// `not-found` when there is neither.
pub fn forget_gateway(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    strike(state, id, node, "gateway.forget", now)
}

fn strike(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    action: &'static str,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    let cluster = state.clusters.get(id).ok_or_else(|| no_gateway(id, node))?;
    let key = seat(id, node);
    let mut effects = Vec::new();
    if cluster.gateways.contains_key(node) {
        effects = without(state, id, cluster, node, now);
    }
    if state.enrolments.contains_key(&key) {
        effects.push(Effect::Enrolment(key.clone(), None));
    }
    if effects.is_empty() {
        return Err(no_gateway(id, node));
    }
    let note = Note::new(action, format!("{id}/{node}"), "");
    Ok(Decision::changed((), effects, note).cutting(Cut::Node(key)))
}

pub(super) fn check_listeners(listeners: &[Listener]) -> Result<(), Problem> {
    if listeners.is_empty() || listeners.len() > MAX_LISTENERS {
        return Err(bad(format!("a gateway has 1 to {MAX_LISTENERS} listeners")));
    }
    for (i, listener) in listeners.iter().enumerate() {
        let id = &listener.id;
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if id.is_empty() || id.len() > 63 || !id.bytes().all(label) {
            return Err(bad(
                "a listener id has 1 to 63 characters of a-z, 0-9 and `-`".into(),
            ));
        }
        let twice = |l: &Listener| l.id == *id || l.public_key == listener.public_key;
        if listeners[..i].iter().any(twice) {
            return Err(bad(format!("listener {id} or its key occurs twice")));
        }
        if listener.port == 0 {
            return Err(bad(format!("listener {id} has no port")));
        }
        if listener.candidates.is_empty() || listener.candidates.len() > MAX_CANDIDATES {
            return Err(bad(format!(
                "listener {id} needs 1 to {MAX_CANDIDATES} endpoints"
            )));
        }
        for endpoint in &listener.candidates {
            if let Some(reason) = unreachable(*endpoint) {
                return Err(bad(format!("{endpoint} is no endpoint for listener {id}: {reason}"))
                    .hint("give an address by which other clusters reach this gateway, with `--endpoint IP:PORT`"));
            }
        }
    }
    check_stripes(listeners)
}

/// The node addresses in their one form.
fn checked_node_addresses(given: &[IpAddr]) -> Result<Vec<IpAddr>, Problem> {
    let addresses = node_addresses(given);
    if addresses.len() > MAX_NODE_ADDRESSES {
        return Err(bad(format!(
            "a gateway has at most {MAX_NODE_ADDRESSES} node addresses"
        )));
    }
    for address in &addresses {
        if let Some(fault) = node_address_fault(*address) {
            return Err(bad(format!("{address} is no node address: {fault}"))
                .hint("give an address by which the other nodes of the cluster reach this one, with `--node-address IP`"));
        }
    }
    Ok(addresses)
}

/// Peers choose a listener by its stripe and `for_slot`: the choice must be one, and have no gap.
fn check_stripes(listeners: &[Listener]) -> Result<(), Problem> {
    let mut stripes: BTreeMap<Option<u16>, BTreeSet<u16>> = BTreeMap::new();
    let active = |l: &&Listener| l.state == ListenerState::Active;
    for listener in listeners.iter().filter(active) {
        let Listener {
            id,
            stripe,
            for_slot,
            ..
        } = listener;
        if for_slot.is_some_and(|slot| usize::from(slot) >= MAX_GATEWAYS) {
            return Err(bad(format!(
                "listener {id} is for a slot that no gateway can have: slots end at {}",
                MAX_GATEWAYS - 1
            )));
        }
        if !stripes.entry(*for_slot).or_default().insert(*stripe) {
            return Err(bad(format!(
                "listener {id} is the second of stripe {stripe} for the same gateways"
            )));
        }
    }
    for (for_slot, stripes) in stripes {
        if let Some((missing, _)) = (0..).zip(stripes).find(|(want, have)| want != have) {
            let whom = for_slot.map_or_else(String::new, |slot| format!(" for slot {slot}"));
            return Err(bad(format!(
                "the listeners{whom} have a gap: stripe {missing} is missing"
            )));
        }
    }
    Ok(())
}

fn unreachable(endpoint: SocketAddr) -> Option<&'static str> {
    let ip = endpoint.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if endpoint.port() == 0 {
        Some("port 0")
    } else if ip.is_unspecified() {
        Some("the unspecified address")
    } else if ip.is_multicast() || broadcast {
        Some("a multicast or broadcast address")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else {
        None
    }
}

/// Claims keys for a gateway: each has one owner for ever.
pub(super) fn claim_keys(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
    keys: impl IntoIterator<Item = PublicKey>,
) -> Result<Vec<Effect>, Problem> {
    let owner = KeyOwner {
        cluster: id.clone(),
        node: node.clone(),
    };
    let mut effects = Vec::new();
    for key in keys {
        match state.keys.get(&key) {
            None => effects.push(Effect::Key(key, owner.clone())),
            Some(known) if *known == owner => {}
            Some(_) => {
                return Err(Problem::new(
                    Code::KeyTaken,
                    format!("the public key {key} belongs, or belonged, to another gateway"),
                )
                .hint("a key has one owner for ever: remove this gateway's key file and start it again"));
            }
        }
    }
    Ok(effects)
}

pub(super) fn check_endpoints(
    state: &State,
    id: &ClusterId,
    listeners: &[Listener],
) -> Result<(), Problem> {
    let mut hosts: Vec<IpAddr> = listeners
        .iter()
        .flat_map(|l| &l.candidates)
        .map(|c| c.ip().to_canonical())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    let wanted: Vec<Claim> = hosts
        .into_iter()
        .map(|ip| host_claim(Owner::Cluster(id.clone()), What::Endpoint, ip))
        .collect();
    let found = conflicts(&wanted, state.index(), state.pools());
    if found.is_empty() {
        Ok(())
    } else {
        Err(conflict_problem(found)
            .hint("traffic to an endpoint inside a routed block would enter the tunnel: choose another `--endpoint` or other blocks"))
    }
}

/// The smallest number that no gateway of the cluster has.
pub(super) fn free_slot(cluster: &Cluster) -> u16 {
    (0..u16::MAX)
        .find(|slot| !cluster.gateways.values().any(|g| g.slot == *slot))
        .unwrap_or(u16::MAX)
}

pub(super) fn put(id: &ClusterId, cluster: &Cluster, node: &NodeName, gateway: Gateway) -> Effect {
    let mut record = cluster.clone();
    record.gateways.insert(node.clone(), gateway);
    Effect::Cluster(id.clone(), Some(Box::new(record)))
}

fn without(
    state: &State,
    id: &ClusterId,
    cluster: &Cluster,
    node: &NodeName,
    now: UnixMillis,
) -> Vec<Effect> {
    let mut record = cluster.clone();
    let inner = record
        .gateways
        .remove(node)
        .map(|g| g.inner)
        .unwrap_or_default();
    let mut effects: Vec<Effect> = inner
        .into_iter()
        .filter_map(|ip| rest(state, id, infra(ip), now))
        .collect();
    effects.push(Effect::Cluster(id.clone(), Some(Box::new(record))));
    effects
}

pub(super) fn seat(id: &ClusterId, node: &NodeName) -> NodeKey {
    NodeKey {
        cluster: id.clone(),
        seat: Seat::Gateway,
        node: node.clone(),
    }
}

fn listeners_text(listeners: &[Listener]) -> String {
    let texts: Vec<String> = listeners
        .iter()
        .map(|l| {
            let at: Vec<String> = l.candidates.iter().map(ToString::to_string).collect();
            format!("{} {} at {}", l.id, l.public_key, at.join(" "))
        })
        .collect();
    texts.join(", ")
}

pub(super) fn bad(message: String) -> Problem {
    Problem::new(Code::BadRequest, message)
}

pub(super) fn no_gateway(id: &ClusterId, node: &NodeName) -> Problem {
    Problem::new(
        Code::NotFound,
        format!("cluster {id} has no gateway {node}"),
    )
}

pub(super) fn name_taken(id: &ClusterId, node: &NodeName) -> Problem {
    Problem::new(
        Code::NameTaken,
        format!("cluster {id} has a gateway {node} of another sort"),
    )
    .hint("choose another name, or forget that gateway first")
}
