//! Which block `auto` gives, and which inner addresses a gateway gets. PURE.

use std::net::IpAddr;

use subsea_api::admin::Pool;
use subsea_api::conflict::{Claim, Owner, What};
use subsea_api::member::CidrRequests;
use subsea_api::{Allocation, AllocationIndex, Cidr, CidrRequest, ClusterId, Family, Kind};

/// The pools of a fleet that names none.
pub const DEFAULT_POOLS: [(Kind, &str); 3] = [
    (Kind::Pod, "10.32.0.0/11"),
    (Kind::Service, "10.112.0.0/12"),
    (Kind::Infra, "198.19.0.0/16"),
];

/// The pools of a fleet that names none, parsed.
pub fn default_pools() -> Vec<Pool> {
    DEFAULT_POOLS
        .iter()
        .filter_map(|(kind, cidr)| {
            let cidr = cidr.parse().ok()?;
            Some(Pool { kind: *kind, cidr })
        })
        .collect()
}

/// The defaults, with every kind that `chosen` names replaced by what it names.
pub fn with_defaults(chosen: &[Pool]) -> Vec<Pool> {
    let mut pools: Vec<Pool> = default_pools()
        .into_iter()
        .filter(|d| !chosen.iter().any(|c| c.kind == d.kind))
        .collect();
    pools.extend_from_slice(chosen);
    pools.sort_by_key(|p| (p.kind, p.cidr));
    pools
}

/// No pool of the fleet has such a block free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free {family} block of /{prefix_len} for {kind} addresses is left in the fleet's pools"
)]
pub struct Exhausted {
    /// What for.
    pub kind: Kind,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// How large.
    pub prefix_len: u8,
}

/// What a cluster's requests are resolved against.
#[derive(Debug, Clone, Copy)]
pub struct Space<'a> {
    /// The fleet's claims, without the cluster's own routed blocks.
    pub index: &'a AllocationIndex,
    /// The fleet's pools.
    pub pools: &'a [Pool],
    /// The cluster.
    pub cluster: &'a ClusterId,
    /// Blocks to give first when they fit: what it has, then what is reserved for it.
    pub preferred: &'a [Allocation],
}

/// The blocks that a cluster would own: its own choice as it is, `auto` by preference, then first fit.
///
/// # Errors
/// [`Exhausted`] when no pool has a block for an `auto`.
pub fn resolve(space: Space<'_>, requests: &CidrRequests) -> Result<Vec<Allocation>, Exhausted> {
    let asked = |kind, list: &[CidrRequest]| -> Vec<(Kind, CidrRequest)> {
        list.iter().map(|r| (kind, *r)).collect()
    };
    let mut wanted = asked(Kind::Pod, &requests.pod);
    wanted.extend(asked(Kind::Service, &requests.service));
    let mut given: Vec<Allocation> = requests
        .node
        .iter()
        .map(|cidr| Allocation {
            kind: Kind::Node,
            cidr: *cidr,
            exported: requests.export_nodes,
        })
        .collect();
    // Own choices first: an `auto` must go around them wherever it stands in the list.
    wanted.sort_by_key(|(_, request)| matches!(request, CidrRequest::Auto { .. }));
    for (kind, request) in wanted {
        let cidr = match request {
            CidrRequest::Exact(cidr) => cidr,
            CidrRequest::Auto { family, prefix_len } => {
                let taken: Vec<Cidr> = given.iter().map(|a| a.cidr).collect();
                auto(space, kind, family, prefix_len, &taken)?
            }
        };
        given.push(Allocation {
            kind,
            cidr,
            exported: true,
        });
    }
    given.sort_unstable();
    Ok(given)
}

/// One block for an `auto`: a preferred one of that kind and size, else the first fit of the pools.
///
/// # Errors
/// [`Exhausted`] when no pool has one.
pub fn auto(
    space: Space<'_>,
    kind: Kind,
    family: Family,
    prefix_len: u8,
    taken: &[Cidr],
) -> Result<Cidr, Exhausted> {
    let fits = |a: &&Allocation| {
        a.kind == kind && a.cidr.family() == family && a.cidr.prefix_len() == prefix_len
    };
    let own = |claim: &Claim| held_for(claim, space.cluster);
    let preferred = space
        .preferred
        .iter()
        .filter(fits)
        .map(|a| a.cidr)
        .find(|cidr| is_free(space.index, *cidr, taken, own));
    preferred
        .or_else(|| {
            space
                .pools
                .iter()
                .filter(|p| p.kind == kind && p.cidr.family() == family)
                .find_map(|p| first_fit(space.index, p.cidr, prefix_len, taken, own))
        })
        .ok_or(Exhausted {
            kind,
            family: family_name(family),
            prefix_len,
        })
}

/// The inner addresses of a new gateway: one IPv4 address of the infra pools and one of the fleet's ULA.
///
/// # Errors
/// [`Exhausted`] when either has none left.
pub fn inner_addresses(
    index: &AllocationIndex,
    pools: &[Pool],
    ula: Cidr,
    cluster: &ClusterId,
) -> Result<Vec<IpAddr>, Exhausted> {
    let skip = |claim: &Claim| held_for(claim, cluster) || is_infra_pool(claim);
    let one = |family: Family, blocks: &[Cidr]| {
        blocks
            .iter()
            // The first address of a network has meanings of its own (RFC 4291, section 2.6.1).
            .find_map(|p| first_fit(index, *p, family.bits(), &[Cidr::host(p.first())], skip))
            .map(Cidr::first)
            .ok_or(Exhausted {
                kind: Kind::Infra,
                family: family_name(family),
                prefix_len: family.bits(),
            })
    };
    let of_family = |family: Family| -> Vec<Cidr> {
        pools
            .iter()
            .filter(|p| p.kind == Kind::Infra && p.cidr.family() == family)
            .map(|p| p.cidr)
            .chain((family == Family::V6).then_some(ula))
            .collect()
    };
    let v4 = one(Family::V4, &of_family(Family::V4))?;
    let v6 = one(Family::V6, &of_family(Family::V6))?;
    Ok(vec![v4, v6])
}

/// The claim by which the broker keeps a whole pool of inner addresses from everybody else.
pub fn infra_pool_claim(cidr: Cidr) -> Claim {
    Claim {
        owner: Owner::Broker,
        what: What::Infra,
        cidr,
        exported: true,
    }
}

fn is_infra_pool(claim: &Claim) -> bool {
    claim.owner == Owner::Broker && claim.what == What::Infra
}

/// Reservations and resting blocks are held for their cluster, not against it.
fn held_for(claim: &Claim, cluster: &ClusterId) -> bool {
    matches!(&claim.owner, Owner::Reservation(id) if id == cluster)
}

fn is_free(
    index: &AllocationIndex,
    cidr: Cidr,
    taken: &[Cidr],
    skip: impl Fn(&Claim) -> bool,
) -> bool {
    !taken.iter().any(|t| t.common(cidr).is_some()) && index.overlapping(cidr).all(skip)
}

/// The first free block of `prefix_len` bits in `pool`; whatever stands in the way is jumped over whole.
pub fn first_fit(
    index: &AllocationIndex,
    pool: Cidr,
    prefix_len: u8,
    taken: &[Cidr],
    skip: impl Fn(&Claim) -> bool,
) -> Option<Cidr> {
    if prefix_len < pool.prefix_len() || prefix_len > pool.family().bits() {
        return None;
    }
    let mut candidate = Cidr::containing(pool.first(), prefix_len);
    loop {
        let claimed = index
            .overlapping(candidate)
            .filter(|c| !skip(c))
            .map(|c| c.cidr.last());
        let given = taken
            .iter()
            .filter(|t| t.common(candidate).is_some())
            .map(|t| t.last());
        let Some(last) = claimed.chain(given).max() else {
            return Some(candidate);
        };
        let next = successor(last.max(candidate.last())).filter(|next| pool.contains(*next))?;
        candidate = Cidr::containing(next, prefix_len);
    }
}

/// The next address, unless `addr` is the last of its family.
fn successor(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn claim(owner: Owner, what: What, block: &str) -> Claim {
        Claim {
            owner,
            what,
            cidr: cidr(block),
            exported: true,
        }
    }

    fn id(text: &str) -> ClusterId {
        text.parse().unwrap()
    }

    fn space<'a>(
        index: &'a AllocationIndex,
        pools: &'a [Pool],
        cluster: &'a ClusterId,
    ) -> Space<'a> {
        Space {
            index,
            pools,
            cluster,
            preferred: &[],
        }
    }

    #[test]
    fn auto_is_the_first_fit_and_goes_round_claims_and_own_choices() {
        let mut index = AllocationIndex::default();
        index.insert(claim(Owner::Cluster(id("west")), What::Pod, "10.32.0.0/16"));
        index.insert(claim(
            Owner::Cluster(id("west")),
            What::Node,
            "10.34.7.0/24",
        ));
        let requests = CidrRequests {
            pod: vec!["auto/16".parse().unwrap(), "10.33.0.0/16".parse().unwrap()],
            service: vec!["auto/20".parse().unwrap()],
            ..CidrRequests::default()
        };
        let east = id("east");
        let given = resolve(space(&index, &default_pools(), &east), &requests).unwrap();
        let blocks: Vec<String> = given.iter().map(|a| a.cidr.to_string()).collect();
        assert_eq!(blocks, ["10.33.0.0/16", "10.35.0.0/16", "10.112.0.0/20"]);
    }

    #[test]
    fn a_resting_block_is_free_for_its_last_owner_only() {
        let mut index = AllocationIndex::default();
        index.insert(claim(
            Owner::Reservation(id("west")),
            What::Pod,
            "10.32.0.0/16",
        ));
        let pools = default_pools();
        let (east, west) = (id("east"), id("west"));
        let given = |cluster| {
            auto(
                space(&index, &pools, cluster),
                Kind::Pod,
                Family::V4,
                16,
                &[],
            )
            .unwrap()
            .to_string()
        };
        assert_eq!(given(&east), "10.33.0.0/16");
        assert_eq!(given(&west), "10.32.0.0/16");
    }

    #[test]
    fn a_full_pool_is_said_to_be_full() {
        let index = AllocationIndex::default();
        let pools = [Pool {
            kind: Kind::Pod,
            cidr: cidr("10.32.0.0/15"),
        }];
        let east = id("east");
        let requests = CidrRequests {
            pod: vec!["auto/16".parse().unwrap(); 3],
            ..CidrRequests::default()
        };
        let error = resolve(space(&index, &pools, &east), &requests).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free IPv4 block of /16 for pod addresses is left in the fleet's pools"
        );
        let six = CidrRequests {
            pod: vec!["auto6/56".parse().unwrap()],
            ..CidrRequests::default()
        };
        assert!(resolve(space(&index, &pools, &east), &six).is_err());
    }

    #[test]
    fn every_gateway_gets_the_next_address_of_both_families() {
        let mut index = AllocationIndex::default();
        index.insert(infra_pool_claim(cidr("198.19.0.0/16")));
        let (pools, ula) = (default_pools(), cidr("fd12:3456:789a::/48"));
        index.insert(infra_pool_claim(ula));
        let first = inner_addresses(&index, &pools, ula, &id("east")).unwrap();
        assert_eq!(
            first,
            ["198.19.0.1", "fd12:3456:789a::1"].map(|a| a.parse::<IpAddr>().unwrap())
        );
        for addr in first {
            index.insert(claim(
                Owner::Cluster(id("east")),
                What::Infra,
                &Cidr::host(addr).to_string(),
            ));
        }
        let second = inner_addresses(&index, &pools, ula, &id("west")).unwrap();
        assert_eq!(second[0].to_string(), "198.19.0.2");
    }

    #[test]
    fn chosen_pools_replace_the_defaults_of_their_kind_only() {
        let pools = with_defaults(&[Pool {
            kind: Kind::Pod,
            cidr: cidr("172.16.0.0/12"),
        }]);
        let texts: Vec<String> = pools
            .iter()
            .map(|p| format!("{}={}", p.kind, p.cidr))
            .collect();
        assert_eq!(
            texts,
            [
                "pod=172.16.0.0/12",
                "service=10.112.0.0/12",
                "infra=198.19.0.0/16"
            ]
        );
    }
}
