//! Reads the named counters of our table. Shell: one request to nfnetlink, which `nft` would take longer to start for.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::ruleset::TABLE;
use crate::net::netlink::attribute::{attribute, message, messages, push, string};

/// Counts packets from a tunnel whose destination is not ours.
pub const FOREIGN_DESTINATION: &str = "foreign-destination";
/// Counts packets into a tunnel whose source is not ours.
pub const OUTBOUND_SOURCE: &str = "outbound-source";
/// Counts packets of VXLAN that do not come from the node that their inner hardware address belongs to.
pub const VXLAN_SENDER: &str = "vxlan-sender";
/// Counts packets inside VXLAN whose source their sender may not use.
pub const VXLAN_SOURCE: &str = "vxlan-source";

/// Enough for any part of an answer.
const ANSWER: usize = 64 * 1024;

/// The packets that each counter of the gateway's table has counted; none without the table.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read() -> io::Result<BTreeMap<String, u64>> {
    read_of(TABLE)
}

/// The packets that each counter of one of our tables has counted; none without the table.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read_of(table: &str) -> io::Result<BTreeMap<String, u64>> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(table), 0)?;
    let mut counters = BTreeMap::new();
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        answer.clear();
        // The kernel has answered already: what is not there will not come.
        socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
        for (kind, body) in messages(&answer) {
            match kind {
                NLMSG_DONE => return Ok(counters),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|code| code.try_into().ok());
                    return match code.map_or(0, i32::from_ne_bytes).saturating_neg() {
                        // No table, or a kernel without nftables, has counted nothing.
                        0 | libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL => Ok(counters),
                        code => Err(io::Error::from_raw_os_error(code)),
                    };
                }
                _ => counters.extend(counter(table, body)),
            }
        }
    }
}

/// A listing of the counters of our table.
fn request(table: &str) -> Vec<u8> {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ`
    const GETOBJ: u16 = 0x0a << 8 | 0x13;
    /// `NLM_F_REQUEST | NLM_F_DUMP`
    const FLAGS: u16 = 0x1 | 0x300;
    const NFPROTO_INET: u8 = 1;
    const NFTA_OBJ_TABLE: u16 = 1;
    const NFTA_OBJ_TYPE: u16 = 3;
    const NFT_OBJECT_COUNTER: u32 = 1;
    let mut body = vec![NFPROTO_INET, 0, 0, 0];
    push(&mut body, NFTA_OBJ_TABLE, format!("{table}\0").as_bytes());
    push(&mut body, NFTA_OBJ_TYPE, &NFT_OBJECT_COUNTER.to_be_bytes());
    message(GETOBJ, FLAGS, &body)
}

/// Name and packets of a counter, from the body of a message of an answer.
fn counter(table: &str, body: &[u8]) -> Option<(String, u64)> {
    const GENERIC: usize = 4;
    const NFTA_OBJ_TABLE: u16 = 1;
    const NFTA_OBJ_NAME: u16 = 2;
    const NFTA_OBJ_DATA: u16 = 4;
    const NFTA_COUNTER_PACKETS: u16 = 2;
    if string(body, GENERIC, NFTA_OBJ_TABLE) != Some(table.as_bytes()) {
        return None;
    }
    let name = string(body, GENERIC, NFTA_OBJ_NAME)?;
    let data = attribute(body, GENERIC, NFTA_OBJ_DATA)?;
    let packets = attribute(data, 0, NFTA_COUNTER_PACKETS)?;
    Some((
        String::from_utf8_lossy(name).into_owned(),
        u64::from_be_bytes(packets.try_into().ok()?),
    ))
}
