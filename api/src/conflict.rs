//! The overlap rules: which blocks may not meet, who owns them and what is free instead. PURE.
//!
//! The pre-flight, the join and the broker's own writes all decide by [`conflicts`].

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::admin::Pool;
use crate::allocation::{Allocation, AllocationIndex, Kind};
use crate::cidr::{Cidr, Family};
use crate::id::ClusterId;
use crate::member::OwnedAllocation;

/// Who holds a block.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A member, or the cluster that wants to become one.
    Cluster(ClusterId),
    /// A reservation, or a released block at rest, for this cluster.
    Reservation(ClusterId),
    /// The broker itself.
    Broker,
    /// A standard: the block has a fixed meaning on the Internet.
    Standard,
    /// This host's own routes.
    Host,
}

impl Owner {
    /// The cluster that the block is held by or for.
    pub fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Cluster(id) | Self::Reservation(id) => Some(id),
            Self::Broker | Self::Standard | Self::Host => None,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(id) => write!(f, "cluster {id}"),
            Self::Reservation(id) => write!(f, "reserved for {id}"),
            Self::Broker => f.write_str("the broker"),
            Self::Standard => f.write_str("reserved block"),
            Self::Host => f.write_str("this host"),
        }
    }
}

/// What a claimed block is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Addresses of pods.
    Pod,
    /// ClusterIPs.
    Service,
    /// Addresses of nodes.
    Node,
    /// An inner gateway address.
    Infra,
    /// Global addresses.
    Global,
    /// The WireGuard endpoint of a gateway.
    Endpoint,
    /// The broker's address.
    Broker,
    /// A block with a fixed meaning, by its name, for example `loopback`.
    Standard(String),
    /// A route, as `ip route` shows it.
    Route(String),
}

impl From<Kind> for What {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Pod => Self::Pod,
            Kind::Service => Self::Service,
            Kind::Node => Self::Node,
            Kind::Infra => Self::Infra,
            Kind::Global => Self::Global,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Node => "node",
            Self::Infra => "infra",
            Self::Global => "global",
            Self::Endpoint => "gateway endpoint",
            Self::Broker => "address",
            Self::Standard(name) | Self::Route(name) => name,
        })
    }
}

/// A block, who holds it and for what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Claim {
    /// Who.
    pub owner: Owner,
    /// For what.
    pub what: What,
    /// The block.
    pub cidr: Cidr,
    /// Whether other clusters route it; see [`Allocation::exported`].
    pub exported: bool,
}

impl Claim {
    /// A cluster's claim to an allocation.
    pub fn of(owner: Owner, allocation: Allocation) -> Self {
        Self {
            owner,
            what: allocation.kind.into(),
            cidr: allocation.cidr,
            exported: allocation.exported,
        }
    }
}

/// Two blocks that may not meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Conflict {
    /// The block that was asked for.
    pub wanted: Claim,
    /// What it meets.
    pub existing: Claim,
    /// The addresses that both hold.
    pub common: Cidr,
    /// Free blocks of the wanted size, best first; empty when no pool has one.
    pub free: Vec<Cidr>,
}

/// Blocks that no cluster can own (IANA special-purpose registries, RFC 6890).
pub const STANDARD_BLOCKS: [(&str, &str); 9] = [
    ("0.0.0.0/8", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved by IANA"),
    ("::/127", "unspecified and loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// [`STANDARD_BLOCKS`] as claims.
static STANDARD: LazyLock<Vec<Claim>> = LazyLock::new(|| {
    let claim = |(cidr, name): &(&str, &str)| {
        Some(Claim {
            owner: Owner::Standard,
            what: What::Standard((*name).into()),
            cidr: cidr.parse().ok()?,
            exported: true,
        })
    };
    STANDARD_BLOCKS.iter().filter_map(claim).collect()
});

/// How many pairs are listed at most: enough for a wide block in a fleet of a thousand clusters, and a bound on what
/// one request can make the broker write.
pub const MAX_CONFLICTS: usize = 4096;

/// Every pair of a wanted block and another wanted or an existing one that may not meet, up to [`MAX_CONFLICTS`].
///
/// `index` holds the fleet's claims: allocations, reservations, endpoints and the broker's addresses.
/// Claims of the wanting cluster itself must not be in it, or be skipped as its own reservations are.
pub fn conflicts(wanted: &[Claim], index: &AllocationIndex, pools: &[Pool]) -> Vec<Conflict> {
    let mut found = Vec::new();
    for (i, want) in wanted.iter().enumerate() {
        // The same for every block that it meets, and not needed when it meets none.
        let mut free = None;
        let fleet = index.overlapping(want.cidr);
        for existing in STANDARD.iter().chain(&wanted[..i]).chain(fleet) {
            if let Some(common) = want
                .cidr
                .common(existing.cidr)
                .filter(|_| may_not_meet(want, existing))
            {
                let free = free.get_or_insert_with(|| suggestions(i, wanted, index, pools));
                found.push(Conflict {
                    wanted: want.clone(),
                    existing: existing.clone(),
                    common,
                    free: free.clone(),
                });
                if found.len() == MAX_CONFLICTS {
                    return found;
                }
            }
        }
    }
    found
}

/// The rules of the pre-flight for two overlapping blocks.
fn may_not_meet(a: &Claim, b: &Claim) -> bool {
    let address = |c: &Claim| matches!(c.what, What::Endpoint | What::Broker);
    let unexported_node = |c: &Claim| c.what == What::Node && !c.exported;
    // A reservation is held for its cluster, not against it.
    let reserved_for = |r: &Claim, c: &Claim| matches!(&r.owner, Owner::Reservation(id) if c.owner.cluster() == Some(id));
    if reserved_for(a, b) || reserved_for(b, a) {
        return false;
    }
    if address(a) && address(b) {
        return false;
    }
    // A gateway or broker lives on some node network: only its being routed into a tunnel is harmful.
    if (address(a) && unexported_node(b)) || (address(b) && unexported_node(a)) {
        return false;
    }
    // The owner's own node block holds its gateways' endpoints.
    let own_node = |e: &Claim, n: &Claim| address(e) && n.what == What::Node && e.owner == n.owner;
    if own_node(a, b) || own_node(b, a) {
        return false;
    }
    !(unexported_node(a) && unexported_node(b) && a.owner != b.owner)
}

/// How many free blocks a conflict offers.
const SUGGESTIONS: usize = 3;

/// Up to three free blocks of the size of `wanted[i]`: from its pool, else from private space (RFC 1918, RFC 4193).
fn suggestions(i: usize, wanted: &[Claim], index: &AllocationIndex, pools: &[Pool]) -> Vec<Cidr> {
    let want = &wanted[i];
    if !matches!(
        want.what,
        What::Pod | What::Service | What::Node | What::Global
    ) {
        return Vec::new();
    }
    let private: &[&str] = match want.cidr.family() {
        Family::V4 => &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"],
        Family::V6 => &["fd00::/8"],
    };
    let of_kind = |p: &&Pool| What::from(p.kind) == want.what;
    // Taken too, though not in the index: what else is wanted now, the standard blocks, and the pools of
    // other kinds.
    let others = wanted[..i].iter().chain(&wanted[i + 1..]).map(|c| c.cidr);
    let standard = STANDARD.iter().map(|c| c.cidr);
    let other_pools = pools.iter().filter(|p| !of_kind(p)).map(|p| p.cidr);
    let besides: Vec<Cidr> = others.chain(standard).chain(other_pools).collect();
    let places = pools.iter().filter(of_kind).map(|p| p.cidr);
    let mut free: Vec<Cidr> = Vec::new();
    for place in places.chain(private.iter().filter_map(|p| p.parse().ok())) {
        let more = index.free_blocks_besides(
            place,
            want.cidr.prefix_len(),
            SUGGESTIONS + free.len(),
            &besides,
            |existing| !may_not_meet(want, existing),
        );
        for block in more {
            if free.len() < SUGGESTIONS && !free.contains(&block) {
                free.push(block);
            }
        }
    }
    free
}

/// A route of this host, as far as the comparison needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Where to.
    pub cidr: Cidr,
    /// Whether the kernel made it for an address of a link.
    pub connected: bool,
    /// Whether it is ours (table 583 or protocol 83).
    pub ours: bool,
    /// As `ip route` shows it.
    pub text: String,
}

/// Every route of this host that would be at odds with the routed blocks of *other* members.
///
/// Expected, and not reported: routes of our own, default routes, routes inside the cluster's own blocks
/// and connected links.
pub fn host_conflicts(
    routes: &[HostRoute],
    own: &[Allocation],
    others: &[OwnedAllocation],
) -> Vec<Conflict> {
    overlapping_routes(routes, own, others, false)
}

/// Connected links that lie in the routed blocks of other members: not refused, but worth a warning, for
/// traffic to them would enter the tunnel.
pub fn host_warnings(
    routes: &[HostRoute],
    own: &[Allocation],
    others: &[OwnedAllocation],
) -> Vec<Conflict> {
    overlapping_routes(routes, own, others, true)
}

fn overlapping_routes(
    routes: &[HostRoute],
    own: &[Allocation],
    others: &[OwnedAllocation],
    connected: bool,
) -> Vec<Conflict> {
    let mut index = AllocationIndex::default();
    for other in others.iter().filter(|o| o.allocation.exported) {
        index.insert(Claim::of(other.owner.clone(), other.allocation));
    }
    let mut found = Vec::new();
    for route in routes
        .iter()
        .filter(|r| r.connected == connected && !r.ours && r.cidr.prefix_len() > 0)
    {
        if own.iter().any(|a| a.cidr.covers(route.cidr)) {
            continue;
        }
        let claim = Claim {
            owner: Owner::Host,
            what: What::Route(route.text.clone()),
            cidr: route.cidr,
            exported: true,
        };
        for existing in index.overlapping(route.cidr) {
            if let Some(common) = route.cidr.common(existing.cidr) {
                found.push(Conflict {
                    wanted: claim.clone(),
                    existing: existing.clone(),
                    common,
                    free: Vec::new(),
                });
            }
        }
    }
    found
}
