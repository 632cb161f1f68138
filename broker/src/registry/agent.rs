//! Agents: a node's agent has no record, only its enrolment. PURE.

use subsea_api::{ClusterId, Code, NodeName, Problem};

use super::{Cut, Decision, Effect, NodeKey, Note, Seat, State};

/// Ends the enrolment of a node's agent at its own wish. The fleet sees no change: no revision.
///
/// # Errors
/// `not-found` when there is none; `not-member`, `member-revoked`.
pub fn remove_agent(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
) -> Result<Decision<()>, Problem> {
    state.member(id)?;
    let key = NodeKey {
        cluster: id.clone(),
        seat: Seat::Agent,
        node: node.clone(),
    };
    if !state.enrolments.contains_key(&key) {
        return Err(Problem::new(
            Code::NotFound,
            format!("cluster {id} has no agent {node}"),
        ));
    }
    let note = Note::new("agent.remove", format!("{id}/{node}"), "");
    let effects = vec![Effect::Enrolment(key.clone(), None)];
    Ok(Decision::changed((), effects, note).cutting(Cut::Node(key)))
}
