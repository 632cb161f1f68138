//! The agent's pilot: who the gateways and nodes are, and which gateways carry what. It moves flows at once; what the kernel
//! holds besides is for the [`super::keeper`]. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use subsea_api::{Cidr, ClusterId, NodeName};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::client::{AllHeard, Client, Heard};
use super::desired::{Gateway, Input, Node, Place, cluster_numbers, desired, refused};
use super::encap::{Encap, OnLink};
use super::local::Own;
use super::names::Names;
use super::options::Options;
use super::prober::{self, Peer, Prober, Targets};
use super::roster::Roster;
use super::seal::Seal;
use super::server::Nodes;
use super::sight::Sight;
use super::steer::{self, Sets};
use super::tls::Tls;
use super::turn::{Turn, turn};
use crate::control::feed::Feed;
use crate::gateway::echo;
use crate::gateway::mesh::{self, mesh};
use crate::host::desired::Desired;
use crate::host::{Steering, Swap};
use crate::membership::fleet::View;
use crate::membership::{Link, chain};
use crate::net::wireguard;
use crate::task::Task;

/// How often a missing address of ours is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// What a timer may come late.
const TICK: Duration = Duration::from_millis(10);
/// A start waits so long for a word of each gateway before it changes what an earlier process left.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// A node that was silent for so long is not alive for the inward judgement of its gateway.
pub(super) const SILENT: Duration = Duration::from_secs(2);
/// So many of those that are left out are named.
const SHOWN: usize = 5;

/// What the plane publishes for the status.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    pub(super) gateways: BTreeMap<NodeName, steer::Gateway>,
    pub(super) sets: Sets,
    pub(super) mtus: BTreeMap<ClusterId, u32>,
    pub(super) address: Option<(IpAddr, u32)>,
    /// The links that have it.
    pub(super) links: BTreeSet<String>,
    /// Gateways that are not on our link, though they must be.
    pub(super) off_link: BTreeSet<NodeName>,
}

/// The pilot.
pub(super) struct Plane {
    pub(super) link: Arc<Link>,
    pub(super) options: Arc<Options>,
    pub(super) tls: watch::Receiver<Option<Tls>>,
    pub(super) heard: Arc<AllHeard>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) own: watch::Receiver<Own>,
    /// The blocks of our pods, beside those of the options.
    pub(super) prefixes: watch::Receiver<Vec<Cidr>>,
    pub(super) prober: Arc<Prober>,
    pub(super) swap: Swap,
    /// What the kernel should hold; none until it may be touched.
    pub(super) wanted: watch::Sender<Option<Arc<Desired>>>,
    /// Counts what the keeper has seen to change in the kernel.
    pub(super) seen: watch::Receiver<u64>,
    pub(super) publish: watch::Sender<Published>,
    pub(super) sessions: BTreeMap<NodeName, (Ends, Task)>,
    pub(super) sets: Sets,
    pub(super) sight: Sight,
    pub(super) known: Option<(Arc<View>, Arc<Fleet>)>,
    pub(super) started: Instant,
    /// Counts the decisions.
    pub(super) number: u64,
}

/// The addresses of a session's other end, and our own.
type Ends = (Vec<IpAddr>, Option<IpAddr>);

/// What the fleet says of our cluster and of the others.
pub(super) struct Fleet {
    /// Slot and addresses of our gateways.
    gateways: BTreeMap<NodeName, (u16, Vec<IpAddr>)>,
    /// The blocks of the others, the inner addresses of their gateways included.
    blocks: BTreeMap<ClusterId, Vec<Cidr>>,
    /// The numbers of their groups.
    numbers: BTreeMap<ClusterId, u32>,
    local: Vec<subsea_api::Allocation>,
    /// The tunnel devices of a gateway on this node, whatever its driver: one for each slot of the others' gateways.
    tunnels: BTreeSet<String>,
    known: bool,
}

impl Plane {
    /// Steers until dropped.
    pub(super) async fn run(mut self) {
        let mut view = self.link.view.subscribe();
        let mut heard = self.heard.subscribe();
        let mut roster = self.nodes.roster.subscribe();
        let mut seals = self.nodes.seals.subscribe();
        let mut own = self.own.clone();
        let mut reachable = self.prober.reachable();
        let mut seen = self.seen.clone();
        // Of its own pace: what else happens does not put it off.
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.look().await;
        let mut changed = true;
        loop {
            if changed {
                let wanted = self.follow();
                if self.may_begin() {
                    self.wanted.send_if_modified(|before| {
                        let changed = before.as_deref() != Some(&wanted);
                        if changed {
                            *before = Some(Arc::new(wanted));
                        }
                        changed
                    });
                }
            }
            changed = true;
            let grace = GRACE.saturating_sub(self.started.elapsed()) + TICK;
            let waits = self.wanted.borrow().is_none();
            tokio::select! {
                Ok(()) = view.changed() => {}
                Ok(()) = heard.changed() => {}
                Ok(()) = roster.changed() => {}
                Ok(()) = seals.changed() => {}
                Ok(()) = own.changed() => {}
                Ok(()) = reachable.changed() => {}
                Ok(()) = seen.changed() => changed = self.look().await,
                () = tokio::time::sleep(grace), if waits => {}
                _ = look.tick(), if self.looks() => changed = self.look().await,
            }
        }
    }

    async fn look(&mut self) -> bool {
        self.sight.look(&self.link, &self.options).await
    }

    /// Whether to look again though nothing was heard: our address is missing, or nobody tells us of a gateway's new card.
    fn looks(&self) -> bool {
        self.sight.host().address.is_none() || self.options.encap == Encap::None
    }

    /// What an earlier process left carries traffic: nothing of it is changed before the gateways had time to speak.
    fn may_begin(&self) -> bool {
        let gateways = &self.publish.borrow().gateways;
        let spoke =
            |gateway: &steer::Gateway| gateway.feed.is_some() && (gateway.own || gateway.reachable);
        self.wanted.borrow().is_some()
            || self.started.elapsed() >= GRACE
            || gateways.values().all(spoke)
    }

    /// Brings sessions and echo to what the fleet says, and gives what the kernel should hold.
    fn follow(&mut self) -> Desired {
        let fleet = self.fleet_of_now();
        self.keep_sessions(&fleet);
        let member = Arc::clone(&self.link);
        let member = &member.membership;
        let own_node = &member.node;
        let names = |node: &NodeName| Names::of(&member.fleet, &member.cluster, node);
        let heard = self.heard.borrow().clone();
        let roster = self.nodes.roster.borrow().clone();
        let seals = self.nodes.seals.borrow().clone();
        let (views, gateways) = self.gateways(&fleet, &heard, names);
        let sets = steer::sets(&views, fleet.blocks.keys(), &self.sets);
        let news = sets
            .iter()
            .filter(|(c, set)| self.sets.get(*c) != Some(*set));
        for (cluster, set) in news {
            let gateways: Vec<&str> = set.iter().map(NodeName::as_str).collect();
            tracing::info!(%cluster, ?gateways, "who carries the traffic for a cluster");
        }
        self.sets = sets;
        let mtus = mtus(&views, &self.sets);
        let nodes = if fleet.gateways.contains_key(own_node) {
            self.behind(&roster, &gateways, names)
        } else {
            BTreeMap::new()
        };
        self.aim(&heard, &seals, &gateways, &nodes);
        let own = fleet.gateways.get(own_node);
        let own = own.map(|(slot, _)| (own_node, *slot));
        let input = Input {
            options: &self.options,
            local: &fleet.local,
            blocks: &fleet.blocks,
            numbers: &fleet.numbers,
            names: names(own_node),
            own,
            tunnels: fleet.tunnels.clone(),
            address: self.sight.host().address,
            links: self.sight.host().links.clone(),
            gateways: &gateways,
            sets: &self.sets,
            mtus: &mtus,
            nodes: &nodes,
            host_addresses: &self.sight.host().reachable,
            keep: !fleet.known,
        };
        // Flows first: the rest takes its time in a large fleet.
        let before = self.wanted.borrow().clone();
        if let Some(before) = before {
            take_turn(&self.swap, &mut self.number, turn(&input, &before));
        }
        let mut wanted = desired(&input);
        wanted.steering = self.number;
        self.complain(&input);
        let off_link = fleet.gateways.iter().filter(|(node, (_, addresses))| {
            self.options.encap == Encap::None
                && *node != own_node
                && !addresses.is_empty()
                && self.sight.host().address.is_some()
                && !gateways.contains_key(*node)
        });
        let off_link = off_link.map(|(node, _)| node.clone()).collect();
        self.publish.send_modify(|published| {
            published.gateways = views;
            published.sets.clone_from(&self.sets);
            published.mtus = mtus;
            published.address = self.sight.host().address;
            published.links.clone_from(&self.sight.host().links);
            published.off_link = off_link;
        });
        wanted
    }

    /// Says what of the fleet is left out.
    fn complain(&self, input: &Input<'_>) {
        let few = |all: &[String]| {
            let more = all.len().saturating_sub(SHOWN);
            let first = all.iter().take(SHOWN).cloned();
            let more = (more > 0).then(|| format!("{more} more"));
            first.chain(more).collect::<Vec<_>>().join("; ")
        };
        let refused = refused(input);
        let problem = (!refused.is_empty()).then(|| {
            format!(
                "blocks left out, for they would lead traffic of this cluster astray: {}; give one of the two clusters other addresses",
                few(&refused)
            )
        });
        self.link.problem("blocks", problem);
        let direct = self.options.encap == Encap::None && self.sight.host().address.is_some();
        let away = |node: &Node| node.place.on_link.all().next().is_none();
        let nodes = input.nodes.iter().filter(|(_, node)| direct && away(node));
        let nodes: Vec<String> = nodes.map(|(name, _)| name.to_string()).collect();
        let problem = (!nodes.is_empty()).then(|| {
            format!(
                "nodes that are not on our link, so that the way to their pods is left to the CNI: {}; `--encap vxlan` on all nodes would reach them",
                few(&nodes)
            )
        });
        self.link.problem("nodes-off-link", problem);
    }

    /// The gateways as they are steered by, and those on other nodes that packets can get to.
    fn gateways(
        &self,
        fleet: &Fleet,
        heard: &BTreeMap<NodeName, Heard>,
        names: impl Fn(&NodeName) -> Names,
    ) -> (
        BTreeMap<NodeName, steer::Gateway>,
        BTreeMap<NodeName, Gateway>,
    ) {
        let own_node = &self.link.membership.node;
        let reachable = self.prober.reachable().borrow().clone();
        let own_feed = self.own.borrow().clone();
        let mut views = BTreeMap::new();
        let mut gateways = BTreeMap::new();
        for (node, (slot, addresses)) in &fleet.gateways {
            if node == own_node {
                let view = steer::Gateway {
                    own: true,
                    reachable: true,
                    feed: own_feed.as_deref().cloned(),
                };
                views.insert(node.clone(), view);
                continue;
            }
            let told = heard.get(node);
            let address = told.and_then(|heard| heard.address);
            let all: Vec<IpAddr> = address
                .into_iter()
                .chain(addresses.iter().copied())
                .collect();
            let place = self.place(names(node), &all);
            let view = steer::Gateway {
                own: false,
                reachable: place.is_some() && reachable.get(node).copied().unwrap_or(false),
                feed: told.and_then(|heard| heard.feed.clone()),
            };
            // What came by it goes back by it, though it may not reach others of us: it is among those that we reach. A moment
            // later the questions come by another one, and the answers with them. Not to one that ends: nothing would be left
            // of those that have no questions.
            let answers = |feed: &&Feed| view.reachable && !feed.draining;
            let answers = view.feed.as_ref().filter(answers);
            let alive = answers.is_some();
            let reaches = answers.map(|feed| feed.reaches.keys().cloned().collect());
            views.insert(node.clone(), view);
            if let Some(place) = place {
                let sender = self.sight.host().hardware.get(&place.address).cloned();
                let gateway = Gateway {
                    place,
                    slot: *slot,
                    alive,
                    reaches: reaches.unwrap_or_default(),
                    sender,
                };
                gateways.insert(node.clone(), gateway);
            }
        }
        (views, gateways)
    }

    /// Where a node is that is known by some addresses, the best first; none where packets cannot get to it.
    fn place(&self, names: Names, addresses: &[IpAddr]) -> Option<Place> {
        let address = *addresses.first()?;
        if self.options.encap == Encap::Vxlan {
            let on_link = OnLink::default();
            return Some(Place {
                names,
                address,
                on_link,
            });
        }
        let on_link = OnLink::of(addresses.iter().copied(), &self.sight.host().connected);
        // The echo goes in the family of our own address, and tells of both.
        let (own, _) = self.sight.host().address?;
        let (address, _) = on_link.get(Cidr::host(own).family())?;
        Some(Place {
            names,
            address,
            on_link,
        })
    }

    /// The nodes behind the gateway of this node. Those of other gateways are among them: their pods are behind us as well.
    fn behind(
        &self,
        roster: &Roster,
        gateways: &BTreeMap<NodeName, Gateway>,
        names: impl Fn(&NodeName) -> Names,
    ) -> BTreeMap<NodeName, Node> {
        let nodes = roster.nodes().iter().map(|(name, node)| {
            let gateway = gateways.get(name).map(|gateway| gateway.place.clone());
            let place = gateway.or_else(|| self.place(names(name), &[node.address]));
            let place = place.unwrap_or_else(|| Place {
                names: names(name),
                address: node.address,
                on_link: OnLink::default(),
            });
            let prefixes = node.prefixes.clone();
            (name.clone(), Node { place, prefixes })
        });
        nodes.collect()
    }

    /// What the fleet says, computed anew only when it says something else.
    fn fleet_of_now(&mut self) -> Arc<Fleet> {
        let view = self.link.view.borrow().clone();
        if let Some((known, fleet)) = &self.known
            && Arc::ptr_eq(known, &view)
        {
            return Arc::clone(fleet);
        }
        let fleet = Arc::new(self.fleet(&view));
        self.known = Some((view, Arc::clone(&fleet)));
        fleet
    }

    fn fleet(&self, view: &View) -> Fleet {
        let member = &self.link.membership;
        let mesh = mesh(
            view,
            &mesh::Own {
                cluster: member.cluster.clone(),
                node: member.node.clone(),
                allocations: member.allocations.clone(),
                families: mesh::Families::default(),
                stripes: 1,
                slots: u16::MAX,
            },
        );
        let mut blocks = mesh.blocks;
        for path in &mesh.paths {
            let inner = path.inner.iter().copied().map(Cidr::host);
            blocks
                .entry(path.id.cluster.clone())
                .or_default()
                .extend(inner);
        }
        let names = wireguard::Names::new(&self.options.tunnel);
        let slots = mesh.paths.iter().map(|path| path.slot).chain([0]);
        let tunnels = slots.map(|slot| names.of_slot(slot)).collect();
        let gateways = view.own().map(|record| record.gateways.clone());
        let gateways = gateways.unwrap_or_default().into_iter();
        Fleet {
            gateways: gateways
                .filter(|(_, gateway)| gateway.stock.is_none())
                .map(|(node, gateway)| (node, (gateway.slot, gateway.node_addresses)))
                .collect(),
            numbers: cluster_numbers(&blocks),
            blocks,
            local: mesh.local,
            tunnels,
            known: view.snapshot.is_some(),
        }
    }

    /// A session with the node of every gateway but our own.
    fn keep_sessions(&mut self, fleet: &Fleet) {
        let own_node = &self.link.membership.node;
        let from = self.sight.host().address.map(|(address, _)| address);
        let mark = self.options.mark;
        let mut before = std::mem::take(&mut self.sessions);
        for (node, (_, addresses)) in fleet.gateways.iter().filter(|(node, _)| *node != own_node) {
            let key: Ends = (addresses.clone(), from);
            let kept = before.remove(node).filter(|(known, _)| *known == key);
            let session = kept.unwrap_or_else(|| {
                let client = Client {
                    link: Arc::clone(&self.link),
                    tls: self.tls.clone(),
                    options: Arc::clone(&self.options),
                    prefixes: self.prefixes.clone(),
                    node: node.clone(),
                    addresses: addresses.clone(),
                    from,
                    mark: mark.value & mark.mask,
                    heard: Arc::clone(&self.heard),
                };
                (key.clone(), Task::spawn("session", client.run()))
            });
            self.sessions.insert(node.clone(), session);
        }
        if !before.is_empty() {
            let gateways = &fleet.gateways;
            self.heard
                .send_modify(|all| all.retain(|node, _| gateways.contains_key(node)));
        }
    }

    fn aim(
        &self,
        heard: &BTreeMap<NodeName, Heard>,
        seals: &BTreeMap<NodeName, Arc<Seal>>,
        gateways: &BTreeMap<NodeName, Gateway>,
        nodes: &BTreeMap<NodeName, Node>,
    ) {
        let encap = self.options.encap;
        let peer = |place: &Place, seal: &Arc<Seal>, held| Peer {
            address: match encap {
                Encap::Vxlan => place.names.inner.into(),
                Encap::None => place.address,
            },
            seal: Arc::clone(seal),
            held,
        };
        let gateway = |(node, gateway): (&NodeName, &Gateway)| {
            let heard = heard.get(node)?;
            let seal = heard.seal.as_ref()?;
            Some((node.clone(), peer(&gateway.place, seal, heard.held)))
        };
        let node = |(name, node): (&NodeName, &Node)| {
            Some((name.clone(), peer(&node.place, seals.get(name)?, None)))
        };
        let member = &self.link.membership;
        let inner = || Names::of(&member.fleet, &member.cluster, &member.node).inner;
        let (address, port) = match encap {
            Encap::Vxlan => (Some(inner().into()), echo::PORT),
            Encap::None => (
                self.sight.host().address.map(|(address, _)| address),
                self.options.session_port,
            ),
        };
        let own = address.zip(self.sight.host().echo.clone());
        let mark = self.options.mark;
        self.prober.aim(Targets {
            own: own.map(|(address, device)| prober::Place {
                address,
                port,
                device,
                mark: mark.value & mark.mask,
            }),
            gateways: gateways.iter().filter_map(gateway).collect(),
            nodes: nodes.iter().filter_map(node).collect(),
        });
    }
}

/// Moves flows at once.
fn take_turn(swap: &Swap, number: &mut u64, turn: Turn) {
    if turn.is_empty() {
        return;
    }
    *number += 1;
    let steering = Steering {
        number: *number,
        groups: turn.groups,
        rules: turn.rules,
    };
    if let Err(error) = swap.steer(steering) {
        let error = chain(&error);
        tracing::warn!(
            error,
            "flows were not moved at once: the next pass moves them"
        );
    }
}

/// The largest packet that gets to each cluster by every gateway that carries it.
fn mtus(gateways: &BTreeMap<NodeName, steer::Gateway>, sets: &Sets) -> BTreeMap<ClusterId, u32> {
    let of_cluster = |(cluster, set): (&ClusterId, &BTreeSet<NodeName>)| {
        let feeds = set
            .iter()
            .filter_map(|node| gateways.get(node)?.feed.as_ref());
        let least = feeds.filter_map(|feed| feed.reaches.get(cluster)).min()?;
        Some((cluster.clone(), *least))
    };
    sets.iter().filter_map(of_cluster).collect()
}
