//! The fleet's records, and what a request changes in them and whether it may. PURE: the store makes the
//! effects durable and only then applies them to the [`State`] in memory.

mod admit;
mod agent;
mod blocks;
mod enrol;
mod gateway;
mod join;
mod lease;
mod leave;
mod records;
mod reserve;
mod state;
mod stock;
mod token;

#[cfg(test)]
mod tests;

pub use admit::{admit, check_operator, set_service_account_keys, withdraw};
pub use agent::remove_agent;
pub use enrol::{Enrolled, enrol_node};
pub use gateway::{clear_gateway, forget_gateway, register_gateway, remove_gateway};
pub use join::{Csr, Grant, Join, join, preflight, renew};
pub use lease::{BATCH, Leases, expire, is_over, renew_lease};
pub use leave::{forget, leave, revoke};
pub use records::{
    Admission, Effect, Enrolment, Held, HeldState, KeyOwner, NodeKey, Row, RowError, Seat, TABLES,
    Table, TokenRecord, TokenUse,
};
pub use reserve::{allocations, release, reserve};
pub use state::{Identity, State, sweep};
pub use stock::add_stock_gateway;
pub use token::{NewToken, create_token, revoke_token, tokens};

use subsea_api::conflict::{Claim, Conflict, Owner};
use subsea_api::snapshot::Change;
use subsea_api::{ClusterId, Code, Kind, Problem};

/// How long a released block is kept from others.
pub const REST: std::time::Duration = std::time::Duration::from_mins(15);
/// How long the fleet is told that a member is gone for good.
pub const TOMBSTONE_LIFE: std::time::Duration = std::time::Duration::from_hours(24);
/// How long an expired certificate can still be renewed.
pub const RENEWAL_GRACE: std::time::Duration = std::time::Duration::from_hours(30 * 24);

/// The outcome of a request that is allowed.
#[derive(Debug, Clone)]
pub struct Decision<T> {
    /// For the one who asked.
    pub answer: T,
    /// What to change, in order; nothing when the request changes nothing.
    pub effects: Vec<Effect>,
    /// For the audit log; present whenever there are effects.
    pub note: Option<Note>,
    /// Whose streams to cut once it is durable.
    pub cut: Option<Cut>,
}

impl<T> Decision<T> {
    /// Nothing to change.
    pub fn unchanged(answer: T) -> Self {
        Self {
            answer,
            effects: Vec::new(),
            note: None,
            cut: None,
        }
    }

    /// Changes, and their line in the audit log.
    pub fn changed(answer: T, effects: Vec<Effect>, note: Note) -> Self {
        Self {
            answer,
            effects,
            note: Some(note),
            cut: None,
        }
    }

    /// Cuts streams too.
    #[must_use]
    pub fn cutting(mut self, cut: Cut) -> Self {
        self.cut = Some(cut);
        self
    }
}

/// A line of the audit log, but for its time, number and author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A stable verb.
    pub action: &'static str,
    /// What it is done to.
    pub subject: String,
    /// More, without secrets.
    pub detail: String,
}

impl Note {
    /// A line of the audit log.
    pub fn new(
        action: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            action,
            subject: subject.into(),
            detail: detail.into(),
        }
    }
}

/// Whose watch streams end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Everybody's.
    All,
    /// Those of every node of a cluster.
    Cluster(ClusterId),
    /// Those of one node.
    Node(NodeKey),
}

/// What effects change in the snapshot, in order.
pub fn changes(effects: &[Effect]) -> Vec<Change> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Cluster(cluster, Some(record)) => Some(Change::Put {
                cluster: cluster.clone(),
                record: record.clone(),
            }),
            Effect::Tombstone(cluster, Some(tombstone)) => Some(Change::Remove {
                cluster: cluster.clone(),
                tombstone: *tombstone,
            }),
            Effect::Broker(broker) => Some(Change::Broker {
                broker: broker.clone(),
            }),
            // The tombstone beside a cluster that goes tells the fleet.
            Effect::Cluster(_, None)
            | Effect::Tombstone(_, None)
            | Effect::Enrolment(..)
            | Effect::Admission(..)
            | Effect::Token(..)
            | Effect::Held(..)
            | Effect::Key(..)
            | Effect::Revoked(..) => None,
        })
        .collect()
}

/// How many conflicts an answer lists.
const MAX_CONFLICTS: usize = 256;

/// The refusal that names every pair of blocks that may not meet.
fn conflict_problem(mut conflicts: Vec<Conflict>) -> Problem {
    let count = conflicts.len();
    let first = conflicts.first().map(|c| {
        let side = |c: &Claim| match &c.owner {
            Owner::Reservation(id) => format!("{} {} reserved for {id}", c.what, c.cidr),
            owner @ (Owner::Cluster(_) | Owner::Broker | Owner::Standard | Owner::Host) => {
                format!("{} {} of {owner}", c.what, c.cidr)
            }
        };
        format!(": {} meets {}", side(&c.wanted), side(&c.existing))
    });
    conflicts.truncate(MAX_CONFLICTS);
    let free = conflicts.first().and_then(|c| c.free.first()).copied();
    let pairs = if count == 1 {
        "pair of blocks conflicts"
    } else {
        "pairs of blocks conflict"
    };
    let mut problem = Problem::new(
        Code::CidrConflict,
        format!(
            "{count} {pairs}{}; nothing was changed",
            first.unwrap_or_default()
        ),
    )
    .hint(match free {
        Some(free) => format!("use other blocks, for example {free}"),
        None => "use other blocks".to_owned(),
    });
    problem.details = Some(serde_json::json!({ "conflicts": conflicts }));
    problem
}

/// The refusal of an `auto` that no pool can serve.
fn exhausted_problem(exhausted: crate::ipam::Exhausted) -> Problem {
    let hint = match exhausted.kind {
        Kind::Infra => "start the broker with a further `--pool infra=CIDR`".to_owned(),
        Kind::Pod | Kind::Service | Kind::Node | Kind::Global => format!(
            "name a block yourself, ask for a smaller one, or start the broker with a further `--pool {}=CIDR`",
            exhausted.kind
        ),
    };
    Problem::new(Code::PoolExhausted, exhausted.to_string()).hint(hint)
}

fn not_a_member(cluster: &ClusterId) -> Problem {
    Problem::new(
        Code::NotMember,
        format!("cluster {cluster} is not a member of the fleet"),
    )
}

fn revoked_problem(cluster: &ClusterId) -> Problem {
    Problem::new(
        Code::MemberRevoked,
        format!("an operator revoked cluster {cluster}"),
    )
    .hint(format!(
        "if it shall come back: `subsea-broker cluster forget {cluster}`, then join with a new token"
    ))
}
