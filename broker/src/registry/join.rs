//! Admission: pre-flight, join, enrolment of further nodes and renewal of certificates. PURE.

use subsea_api::member::{CidrRequests, JoinRequest, PreflightReport, PreflightRequest};
use subsea_api::snapshot::Cluster;
use subsea_api::{Allocation, ClusterId, Code, NodeName, Problem, Role, UnixMillis};

use super::admit::foresee;
use super::blocks::{others, plan, take_blocks};
use super::token::{check_token, used};
use super::{
    Cut, Decision, Effect, Enrolment, NodeKey, Note, Seat, State, TokenRecord, TokenUse,
    not_a_member,
};
use crate::auth::Fingerprint;

/// What counts of a certificate request, and the serial number that the certificate will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// Of its public key.
    pub key: Fingerprint,
    /// Of the whole request.
    pub request: Fingerprint,
    /// Random, chosen by the shell.
    pub serial: String,
}

/// A join as the registry looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Join<'a> {
    /// The request.
    pub request: &'a JoinRequest,
    /// Its certificate request.
    pub csr: &'a Csr,
    /// When it came.
    pub now: UnixMillis,
}

/// What a join gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What the certificate entitles to.
    pub role: Role,
    /// The cluster's blocks.
    pub allocations: Vec<Allocation>,
}

/// Admits a cluster, changes its blocks, or enrols a further node, and burns the token.
///
/// # Errors
/// Every refusal changes nothing: the token's own (`token-*`, `fleet-mismatch`), `cidr-conflict`,
/// `cluster-exists`, `pool-exhausted`, `not-member`, `name-taken`, `bad-request`.
pub fn join(state: &State, join: Join<'_>) -> Result<Decision<Grant>, Problem> {
    let Join { request, csr, now } = join;
    let token = check_token(
        state,
        &request.fleet,
        &request.cluster,
        &request.token,
        Some(&csr.key),
        now,
    )?;
    if let Some(before) = &token.used {
        return again(state, join, token, before);
    }
    let mut decision = match token.role {
        Role::Member => admit(state, join)?,
        Role::Gateway | Role::Agent | Role::Dns => enrol(state, join, token.role)?,
        Role::Admin => return Err(Problem::new(Code::Internal, "a token of role admin exists")),
    };
    let mut burnt = token.clone();
    burnt.used = Some(TokenUse {
        node: Some(request.node.clone()),
        key: csr.key.clone(),
        at: now,
    });
    decision
        .effects
        .push(Effect::Token(request.token.id(), Some(burnt)));
    Ok(decision)
}

/// The answer to a join that was committed before: the same blocks, a fresh certificate.
fn again(
    state: &State,
    join: Join<'_>,
    token: &TokenRecord,
    before: &TokenUse,
) -> Result<Decision<Grant>, Problem> {
    let Join { request, csr, now } = join;
    let node = node_key(&request.cluster, token.role, &request.node)?;
    let enrolment = state.enrolments.get(&node).filter(|e| e.key == csr.key);
    let cluster = state.clusters.get(&request.cluster);
    let (Some(enrolment), Some(cluster), true) = (
        enrolment,
        cluster,
        before.node.as_ref() == Some(&request.node),
    ) else {
        return Err(used(&request.token.id()));
    };
    let grant = Grant {
        role: enrolment.role,
        allocations: cluster.allocations.clone(),
    };
    let note = Note::new(
        "certificate.reissue",
        format!("{}/{}", request.cluster, request.node),
        "the join was repeated",
    );
    let effect = enrolment_effect(node, enrolment.role, csr, now);
    Ok(Decision::changed(grant, vec![effect], note))
}

/// Admits a cluster, or changes the blocks of one whose founder asks with its own key.
fn admit(state: &State, join: Join<'_>) -> Result<Decision<Grant>, Problem> {
    let Join { request, csr, now } = join;
    let id = &request.cluster;
    let node = node_key(id, Role::Member, &request.node)?;
    let old = state.clusters.get(id);
    if state.admissions.contains_key(id) {
        return Err(Problem::new(
            Code::ClusterExists,
            format!("cluster {id} is a member already, and joined by its Kubernetes API"),
        )
        .hint(format!(
            "change it with `subsea join --context`; or let it leave first, with `subsea leave --context`; or choose another id than {id}"
        )));
    }
    let same_key = state
        .enrolments
        .get(&node)
        .is_some_and(|e| e.key == csr.key);
    if old.is_some() && !same_key {
        return Err(Problem::new(
            Code::ClusterExists,
            format!("cluster {id} is a member already"),
        )
        .hint(format!(
            "enrol further nodes with a token of role gateway; change its blocks from the state directory that joined it; or choose another id than {id}"
        )));
    }
    let blocks = take_blocks(state, id, &request.cidrs, now)?;
    let mut effects = blocks.effects;
    effects.push(enrolment_effect(node, Role::Member, csr, now));
    let action = if old.is_some() {
        "cluster.change"
    } else {
        "cluster.join"
    };
    let note = Note::new(
        action,
        id.as_str(),
        format!("node {}, {}", request.node, blocks.text),
    );
    let grant = Grant {
        role: Role::Member,
        allocations: blocks.allocations,
    };
    Ok(Decision::changed(grant, effects, note))
}

/// Enrols a further node of a member.
fn enrol(state: &State, join: Join<'_>, role: Role) -> Result<Decision<Grant>, Problem> {
    let Join { request, csr, now } = join;
    let cluster = check_enrol(state, &request.cluster, role, &request.cidrs)?;
    let node = node_key(&request.cluster, role, &request.node)?;
    let before = state.enrolments.get(&node);
    let stock = node.seat == Seat::Gateway
        && cluster
            .gateways
            .get(&request.node)
            .is_some_and(|g| g.stock.is_some());
    let held_by_other = before.is_some_and(|e| {
        // A gateway that left its record is in use; agents and DNS servers come and go with their nodes.
        e.key != csr.key
            && node.seat == Seat::Gateway
            && (e.role == Role::Member || cluster.gateways.contains_key(&request.node))
    });
    if stock || held_by_other {
        return Err(Problem::new(
            Code::NameTaken,
            format!("cluster {} has a gateway {} already", request.cluster, request.node),
        )
        .hint(format!(
            "choose another `--node`, or remove the old one: `subsea-broker gateway forget --cluster {} --node {}`",
            request.cluster, request.node
        )));
    }
    // The founder stays the founder when it uses a further token.
    let role = match before {
        Some(e) if e.key == csr.key && e.role == Role::Member => Role::Member,
        Some(_) | None => role,
    };
    let note = Note::new(
        "node.enrol",
        format!("{}/{}", request.cluster, request.node),
        format!("role {role}"),
    );
    let grant = Grant {
        role,
        allocations: cluster.allocations.clone(),
    };
    let replaced = before.is_some_and(|e| e.key != csr.key);
    let effects = vec![enrolment_effect(node.clone(), role, csr, now)];
    let decision = Decision::changed(grant, effects, note);
    // Whoever sat there before is refused from now on: its open streams must not go on.
    Ok(if replaced {
        decision.cutting(Cut::Node(node))
    } else {
        decision
    })
}

/// What can be said of an enrolment without its key.
fn check_enrol<'a>(
    state: &'a State,
    cluster: &ClusterId,
    role: Role,
    cidrs: &CidrRequests,
) -> Result<&'a Cluster, Problem> {
    if *cidrs != CidrRequests::default() {
        return Err(Problem::new(
            Code::BadRequest,
            format!("a token of role {role} takes no CIDR blocks"),
        )
        .hint("leave the blocks out; only a token of role member brings blocks"));
    }
    state.clusters.get(cluster).ok_or_else(|| {
        not_a_member(cluster).hint("join the cluster first, with a token of role member")
    })
}

/// Says what a join would give and what stands against it; burns nothing.
///
/// # Errors
/// The refusals of a join but for conflicts, which are in the report.
pub fn preflight(
    state: &State,
    request: &PreflightRequest,
    now: UnixMillis,
) -> Result<PreflightReport, Problem> {
    let id = &request.cluster;
    let token = check_token(state, &request.fleet, id, &request.token, None, now)?;
    if let Some(asks) = &request.admission {
        foresee(state, id, asks)?;
    }
    let (allocations, conflicts) = match token.role {
        Role::Member => plan(state, id, &request.cidrs)?,
        Role::Gateway | Role::Agent | Role::Dns | Role::Admin => {
            let cluster = check_enrol(state, id, token.role, &request.cidrs)?;
            (cluster.allocations.clone(), Vec::new())
        }
    };
    Ok(PreflightReport {
        fleet: state.identity.fleet.clone(),
        cluster: id.clone(),
        replaces: token.role == Role::Member && state.clusters.contains_key(id),
        current: state
            .clusters
            .get(id)
            .map(|cluster| cluster.allocations.clone())
            .unwrap_or_default(),
        allocations,
        conflicts,
        others: others(state, id),
    })
}

/// Gives a node a new certificate for the key it has. One that shows a superseded certificate is served, but
/// written down: a copy of its state directory may be at work elsewhere.
///
/// # Errors
/// `forbidden` for another key.
pub fn renew(
    node: &NodeKey,
    enrolment: &Enrolment,
    shown_serial: &str,
    csr: &Csr,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    if csr.key != enrolment.key {
        return Err(Problem::new(
            Code::Forbidden,
            "the certificate request has another key than the certificate",
        )
        .hint("renew with the key in use; a new key needs a new token"));
    }
    let subject = format!("{}/{}", node.cluster, node.node);
    // The same request again is the same node, whose answer got lost.
    let repeated = csr.request == enrolment.request;
    let note = if shown_serial == enrolment.serial || repeated {
        Note::new("certificate.renew", subject, "")
    } else {
        Note::new(
            "certificate.clone-suspected",
            subject,
            format!(
                "renewed with certificate {shown_serial}, which {} had replaced: are there two copies of one state directory?",
                enrolment.serial
            ),
        )
    };
    let effect = enrolment_effect(node.clone(), enrolment.role, csr, now);
    Ok(Decision::changed((), vec![effect], note))
}

pub(super) fn node_key(
    cluster: &ClusterId,
    role: Role,
    node: &NodeName,
) -> Result<NodeKey, Problem> {
    let seat = Seat::of(role)
        .ok_or_else(|| Problem::new(Code::Forbidden, "an operator is not a node of a cluster"))?;
    Ok(NodeKey {
        cluster: cluster.clone(),
        seat,
        node: node.clone(),
    })
}

/// Keeps whom a certificate is made for.
pub(super) fn enrolment_effect(node: NodeKey, role: Role, csr: &Csr, now: UnixMillis) -> Effect {
    let enrolment = Enrolment {
        role,
        key: csr.key.clone(),
        serial: csr.serial.clone(),
        request: csr.request.clone(),
        at: now,
    };
    Effect::Enrolment(node, Some(enrolment))
}
