//! Reads and changes links, addresses, routes and rules. Shell; foreign types stop in this folder.
//!
//! Requests are pipelined on one socket: the kernel handles them in the order given, and ten thousand routes
//! do not cost ten thousand round trips. Next hops and rules, which are few, go by [`Fast`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::sys::AsyncSocket as _;
use subsea_api::Family;
use subsea_api::conflict::HostRoute;

pub mod attribute;
pub mod change;
pub mod door;
mod fast;
mod message;
pub mod nexthop;
pub mod overlay;
pub mod types;
pub mod watch;

use crate::task::Task;
pub use change::Change;
use change::{forgiven, request};
pub use fast::Fast;
use message::Names;
pub use nexthop::{Group, Held, NextHop, Resilient};
pub use overlay::{Fdb, Mac, Neighbour, Vxlan};
pub use types::{
    Address, Hop, Link, Mark, Observed, PROTOCOL, RULE_PREF, Route, RouteKind, Rule, TABLE,
};

/// Requests under way at once: their answers must fit into the socket's buffer.
const PIPELINE: usize = 128;
/// The kernel answers at once; this is for a lost answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a listing that was disturbed by changes is tried anew.
const LISTINGS: usize = 5;
const TABLE_LOCAL: u32 = 255;

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("could not open a netlink socket: {source}")]
    Open {
        /// Why.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("could not {what}: {source}{}", kernel.as_ref().map(|k| format!(" ({k})")).unwrap_or_default())]
    Refused {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
        /// The kernel's own words, if it has any.
        kernel: Option<String>,
    },
    /// The device that an object belongs to is not there.
    #[error("could not {what}: there is no such device")]
    NoDevice {
        /// The operation and its object.
        what: String,
    },
    /// No answer came.
    #[error("could not {what}: the kernel did not answer")]
    NoAnswer {
        /// The operation and its object.
        what: String,
    },
    /// Changes by others kept disturbing a listing.
    #[error("could not {what}: it kept changing while it was read")]
    Unstable {
        /// The operation and its object.
        what: String,
    },
}

/// Makes a change with the function that it is given, or does not.
pub type Under<'a> = &'a (
        dyn Fn(&Change, &dyn Fn(&Change) -> Result<(), NetlinkError>) -> Result<(), NetlinkError>
            + Sync
    );

/// A netlink socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    fast: Arc<Fast>,
    _connection: Task,
}

impl Netlink {
    /// Opens a socket; inside a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let opened = |source| NetlinkError::Open { source };
        let (mut connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(opened)?;
        // The end of an answer is told from the end of the socket.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).map_err(opened)?;
        socket.set_cap_ack(true).map_err(opened)?;
        socket.set_rx_buf_sz(1_048_576_u32).map_err(opened)?;
        Ok(Self {
            handle,
            fast: Arc::new(Fast::open()?),
            _connection: Task::spawn("netlink", connection),
        })
    }

    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.list(
            &Message::GetLink(LinkMessage::default()),
            "list the devices",
            |m| {
                if let Message::NewLink(link) = m {
                    Some(message::link(&link))
                } else {
                    None
                }
            },
        )
        .await
    }

    /// The device of a name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|l| l.name == name))
    }

    /// The socket for what cannot wait.
    pub fn fast(&self) -> &Arc<Fast> {
        &self.fast
    }

    /// Devices, addresses, rules, and the routes of one table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn observe(&self, table: u32) -> Result<Observed, NetlinkError> {
        self.observe_all(&BTreeSet::from([table]), &(0..0), None)
            .await
    }

    /// All that is compared: devices, addresses, rules, the routes of some tables, next hops with numbers of a range,
    /// and what is said about who is behind a VXLAN device.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn observe_all(
        &self,
        tables: &BTreeSet<u32>,
        next_hops: &Range<u32>,
        vxlan: Option<&str>,
    ) -> Result<Observed, NetlinkError> {
        let links = self.links().await?;
        let names = names(&links);
        let mut observed = Observed {
            addresses: self.addresses(&names).await?,
            rules: self.rules().await?,
            ..Observed::default()
        };
        if !next_hops.is_empty() {
            observed.next_hops = self.fast.next_hops(next_hops, &names)?;
        }
        for table in tables {
            let routes = self.routes_of(Some(*table), &names).await?;
            observed.routes.extend(routes);
        }
        let behind = links.iter().find(|link| Some(&*link.name) == vxlan);
        if let Some(link) = behind {
            observed.fdb = self
                .behind(AddressFamily::Bridge, link.index, |m| {
                    message::overlay::fdb(m, &names)
                })
                .await?;
            for family in [Family::V4, Family::V6] {
                let found = self.behind(message::family(family), link.index, |m| {
                    message::overlay::neighbour(m, &names)
                });
                observed.neighbours.extend(found.await?);
            }
        }
        observed.links = links;
        Ok(observed)
    }

    /// The hardware addresses of those that the kernel has spoken with on a device, by their addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn hardware_addresses(
        &self,
        index: u32,
    ) -> Result<BTreeMap<IpAddr, Mac>, NetlinkError> {
        let mut found = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let family = message::family(family);
            let behind = self.behind(family, index, message::overlay::resolved);
            found.extend(behind.await?);
        }
        Ok(found)
    }

    /// What is said about who is behind a device, in one family.
    async fn behind<T: Ord>(
        &self,
        family: AddressFamily,
        index: u32,
        read: impl Fn(&NeighbourMessage) -> Option<T>,
    ) -> Result<BTreeSet<T>, NetlinkError> {
        let request = Message::GetNeighbour(message::overlay::listing(family, index));
        let listed = self.list(&request, "list the neighbours", |m| {
            if let Message::NewNeighbour(m) = m {
                // Kernels that do not filter give those of all devices.
                (m.header.ifindex == index && m.header.family == family)
                    .then(|| read(&m))
                    .flatten()
            } else {
                None
            }
        });
        Ok(listed.await?.into_iter().collect())
    }

    /// The addresses of this host that are not bound to a link or to itself.
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>, NetlinkError> {
        let names = names(&self.links().await?);
        let global = |a: &Address| a.scope == 0 && !a.addr.is_loopback();
        let found = self
            .addresses(&names)
            .await?
            .into_iter()
            .filter(global)
            .map(|a| a.addr);
        Ok(found.collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// All addresses of all devices that can be used as a source now.
    async fn addresses(&self, names: &Names) -> Result<Vec<Address>, NetlinkError> {
        self.list(
            &Message::GetAddress(AddressMessage::default()),
            "list the addresses",
            |m| {
                let Message::NewAddress(address) = m else {
                    return None;
                };
                if message::is_tentative(&address) {
                    None
                } else {
                    message::address(&address, names)
                }
            },
        )
        .await
    }

    /// The routes of a table, or of all tables, in both families.
    pub async fn routes(&self, table: Option<u32>) -> Result<Vec<Route>, NetlinkError> {
        let names = names(&self.links().await?);
        self.routes_of(table, &names).await
    }

    async fn routes_of(
        &self,
        table: Option<u32>,
        names: &Names,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut request = RouteMessage::default();
            request.header.address_family = message::family(family);
            if let Some(table) = table {
                request.attributes.push(RouteAttribute::Table(table));
            }
            let request = Message::GetRoute(request);
            let listed = self.list(&request, "list the routes", |m| {
                if let Message::NewRoute(route) = m {
                    message::route(&route, names)
                } else {
                    None
                }
            });
            // Kernels that do not filter give all tables, and those without IPv6 give IPv4 again.
            let wanted = |r: &Route| r.dst.family() == family && table.is_none_or(|t| r.table == t);
            routes.extend(listed.await?.into_iter().filter(wanted));
        }
        Ok(routes)
    }

    /// All rules of both families.
    pub async fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        let mut rules = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut request = RuleMessage::default();
            request.header.family = message::family(family);
            let request = Message::GetRule(request);
            let listed = self.list(&request, "list the rules", |m| {
                if let Message::NewRule(rule) = m {
                    message::rule(&rule)
                } else {
                    None
                }
            });
            rules.extend(listed.await?.into_iter().filter(|r| r.family == family));
        }
        Ok(rules)
    }

    /// Makes changes in the order given, and goes on after one that failed.
    ///
    /// # Errors
    /// One for each change that the kernel refused.
    pub async fn apply(&self, changes: &[Change]) -> Vec<NetlinkError> {
        self.apply_under(changes, &|change, make| make(change))
            .await
    }

    /// The same, with a word of `under` on each change that [`Fast`] makes: it makes it, or does not.
    ///
    /// # Errors
    /// One for each change that the kernel refused.
    pub async fn apply_under(&self, changes: &[Change], under: Under<'_>) -> Vec<NetlinkError> {
        let mut errors = Vec::new();
        let mut indices = None;
        for run in changes.chunk_by(|a, b| a.is_fast() == b.is_fast() && !a.changes_devices()) {
            let known = match indices.take() {
                Some(known) => known,
                None => match self.links().await {
                    Ok(links) => links.into_iter().map(|l| (l.name, l.index)).collect(),
                    Err(error) => {
                        errors.push(error);
                        return errors;
                    }
                },
            };
            if run.iter().all(Change::is_fast) {
                let make = |change: &Change| self.make_fast(change, &known);
                let made = run.iter().map(|change| under(change, &make));
                errors.extend(made.filter_map(Result::err));
            } else {
                errors.extend(self.pipeline(run, &known).await);
            }
            if !run.iter().any(Change::changes_devices) {
                indices = Some(known);
            }
        }
        errors
    }

    fn make_fast(
        &self,
        change: &Change,
        indices: &BTreeMap<String, u32>,
    ) -> Result<(), NetlinkError> {
        match change {
            Change::PutNextHop(hop) => {
                let index = indices
                    .get(&hop.device)
                    .ok_or_else(|| NetlinkError::NoDevice {
                        what: change.to_string(),
                    })?;
                self.fast.put_next_hop(hop, *index)
            }
            Change::PutGroup(group) => self.fast.put_group(group),
            Change::DeleteNextHop(id) => self.fast.delete_next_hop(*id),
            Change::AddRule(rule) => self.fast.add_rule(rule),
            Change::DeleteRule(rule) => self.fast.delete_rule(rule),
            Change::LinkUp(_)
            | Change::SetMtu(..)
            | Change::AddAddress(_)
            | Change::DeleteAddress(_)
            | Change::PutRoute(_)
            | Change::DeleteRoute(_)
            | Change::DeleteLink(_)
            | Change::AddVxlan(_)
            | Change::NoLinkLocal(_)
            | Change::PutFdb(_)
            | Change::DeleteFdb(_)
            | Change::PutNeighbour(_)
            | Change::DeleteNeighbour(_) => Ok(()),
        }
    }

    async fn pipeline(
        &self,
        changes: &[Change],
        indices: &BTreeMap<String, u32>,
    ) -> Vec<NetlinkError> {
        let mut errors = Vec::new();
        // `request` queues the message at once, so the order on the wire is the order of `changes`.
        let mut answers = stream::iter(changes)
            .map(|change| {
                let request = request(change, indices);
                let mut handle = self.handle.clone();
                let answer = match request {
                    Ok(None) => Err(Ok(())),
                    Ok(Some(message)) => handle.request(message).map_err(|_| Err(lost(change))),
                    Err(error) => Err(Err(error)),
                };
                async move {
                    match answer {
                        Ok(answer) => acknowledged(answer, change).await,
                        Err(done) => done,
                    }
                }
            })
            .buffered(PIPELINE);
        while let Some(outcome) = answers.next().await {
            errors.extend(outcome.err());
        }
        errors
    }

    async fn list<T>(
        &self,
        request: &Message,
        what: &str,
        mut read: impl FnMut(Message) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let what = || what.to_owned();
        'listing: for _ in 0..LISTINGS {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let lost = |_| NetlinkError::NoAnswer { what: what() };
            let mut answers = self.handle.clone().request(message).map_err(lost)?;
            let mut items = Vec::new();
            let mut disturbed = false;
            loop {
                let next = tokio::time::timeout(PATIENCE, answers.next());
                let Some(answer) = next
                    .await
                    .map_err(|_| NetlinkError::NoAnswer { what: what() })?
                else {
                    return Err(NetlinkError::NoAnswer { what: what() });
                };
                disturbed |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                let code = match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        items.extend(read(inner));
                        continue;
                    }
                    NetlinkPayload::Done(done) => done.code,
                    NetlinkPayload::Error(error) => error.raw_code(),
                    NetlinkPayload::Overrun(_) => continue 'listing,
                    NetlinkPayload::Noop | _ => continue,
                };
                // A table that does not exist yet is an empty one.
                if code < 0 && code != -libc::ENOENT {
                    let source = io::Error::from_raw_os_error(-code);
                    return Err(NetlinkError::Refused {
                        what: what(),
                        source,
                        kernel: None,
                    });
                }
                break;
            }
            if !disturbed {
                return Ok(items);
            }
        }
        Err(NetlinkError::Unstable { what: what() })
    }
}

/// The addresses of this host that are not bound to a link or to itself.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn host_addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    Netlink::open()?.host_addresses().await
}

/// The routes of this host in all tables but `local`, as the pre-flight compares them.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn host_routes() -> Result<Vec<HostRoute>, NetlinkError> {
    let routes = Netlink::open()?.routes(None).await?;
    let expected = |r: &Route| r.table != TABLE_LOCAL && !matches!(r.kind, RouteKind::Other(_));
    let as_host_route = |r: Route| HostRoute {
        cidr: r.dst,
        connected: r.is_connected(),
        ours: r.table == TABLE || r.is_ours(),
        text: r.to_string(),
    };
    Ok(routes
        .into_iter()
        .filter(expected)
        .map(as_host_route)
        .collect())
}

fn names(links: &[Link]) -> Names {
    links.iter().map(|l| (l.index, l.name.clone())).collect()
}

fn lost(change: &Change) -> NetlinkError {
    NetlinkError::NoAnswer {
        what: change.to_string(),
    }
}

async fn acknowledged(
    mut answers: impl Stream<Item = NetlinkMessage<Message>> + Unpin,
    change: &Change,
) -> Result<(), NetlinkError> {
    let answer = tokio::time::timeout(PATIENCE, answers.next())
        .await
        .map_err(|_| lost(change))?;
    let Some(answer) = answer else {
        return Err(lost(change));
    };
    let NetlinkPayload::Error(refused) = answer.payload else {
        return Ok(());
    };
    let code = -refused.raw_code();
    if code == 0 || forgiven(change, code) {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        what: change.to_string(),
        source: io::Error::from_raw_os_error(code),
        kernel: message::extended_ack(&refused.header),
    })
}
