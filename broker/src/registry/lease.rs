//! Leases of gateways: whose is over, and what that and a renewal change. PURE.
//!
//! The times are in memory alone: a renewal is no change, makes no revision and costs no disk. They are those of a
//! clock that nobody sets. In a new process, and after one in which the broker could not hear anybody, all leases
//! start anew. Only that a lease is over, and that it is no more, stands in the records.

use std::collections::BTreeMap;
use std::time::Duration;

use subsea_api::snapshot::Gateway;
use subsea_api::{ClusterId, NodeName, Problem, UnixMillis};

use super::gateway::{no_gateway, put};
use super::{Decision, Effect, Note, State};

/// How many leases end in one commit, so that no commit grows with the fleet.
pub const BATCH: usize = 64;

/// Names a gateway.
type Name = (ClusterId, NodeName);

/// When each gateway was heard of last.
#[derive(Debug)]
pub struct Leases {
    lasts: Duration,
    looked: Option<Duration>,
    known: BTreeMap<ClusterId, BTreeMap<NodeName, Lease>>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    renewed: Duration,
    /// Whether a commit that ends it was decided, which may not be in the records yet.
    over: bool,
}

impl Leases {
    /// No leases yet, which will last so long.
    pub fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            looked: None,
            known: BTreeMap::new(),
        }
    }

    /// How long a lease lasts.
    pub fn lasts(&self) -> Duration {
        self.lasts
    }

    /// How often to [`Self::look`]: a lease ends so much late at most.
    pub fn pause(&self) -> Duration {
        (self.lasts / 20).clamp(Duration::from_millis(50), Duration::from_secs(5))
    }

    /// The longest time between two looks after which the broker counts as having been awake all the time.
    fn nap(&self) -> Duration {
        (self.lasts / 6).max(self.pause() * 3)
    }

    /// Notes that a gateway was heard of at `now`. Whether a commit that ends its lease may be under way: then
    /// [`renew_lease`] is due after it.
    pub fn renew(&mut self, cluster: &ClusterId, node: &NodeName, now: Duration) -> bool {
        let fresh = Lease {
            renewed: now,
            over: false,
        };
        let of_cluster = self.known.entry(cluster.clone()).or_default();
        let before = of_cluster.insert(node.clone(), fresh);
        before.is_some_and(|lease| lease.over)
    }

    /// Starts the leases of gateways that have none, forgets those of gateways that are gone, and starts all anew
    /// when the broker has not looked for long: it was stopped, asleep or overloaded, and could hear nobody. Whether
    /// any lease is over.
    pub fn look(&mut self, state: &State, now: Duration) -> bool {
        let napped = self
            .looked
            .is_some_and(|at| now.checked_sub(at).is_none_or(|since| since > self.nap()));
        if napped {
            self.known.clear();
        }
        self.looked = Some(now);
        self.known.retain(|id, nodes| {
            nodes.retain(|node, _| leased(state, id, node).is_some());
            !nodes.is_empty()
        });
        let started = Lease {
            renewed: now,
            over: false,
        };
        for (id, node, _) in all_leased(state) {
            match self.known.get_mut(id) {
                Some(nodes) if nodes.contains_key(node) => {}
                Some(nodes) => {
                    nodes.insert(node.clone(), started);
                }
                None => {
                    let nodes = BTreeMap::from([(node.clone(), started)]);
                    self.known.insert(id.clone(), nodes);
                }
            }
        }
        self.lapsed(state, now).next().is_some()
    }

    /// The gateways whose lease is over although their records do not say so, at most [`BATCH`]. The caller
    /// commits [`expire`] of them before anybody else commits anything.
    pub fn end(&mut self, state: &State, now: Duration) -> Vec<Name> {
        let names: Vec<Name> = self
            .lapsed(state, now)
            .map(|(id, node)| (id.clone(), node.clone()))
            .take(BATCH)
            .collect();
        for (id, node) in &names {
            if let Some(lease) = self.known.get_mut(id).and_then(|nodes| nodes.get_mut(node)) {
                lease.over = true;
            }
        }
        names
    }

    fn lapsed<'a>(
        &'a self,
        state: &'a State,
        now: Duration,
    ) -> impl Iterator<Item = (&'a ClusterId, &'a NodeName)> {
        all_leased(state)
            .filter(|(_, _, gateway)| gateway.expired.is_none())
            .filter(move |(id, node, _)| {
                let lease = self.known.get(*id).and_then(|nodes| nodes.get(*node));
                lease.is_some_and(|lease| now.saturating_sub(lease.renewed) >= self.lasts)
            })
            .map(|(id, node, _)| (id, node))
    }
}

/// Every gateway that has a lease: a stock peer has none.
fn all_leased(state: &State) -> impl Iterator<Item = (&ClusterId, &NodeName, &Gateway)> {
    state.clusters.iter().flat_map(|(id, cluster)| {
        let ours = cluster.gateways.iter().filter(|(_, g)| g.stock.is_none());
        ours.map(move |(node, gateway)| (id, node, gateway))
    })
}

fn leased<'a>(state: &'a State, id: &ClusterId, node: &NodeName) -> Option<&'a Gateway> {
    let gateway = state.clusters.get(id)?.gateways.get(node)?;
    gateway.stock.is_none().then_some(gateway)
}

/// Writes into the records of `names` that their leases are over since `now`: one revision for all of them.
pub fn expire(state: &State, names: &[Name], now: UnixMillis) -> Decision<()> {
    let mut records = BTreeMap::new();
    let mut ended = Vec::new();
    for (id, node) in names {
        if leased(state, id, node).is_none_or(|gateway| gateway.expired.is_some()) {
            continue;
        }
        let Some(cluster) = state.clusters.get(id) else {
            continue;
        };
        let record = records.entry(id).or_insert_with(|| cluster.clone());
        if let Some(gateway) = record.gateways.get_mut(node) {
            gateway.expired = Some(now);
            ended.push(format!("{id}/{node}"));
        }
    }
    let subject = match ended.as_slice() {
        [] => return Decision::unchanged(()),
        [one] => one.clone(),
        [_, _, ..] => format!("{} gateways", ended.len()),
    };
    let detail = if ended.len() == 1 {
        String::new()
    } else {
        ended.join(" ")
    };
    let effects = records
        .into_iter()
        .map(|(id, record)| Effect::Cluster(id.clone(), Some(Box::new(record))))
        .collect();
    Decision::changed((), effects, Note::new("gateway.expire", subject, detail))
}

/// Takes out of a gateway's record that its lease was over. Nothing changes when it does not say so.
///
/// # Errors
/// `not-found` when there is no such gateway with a lease; `not-member`, `member-revoked`.
pub fn renew_lease(
    state: &State,
    id: &ClusterId,
    node: &NodeName,
) -> Result<Decision<()>, Problem> {
    if !is_over(state, id, node)? {
        return Ok(Decision::unchanged(()));
    }
    let cluster = state.member(id)?;
    let mut gateway = leased(state, id, node)
        .cloned()
        .ok_or_else(|| no_gateway(id, node))?;
    gateway.expired = None;
    let note = Note::new("gateway.return", format!("{id}/{node}"), "");
    Ok(Decision::changed(
        (),
        vec![put(id, cluster, node, gateway)],
        note,
    ))
}

/// Whether a gateway's record says that its lease is over.
///
/// # Errors
/// As [`renew_lease`].
pub fn is_over(state: &State, id: &ClusterId, node: &NodeName) -> Result<bool, Problem> {
    state.member(id)?;
    let gateway = leased(state, id, node).ok_or_else(|| {
        no_gateway(id, node).hint("it has to be registered before its lease can be renewed")
    })?;
    Ok(gateway.expired.is_some())
}
