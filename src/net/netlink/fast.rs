//! Changes that cannot wait for a pass: next hops, groups and rules. Shell.
//!
//! Each is one request of about ten microseconds, answered inside the call; no runtime takes part.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::door::{Door, Failure};
use super::message::{self, Names};
use super::nexthop::{self, Group, Held, NextHop};
use super::types::Rule;
use super::{LISTINGS, NetlinkError};

/// A socket for them, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Fast(Mutex<Door>);

impl Fast {
    /// Opens one.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let door = Door::open(NETLINK_ROUTE).map_err(|source| NetlinkError::Open { source })?;
        Ok(Self(Mutex::new(door)))
    }

    /// What the kernel holds under the numbers of a range.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn next_hops(
        &self,
        ids: &Range<u32>,
        names: &Names,
    ) -> Result<BTreeMap<u32, Held>, NetlinkError> {
        let what = "list the next hops";
        for _ in 0..LISTINGS {
            let mut found = BTreeMap::new();
            let listed = self.ask(nexthop::list(), |body| {
                let told = nexthop::read(body, names);
                found.extend(told.filter(|(id, _)| ids.contains(id)));
            });
            match listed {
                Ok(()) => return Ok(found),
                Err(Failure::Refused(libc::EINTR)) => {}
                // A kernel before 5.3 has none.
                Err(Failure::Refused(libc::EOPNOTSUPP)) => return Ok(BTreeMap::new()),
                Err(failure) => return Err(refused(what, failure)),
            }
        }
        Err(NetlinkError::Unstable { what: what.into() })
    }

    /// Makes a next hop, in place of the one with its number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_next_hop(&self, hop: &NextHop, index: u32) -> Result<(), NetlinkError> {
        self.change(
            nexthop::put_hop(hop, index),
            || format!("set next hop {hop}"),
            &[],
        )
    }

    /// Makes a group, in place of the one with its number: what members carried that it has no more moves with this.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_group(&self, group: &Group) -> Result<(), NetlinkError> {
        self.change(
            nexthop::put_group(group),
            || format!("set next hop {group}"),
            &[],
        )
    }

    /// Removes a next hop or a group; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_next_hop(&self, id: u32) -> Result<(), NetlinkError> {
        let what = || format!("delete next hop {id}");
        self.change(nexthop::delete(id), what, &[libc::ENOENT])
    }

    /// Adds a rule; one that is there is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let message = Message::NewRule(message::rule_message(rule));
        let request = serialized(message, NLM_F_CREATE | NLM_F_EXCL);
        self.change(request, || format!("add rule {rule}"), &[libc::EEXIST])
    }

    /// Removes a rule; one that is gone is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = serialized(Message::DelRule(message::rule_message(rule)), 0);
        let gone = [libc::ENOENT, libc::ESRCH];
        self.change(request, || format!("delete rule {rule}"), &gone)
    }

    fn change(
        &self,
        request: Vec<u8>,
        what: impl FnOnce() -> String,
        forgiven: &[i32],
    ) -> Result<(), NetlinkError> {
        match self.ask(request, |_| {}) {
            Err(Failure::Refused(code)) if forgiven.contains(&code) => Ok(()),
            Err(failure) => Err(refused(&what(), failure)),
            Ok(()) => Ok(()),
        }
    }

    fn ask(&self, mut request: Vec<u8>, mut body: impl FnMut(&[u8])) -> Result<(), Failure> {
        let mut door = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        door.ask(&mut request, |_, payload| {
            body(payload);
            Ok(())
        })
    }
}

fn serialized(message: Message, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn refused(what: &str, failure: Failure) -> NetlinkError {
    let source = match failure {
        Failure::Refused(code) => io::Error::from_raw_os_error(code),
        Failure::Io(source) => source,
        Failure::Answer(why) => io::Error::other(why),
    };
    NetlinkError::Refused {
        what: what.to_owned(),
        source,
        kernel: None,
    }
}
