//! Nodes that enrol by their service account. PURE.

use subsea_api::enrolment::EnrolRequest;
use subsea_api::{Allocation, ClusterId, Code, NodeName, Problem, Role, UnixMillis};

use super::admit::{check_fleet, refused};
use super::join::{enrolment_effect, node_key};
use super::{Admission, Csr, Cut, Decision, Effect, NodeKey, Note, Seat, State};
use crate::auth::TokenHash;
use crate::auth::service_account::{Refused, verify};

/// The most nodes of a cluster that are enrolled in one role. Kubernetes goes up to 5,000; nodes come and go under new
/// names, and nobody says when one is gone.
const MAX_NODES: usize = 10_000;

/// What an enrolment gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The node that the token proved.
    pub node: NodeName,
    /// What its certificate entitles to.
    pub role: Role,
    /// The cluster's blocks.
    pub allocations: Vec<Allocation>,
}

/// Enrols the node that a service account token proves. What was enrolled under its name before gives way: the token
/// says that this is the node now.
///
/// # Errors
/// `fleet-mismatch`, `credential-unknown`, `service-account-refused`, `name-taken` for the name of a stock peer.
pub fn enrol_node(
    state: &State,
    request: &EnrolRequest,
    csr: &Csr,
    now: UnixMillis,
) -> Result<Decision<Enrolled>, Problem> {
    check_fleet(state, &request.fleet)?;
    let id = &request.cluster;
    let shown = TokenHash::of(&request.credential);
    let admission = admission(state, id, &shown)?;
    // Only who holds the credential has signatures checked.
    let proven = verify(
        &request.service_account_token,
        &admission.service_accounts,
        now,
    )
    .map_err(|why| refused(id, why))?;
    let role = proven
        .account
        .role()
        .ok_or_else(|| refused(id, Refused::Account))?;
    let node = proven.node.ok_or_else(|| refused(id, Refused::Node))?;
    let cluster = state.member(id)?;
    let key = node_key(id, role, &node)?;
    let record = cluster
        .gateways
        .get(&node)
        .filter(|_| key.seat == Seat::Gateway);
    if record.is_some_and(|gateway| gateway.stock.is_some()) {
        return Err(super::gateway::name_taken(id, &node));
    }
    let before = state.enrolments.get(&key);
    let repeated = before.is_some_and(|e| e.key == csr.key && e.role == role);
    let replaced = before.is_some_and(|e| e.key != csr.key);
    let detail = match (replaced, record.is_some()) {
        (false, _) => format!("role {role}, by service account"),
        (true, false) => format!("role {role}, by service account, in place of an earlier key"),
        (true, true) => format!(
            "role {role}, by service account, in place of an earlier key and its gateway's process"
        ),
    };
    let action = if repeated {
        "certificate.reissue"
    } else {
        "node.enrol"
    };
    let mut effects = Vec::new();
    if before.is_none() {
        effects.extend(room(state, &key));
    }
    effects.push(enrolment_effect(key.clone(), role, csr, now));
    let note = Note::new(action, format!("{id}/{node}"), detail);
    let answer = Enrolled {
        node,
        role,
        allocations: cluster.allocations.clone(),
    };
    let decision = Decision::changed(answer, effects, note);
    Ok(if replaced {
        decision.cutting(Cut::Node(key))
    } else {
        decision
    })
}

/// What was kept when the cluster was admitted, for who shows its credential. Who does not learns nothing, not even
/// whether there is such a cluster.
fn admission<'a>(
    state: &'a State,
    id: &ClusterId,
    shown: &TokenHash,
) -> Result<&'a Admission, Problem> {
    state
        .admissions
        .get(id)
        .filter(|admission| admission.credential.matches(shown))
        .ok_or_else(|| {
            Problem::new(
                Code::CredentialUnknown,
                format!("the credential enrols no node of cluster {id}"),
            )
            .hint("the cluster has left, was removed or revoked, or was joined anew since: run `subsea join --context` again with a new join file")
        })
}

/// Makes room for a new node: of those without a gateway, the one that has not been heard of for longest.
fn room(state: &State, new: &NodeKey) -> Option<Effect> {
    let lowest = NodeKey {
        // Nothing that is a name comes before it.
        node: "0".parse().ok()?,
        ..new.clone()
    };
    let mine = || {
        let seat = (&new.cluster, new.seat);
        let all = state.enrolments.range(lowest.clone()..);
        all.take_while(move |(key, _)| (&key.cluster, key.seat) == seat)
    };
    if mine().count() < MAX_NODES {
        return None;
    }
    let gateways = &state.clusters.get(&new.cluster)?.gateways;
    mine()
        .filter(|(key, _)| key.seat != Seat::Gateway || !gateways.contains_key(&key.node))
        .min_by_key(|(_, enrolment)| enrolment.at)
        .map(|(key, _)| Effect::Enrolment(key.clone(), None))
}
