//! CIDR blocks owned in the fleet, and the ordered index that finds what overlaps a block. PURE.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cidr::{Cidr, Family};
use crate::conflict::Claim;
use crate::id::NameError;

/// What an allocation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Addresses of pods.
    Pod,
    /// ClusterIPs.
    Service,
    /// Addresses of nodes; registered only when asked for.
    Node,
    /// Inner addresses of gateways (/32 and /128), given by the broker.
    Infra,
    /// Addresses by which overlapping clusters are seen.
    Global,
}

impl Kind {
    /// The kind as it stands in flags and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Node => "node",
            Self::Infra => "infra",
            Self::Global => "global",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = NameError;
    fn from_str(value: &str) -> Result<Self, NameError> {
        [
            Self::Pod,
            Self::Service,
            Self::Node,
            Self::Infra,
            Self::Global,
        ]
        .into_iter()
        .find(|k| k.as_str() == value)
        .ok_or_else(|| NameError {
            what: "kind of allocation",
            value: value.chars().take(80).collect(),
            reason: "use pod, service, node, infra or global".into(),
        })
    }
}

/// One block owned by a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// What it is for.
    pub kind: Kind,
    /// The block.
    pub cidr: Cidr,
    /// Whether other clusters route it. Only node blocks may be unexported; such a block is compared
    /// with what is routed, but may be shared with the node blocks of clusters on the same LAN.
    #[serde(default = "exported_by_default")]
    pub exported: bool,
}

fn exported_by_default() -> bool {
    true
}

/// All claims of the fleet in address order, so that what overlaps a block is found without a scan.
///
/// CIDR blocks nest or are disjoint: what overlaps a block lies either inside it (one range of the map)
/// or around it (at most one look-up for each shorter prefix length).
#[derive(Debug, Clone, Default)]
pub struct AllocationIndex {
    claims: BTreeMap<Cidr, Vec<Claim>>,
    /// How many claims of each family and prefix length there are: lengths that nobody uses are not looked up.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl AllocationIndex {
    /// Adds a claim; equal claims are kept apart.
    pub fn insert(&mut self, claim: Claim) {
        *self
            .lengths
            .entry((claim.cidr.family(), claim.cidr.prefix_len()))
            .or_default() += 1;
        self.claims.entry(claim.cidr).or_default().push(claim);
    }

    /// Takes one claim equal to `claim` out; false when there is none.
    pub fn remove(&mut self, claim: &Claim) -> bool {
        let Some(at) = self.claims.get_mut(&claim.cidr) else {
            return false;
        };
        let Some(position) = at.iter().position(|c| c == claim) else {
            return false;
        };
        at.swap_remove(position);
        if at.is_empty() {
            self.claims.remove(&claim.cidr);
        }
        let key = (claim.cidr.family(), claim.cidr.prefix_len());
        if let Some(count) = self.lengths.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
        true
    }

    /// How many claims there are.
    pub fn len(&self) -> usize {
        self.lengths.values().sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Every claim that shares an address with `cidr`: those around it, widest first, then those inside
    /// it in address order.
    pub fn overlapping(&self, cidr: Cidr) -> impl Iterator<Item = &Claim> {
        let inside = self
            .claims
            .range(cidr..=Cidr::host(cidr.last()))
            .flat_map(|(_, claims)| claims);
        self.around(cidr).chain(inside)
    }

    /// The first `count` blocks of `prefix_len` bits in `pool` that overlap no claim of the index, of
    /// those that `skip` does not refuse.
    pub fn free_blocks(
        &self,
        pool: Cidr,
        prefix_len: u8,
        count: usize,
        skip: impl Fn(&Claim) -> bool,
    ) -> Vec<Cidr> {
        self.free_blocks_besides(pool, prefix_len, count, &[], skip)
    }

    /// As [`Self::free_blocks`], and overlapping none of `besides` either: as if those stood in the index.
    ///
    /// One walk along the pool: blocks nest or are disjoint, so what is taken is met in address order and
    /// jumped over whole.
    pub fn free_blocks_besides(
        &self,
        pool: Cidr,
        prefix_len: u8,
        count: usize,
        besides: &[Cidr],
        skip: impl Fn(&Claim) -> bool,
    ) -> Vec<Cidr> {
        let mut free = Vec::new();
        let fits = prefix_len >= pool.prefix_len() && prefix_len <= pool.family().bits();
        if !fits || self.around(pool).any(|c| !skip(c)) {
            return free;
        }
        let mut taken = self
            .claims
            .range(pool..=Cidr::host(pool.last()))
            .filter(|(_, claims)| claims.iter().any(|c| !skip(c)))
            .map(|(cidr, _)| *cidr)
            .peekable();
        let mut candidate = Cidr::containing(pool.first(), prefix_len);
        while free.len() < count {
            while taken.next_if(|t| t.last() < candidate.first()).is_some() {}
            let met = taken
                .peek()
                .copied()
                .filter(|t| t.first() <= candidate.last())
                .or_else(|| {
                    besides
                        .iter()
                        .copied()
                        .find(|b| b.common(candidate).is_some())
                });
            if met.is_none() {
                free.push(candidate);
            }
            let end = met.map_or(candidate.last(), |t| t.last().max(candidate.last()));
            match successor(end).filter(|next| pool.contains(*next)) {
                Some(next) => candidate = Cidr::containing(next, prefix_len),
                None => break,
            }
        }
        free
    }

    /// Every claim wider than `cidr` that covers it, widest first.
    fn around(&self, cidr: Cidr) -> impl Iterator<Item = &Claim> {
        self.lengths
            .range((cidr.family(), 0)..(cidr.family(), cidr.prefix_len()))
            .filter_map(move |((_, len), _)| self.claims.get(&Cidr::containing(cidr.first(), *len)))
            .flatten()
    }
}

/// The next address, unless `addr` is the last of its family.
fn successor(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}
