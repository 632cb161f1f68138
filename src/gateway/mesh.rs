//! From the fleet to the tunnels: who our peers are, which blocks each gets, and what the kernel must route. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use subsea_api::conflict::{Claim, Owner};
use subsea_api::snapshot::{Cluster, Gateway, Listener, StockPeer};
use subsea_api::{
    Allocation, AllocationIndex, Cidr, ClusterId, Kind, NodeName, PublicKey, UnixMillis,
};

use crate::membership::fleet::View;
use crate::tunnel::{Group, PeerConfig, StripeConfig, TunnelConfig};

/// Seconds between keepalives to a stock peer: no echo keeps the path alive.
const STOCK_KEEPALIVE: u16 = 25;

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Our cluster.
    pub cluster: ClusterId,
    /// Our node.
    pub node: NodeName,
    /// Our blocks as given at the join, for the time before the first snapshot.
    pub allocations: Vec<Allocation>,
    /// Which families our underlay has an address of; with none known every candidate counts as reachable.
    pub families: Families,
    /// With how many stripes our data plane works; used are at most as many as the broker has told others of.
    pub stripes: u16,
    /// The first slot whose gateways we have no listener for.
    pub slots: u16,
}

/// Families of the underlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    fn reach(self, endpoint: &SocketAddr) -> bool {
        match endpoint {
            SocketAddr::V4(_) => self.v4 || !self.v6,
            SocketAddr::V6(_) => self.v6 || !self.v4,
        }
    }
}

/// A remote gateway's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathId {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeName,
}

/// The path to a remote gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Which.
    pub id: PathId,
    /// Its WireGuard identity in stripe 0, where we are concerned.
    pub key: PublicKey,
    /// Where it was last said to be.
    pub endpoint: Option<SocketAddr>,
    /// The further sessions with it.
    pub stripes: Vec<StripeConfig>,
    /// Its addresses inside the tunnels.
    pub inner: Vec<IpAddr>,
    /// Its slot among the gateways of its cluster.
    pub slot: u16,
    /// Set for a stock peer.
    pub stock: Option<StockPeer>,
    /// When it is dropped, if the broker's history misses it.
    pub until: Option<UnixMillis>,
    /// Since when its registration has not been renewed, if the broker says so.
    pub expired: Option<UnixMillis>,
}

/// All that follows from a [`View`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mesh {
    /// For the driver.
    pub tunnel: TunnelConfig,
    /// Our own blocks of every kind, our inner addresses left out.
    pub local: Vec<Allocation>,
    /// Our addresses inside the tunnels; none before the first registration.
    pub inner: Vec<IpAddr>,
    /// Every block that must go through the tunnels or nowhere: also those of members without a gateway.
    pub remote: Vec<Cidr>,
    /// The paths, by name.
    pub paths: Vec<Path>,
    /// The blocks of each member, also of those without a gateway; inner addresses left out.
    pub blocks: BTreeMap<ClusterId, Vec<Cidr>>,
    /// Members that have registered no usable gateway.
    pub without_gateway: Vec<ClusterId>,
    /// Blocks and keys left out, and why.
    pub problems: Vec<String>,
}

/// Makes the mesh: every gateway of every other cluster is a peer, and every one of a cluster can carry its blocks. Which of
/// them do is for `steering` to say.
pub fn mesh(view: &View, own: &Own) -> Mesh {
    let mut build = Build::new(view, own);
    let members = view.others(&own.cluster);
    // What the broker says now goes before what is merely kept: a kept block may have a new owner.
    for current in [true, false] {
        for (id, member) in members
            .iter()
            .filter(|(_, member)| member.current == current)
        {
            build.claim_blocks(id, member.record);
        }
        for (id, member) in &members {
            for (node, known) in &member.gateways {
                if (member.current && known.until.is_none()) == current {
                    build.claim_gateway(id, node, known.gateway, known.until);
                }
            }
        }
    }
    build.finish(members.keys().copied())
}

struct Build<'a> {
    own: &'a Own,
    /// Our slot: remote gateways may have a listener for it.
    slot: u16,
    /// How many stripes both we and the broker's record of us have.
    stripes: u16,
    mesh: Mesh,
    index: AllocationIndex,
    keys: BTreeSet<PublicKey>,
}

impl<'a> Build<'a> {
    fn new(view: &View, own: &'a Own) -> Self {
        let record = view.own();
        let mut build = Self {
            own,
            // Whoever has no record is known to nobody: no session comes about before it has one.
            slot: 0,
            stripes: 1,
            mesh: Mesh::default(),
            index: AllocationIndex::default(),
            keys: BTreeSet::new(),
        };
        build.mesh.local = record.map_or_else(
            || own.allocations.clone(),
            |record| record.allocations.clone(),
        );
        build
            .mesh
            .local
            .retain(|allocation| allocation.kind != Kind::Infra);
        if let Some(gateway) = record.and_then(|record| record.gateways.get(&own.node)) {
            build.slot = gateway.slot;
            let announced = |stripe: &u16| gateway.listener(*stripe, gateway.slot).is_some();
            build.stripes = (1..own.stripes).take_while(announced).fold(1, |n, _| n + 1);
            build.mesh.inner.clone_from(&gateway.inner);
            build
                .keys
                .extend(gateway.listeners.iter().map(|listener| listener.public_key));
        }
        let owner = Owner::Cluster(own.cluster.clone());
        let exported = build
            .mesh
            .local
            .iter()
            .filter(|allocation| allocation.exported);
        build.mesh.tunnel.local = exported.map(|allocation| allocation.cidr).collect();
        build
            .mesh
            .tunnel
            .local
            .extend(build.mesh.inner.iter().copied().map(Cidr::host));
        // Our unexported node blocks too: a remote block over them would cut us off from our own LAN.
        for allocation in &build.mesh.local {
            build.index.insert(Claim::of(owner.clone(), *allocation));
        }
        for addr in &build.mesh.inner {
            build.index.insert(Claim::of(owner.clone(), infra(*addr)));
        }
        build
    }

    /// Takes the exported blocks of a cluster, except those that somebody has already.
    fn claim_blocks(&mut self, id: &ClusterId, record: &Cluster) {
        let mut taken = Vec::new();
        for allocation in record
            .allocations
            .iter()
            .filter(|a| a.exported && a.kind != Kind::Infra)
        {
            if self.claim(id, *allocation) {
                taken.push(allocation.cidr);
            }
        }
        taken.sort_unstable();
        self.mesh.blocks.insert(id.clone(), taken);
    }

    fn claim(&mut self, id: &ClusterId, allocation: Allocation) -> bool {
        if let Some(other) = self.index.overlapping(allocation.cidr).next() {
            let problem = format!(
                "{} of cluster {id} is not routed: it overlaps {} of {}",
                allocation.cidr, other.cidr, other.owner
            );
            self.mesh.problems.push(problem);
            return false;
        }
        self.index
            .insert(Claim::of(Owner::Cluster(id.clone()), allocation));
        true
    }

    fn claim_gateway(
        &mut self,
        id: &ClusterId,
        node: &NodeName,
        gateway: &Gateway,
        until: Option<UnixMillis>,
    ) {
        let Some(listener) = gateway.listener(0, self.slot) else {
            if gateway.listeners.iter().any(is_for_others) {
                let problem = format!(
                    "gateway {id}/{node} is left out: it has no listener for gateways of slot {} as this one yet",
                    self.slot
                );
                self.mesh.problems.push(problem);
            }
            return;
        };
        if gateway.slot >= self.own.slots {
            let problem = format!(
                "gateway {id}/{node} is left out: it has slot {}, and the kernel driver has devices for the slots below {}: \
                 use `--driver userspace`, or fewer gateways a cluster",
                gateway.slot, self.own.slots
            );
            self.mesh.problems.push(problem);
            return;
        }
        if !self.keys.insert(listener.public_key) {
            let problem =
                format!("gateway {id}/{node} is left out: another gateway has its public key");
            self.mesh.problems.push(problem);
            return;
        }
        let inner = gateway.inner.iter().copied();
        let inner: Vec<_> = inner.filter(|addr| self.claim(id, infra(*addr))).collect();
        let stripe = |stripe| {
            let listener = gateway.listener(stripe, self.slot)?;
            Some(StripeConfig {
                stripe,
                key: listener.public_key,
                endpoint: self.endpoint(listener),
            })
        };
        let stripes = (1..self.stripes).filter_map(stripe).collect();
        let endpoint = self.endpoint(listener);
        self.mesh.paths.push(Path {
            id: PathId {
                cluster: id.clone(),
                node: node.clone(),
            },
            key: listener.public_key,
            endpoint,
            stripes,
            inner,
            slot: gateway.slot,
            stock: gateway.stock.clone(),
            until,
            expired: gateway.expired,
        });
    }

    /// Where to reach a listener.
    fn endpoint(&self, listener: &Listener) -> Option<SocketAddr> {
        let reachable = |endpoint: &&SocketAddr| self.own.families.reach(endpoint);
        let candidates = &listener.candidates;
        let endpoint = candidates.iter().find(reachable);
        endpoint.or(candidates.first()).copied()
    }

    /// Leaves out stripes with the key of somebody else; last, so that no stripe costs another gateway its path.
    fn claim_stripes(&mut self) {
        for path in &mut self.mesh.paths {
            path.stripes.retain(|stripe| {
                let free = self.keys.insert(stripe.key);
                if !free {
                    let PathId { cluster, node } = &path.id;
                    let problem = format!(
                        "stripe {} of gateway {cluster}/{node} is left out: another listener has its public key",
                        stripe.stripe
                    );
                    self.mesh.problems.push(problem);
                }
                free
            });
        }
    }

    fn finish<'i>(mut self, ids: impl Iterator<Item = &'i ClusterId>) -> Mesh {
        self.claim_stripes();
        let mut mesh = self.mesh;
        mesh.paths.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        for id in ids {
            let first = mesh.paths.partition_point(|path| path.id.cluster < *id);
            let paths = mesh.paths.iter().skip(first);
            let paths = paths.take_while(|path| path.id.cluster == *id);
            let blocks = mesh.blocks.get(id).map_or(&[][..], Vec::as_slice);
            mesh.remote.extend(blocks);
            let mut group = Group {
                routes: blocks.to_vec(),
                members: BTreeSet::new(),
            };
            for path in paths {
                let inner: Vec<Cidr> = path.inner.iter().copied().map(Cidr::host).collect();
                mesh.remote.extend(&inner);
                group.members.insert(path.key);
                let peer = PeerConfig {
                    label: format!("{}/{}", path.id.cluster, path.id.node),
                    endpoint: path.endpoint,
                    sources: [blocks, &inner].concat(),
                    routes: inner,
                    keepalive: path.stock.is_some().then_some(STOCK_KEEPALIVE),
                    slot: path.slot,
                    stripes: path.stripes.clone(),
                };
                mesh.tunnel.peers.insert(path.key, peer);
            }
            if group.members.is_empty() {
                mesh.without_gateway.push(id.clone());
            } else {
                mesh.tunnel.groups.push(group);
            }
        }
        mesh.remote.sort_unstable();
        mesh
    }
}

fn infra(addr: IpAddr) -> Allocation {
    Allocation {
        kind: Kind::Infra,
        cidr: Cidr::host(addr),
        exported: true,
    }
}

fn is_for_others(listener: &Listener) -> bool {
    listener.for_slot.is_some()
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
