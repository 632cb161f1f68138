//! The fleet's whole state in memory, with every claim in address order. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;

use subsea_api::admin::Pool;
use subsea_api::conflict::{Claim, Owner, What};
use subsea_api::snapshot::{BrokerInfo, Cluster, Snapshot, Tombstone};
use subsea_api::{
    AllocationIndex, Cidr, ClusterId, Code, FleetName, Kind, Problem, PublicKey, UnixMillis,
};

use super::records::HeldBlock;
use super::{
    Admission, Effect, Enrolment, Held, HeldState, KeyOwner, NodeKey, TOMBSTONE_LIFE, TokenRecord,
    not_a_member, revoked_problem,
};
use crate::auth::Fingerprint;
use crate::ipam::infra_pool_claim;

/// How long the records of tokens are kept after their time, used ones, too: their refusals stay exact so long. Whoever joined with
/// one notes it beside what it got, and need not ask.
const TOKEN_MEMORY: std::time::Duration = std::time::Duration::from_hours(30 * 24);

/// What a store is born with.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The fleet's name.
    pub fleet: FleetName,
    /// Which history the revisions belong to.
    pub epoch: String,
    /// The fleet's own IPv6 /48 (RFC 4193) for inner addresses.
    pub ula: Cidr,
    /// The pools of `auto`.
    pub pools: Vec<Pool>,
}

/// The fleet's whole state. Reads are open; only [`State::apply`] changes it.
#[derive(Debug, Clone)]
pub struct State {
    /// What the store was born with.
    pub identity: Identity,
    /// The newest revision.
    pub revision: u64,
    /// Where the broker is.
    pub broker: BrokerInfo,
    /// The members.
    pub clusters: BTreeMap<ClusterId, Cluster>,
    /// Members that are gone.
    pub tombstones: BTreeMap<ClusterId, Tombstone>,
    /// Nodes with certificates.
    pub enrolments: BTreeMap<NodeKey, Enrolment>,
    /// Clusters whose nodes enrol by their service accounts.
    pub admissions: BTreeMap<ClusterId, Admission>,
    /// Tokens by their public id.
    pub tokens: BTreeMap<String, TokenRecord>,
    /// Reserved and resting blocks.
    pub held: BTreeMap<(ClusterId, Kind, Cidr), HeldBlock>,
    /// WireGuard keys and whose they are.
    pub keys: BTreeMap<PublicKey, KeyOwner>,
    /// Revoked cluster ids.
    pub revoked: BTreeMap<ClusterId, UnixMillis>,
    index: AllocationIndex,
}

impl State {
    /// A fleet without members.
    pub fn new(identity: Identity) -> Self {
        let mut index = AllocationIndex::default();
        let infra = identity.pools.iter().filter(|p| p.kind == Kind::Infra);
        for cidr in infra.map(|p| p.cidr).chain([identity.ula]) {
            index.insert(infra_pool_claim(cidr));
        }
        Self {
            identity,
            revision: 0,
            broker: BrokerInfo {
                urls: Vec::new(),
                ca_pem: String::new(),
            },
            clusters: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            enrolments: BTreeMap::new(),
            admissions: BTreeMap::new(),
            tokens: BTreeMap::new(),
            held: BTreeMap::new(),
            keys: BTreeMap::new(),
            revoked: BTreeMap::new(),
            index,
        }
    }

    /// Every claim of the fleet.
    pub fn index(&self) -> &AllocationIndex {
        &self.index
    }

    /// The pools of `auto`.
    pub fn pools(&self) -> &[Pool] {
        &self.identity.pools
    }

    /// Makes one change that the store has made durable.
    pub fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Cluster(id, record) => {
                let old = match record {
                    Some(record) => {
                        for claim in cluster_claims(&id, &record) {
                            self.index.insert(claim);
                        }
                        self.clusters.insert(id.clone(), *record)
                    }
                    None => self.clusters.remove(&id),
                };
                for claim in old.iter().flat_map(|old| cluster_claims(&id, old)) {
                    self.index.remove(&claim);
                }
            }
            Effect::Tombstone(id, value) => set(&mut self.tombstones, id, value),
            Effect::Enrolment(key, value) => set(&mut self.enrolments, key, value),
            Effect::Admission(id, value) => set(&mut self.admissions, id, value.map(|v| *v)),
            Effect::Token(id, value) => set(&mut self.tokens, id, value),
            Effect::Held(key, value) => {
                let of = |block: HeldBlock| held_of(&key, block).claim();
                if let Some(old) = self.held.get(&key) {
                    self.index.remove(&of(*old));
                }
                if let Some(new) = value {
                    self.index.insert(of(new));
                }
                set(&mut self.held, key, value);
            }
            Effect::Key(key, owner) => {
                self.keys.insert(key, owner);
            }
            Effect::Revoked(id, value) => set(&mut self.revoked, id, value),
            Effect::Broker(broker) => {
                for claim in broker_claims(&self.broker) {
                    self.index.remove(&claim);
                }
                for claim in broker_claims(&broker) {
                    self.index.insert(claim);
                }
                self.broker = broker;
            }
        }
    }

    /// The broker's own addresses.
    pub fn broker_claims(&self) -> Vec<Claim> {
        broker_claims(&self.broker)
    }

    /// The snapshot at the newest revision.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            fleet: self.identity.fleet.clone(),
            epoch: self.identity.epoch.clone(),
            revision: self.revision,
            broker: self.broker.clone(),
            clusters: self.clusters.clone(),
            tombstones: self.tombstones.clone(),
        }
    }

    /// The reserved and resting blocks, sorted.
    pub fn held_blocks(&self) -> impl Iterator<Item = Held> {
        self.held.iter().map(|(key, block)| held_of(key, *block))
    }

    /// The reserved and resting blocks of one cluster.
    pub fn held_by<'a>(&'a self, cluster: &'a ClusterId) -> impl Iterator<Item = Held> + 'a {
        let lowest = Cidr::containing(IpAddr::from([0u8; 4]), 0);
        self.held
            .range((cluster.clone(), Kind::Pod, lowest)..)
            .take_while(move |((id, ..), _)| id == cluster)
            .map(|(key, block)| held_of(key, *block))
    }

    /// A member's records.
    ///
    /// # Errors
    /// `not-member`, or `member-revoked`.
    pub fn member(&self, cluster: &ClusterId) -> Result<&Cluster, Problem> {
        if self.revoked.contains_key(cluster) {
            return Err(revoked_problem(cluster));
        }
        self.clusters
            .get(cluster)
            .ok_or_else(|| not_a_member(cluster))
    }

    /// Whether the holder of a certificate is still what it says.
    ///
    /// # Errors
    /// `member-revoked`, or `not-member` when the cluster or the node is gone or has another key now.
    pub fn check_holder(&self, node: &NodeKey, key: &Fingerprint) -> Result<&Enrolment, Problem> {
        self.member(&node.cluster)?;
        match self.enrolments.get(node) {
            Some(enrolment) if enrolment.key == *key => Ok(enrolment),
            Some(_) => Err(Problem::new(
                Code::NotMember,
                format!(
                    "node {} of cluster {} was enrolled anew with another key",
                    node.node, node.cluster
                ),
            )
            .hint("stop the daemon that still uses the old state directory")),
            None => Err(Problem::new(
                Code::NotMember,
                format!(
                    "node {} is no longer enrolled in cluster {}",
                    node.node, node.cluster
                ),
            )
            .hint("enrol it with a new token")),
        }
    }
}

/// What has had its time: resting blocks, old tombstones and long expired tokens.
pub fn sweep(state: &State, now: UnixMillis) -> Vec<Effect> {
    let rested = state
        .held
        .iter()
        .filter(|(_, block)| matches!(block.state, HeldState::Resting(until) if until <= now))
        .map(|(key, _)| Effect::Held(key.clone(), None));
    let tombstones = state
        .tombstones
        .iter()
        .filter(|(_, t)| t.at.plus(TOMBSTONE_LIFE) <= now)
        .map(|(id, _)| Effect::Tombstone(id.clone(), None));
    let tokens = state
        .tokens
        .iter()
        .filter(|(_, t)| t.expires.plus(TOKEN_MEMORY) <= now)
        .map(|(id, _)| Effect::Token(id.clone(), None));
    rested.chain(tombstones).chain(tokens).collect()
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn held_of((cluster, kind, cidr): &(ClusterId, Kind, Cidr), block: HeldBlock) -> Held {
    Held {
        cluster: cluster.clone(),
        allocation: subsea_api::Allocation {
            kind: *kind,
            cidr: *cidr,
            exported: block.exported,
        },
        state: block.state,
    }
}

/// Everything that a member claims: its blocks, and its gateways' inner addresses and endpoints.
pub(super) fn cluster_claims(id: &ClusterId, record: &Cluster) -> Vec<Claim> {
    let owner = Owner::Cluster(id.clone());
    let mut claims: Vec<Claim> = record
        .allocations
        .iter()
        .map(|a| Claim::of(owner.clone(), *a))
        .collect();
    for gateway in record.gateways.values() {
        let inner = gateway.inner.iter().map(|ip| (What::Infra, *ip));
        let endpoints = gateway
            .listeners
            .iter()
            .flat_map(|l| &l.candidates)
            .map(|c| (What::Endpoint, c.ip()));
        for (what, ip) in inner.chain(endpoints) {
            claims.push(host_claim(owner.clone(), what, ip));
        }
    }
    claims
}

/// The claim to a single address.
pub(super) fn host_claim(owner: Owner, what: What, ip: IpAddr) -> Claim {
    Claim {
        owner,
        what,
        cidr: Cidr::host(ip.to_canonical()),
        exported: true,
    }
}

/// The broker's own addresses, as far as its URLs name them; loopback and unspecified ones are nobody's.
fn broker_claims(broker: &BrokerInfo) -> Vec<Claim> {
    let mut hosts: Vec<IpAddr> = broker
        .urls
        .iter()
        .filter_map(|url| crate::url::host_of(url)?.parse().ok())
        .filter(|ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
        .into_iter()
        .map(|ip| host_claim(Owner::Broker, What::Broker, ip))
        .collect()
}
