//! Reads and changes links, addresses, routes and rules. Shell; foreign types stop in this folder.
//!
//! Requests are pipelined on one socket: the kernel handles them in the order given, and ten thousand routes
//! do not cost ten thousand round trips.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt as _};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::sys::AsyncSocket as _;
use subsea_api::Family;
use subsea_api::conflict::HostRoute;

pub mod attribute;
mod change;
mod message;
pub mod types;
pub mod watch;

use crate::task::Task;
pub use change::Change;
use change::{forgiven, request};
use message::Names;
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

/// A netlink socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
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

    /// All that the agent compares: devices, addresses, rules, and the routes of one table.
    pub async fn observe(&self, table: u32) -> Result<Observed, NetlinkError> {
        let links = self.links().await?;
        let names = names(&links);
        Ok(Observed {
            addresses: self.addresses(&names).await?,
            routes: self.routes_of(Some(table), &names).await?,
            rules: self.rules().await?,
            links,
        })
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
        let mut errors = Vec::new();
        let links = match self.links().await {
            Ok(links) => links,
            Err(error) => return vec![error],
        };
        let indices: BTreeMap<String, u32> = links.into_iter().map(|l| (l.name, l.index)).collect();
        // `request` queues the message at once, so the order on the wire is the order of `changes`.
        let mut answers = stream::iter(changes)
            .map(|change| {
                let request = request(change, &indices);
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
