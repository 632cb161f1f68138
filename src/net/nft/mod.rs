//! Keeps a table of ours (`inet subsea`, or the agent's) as it should be, through the tool `nft`. Shell; [`ruleset`] decides the text.
//!
//! Whether the kernel still holds the table is judged by the kernel, not by memory: its listing is compared with
//! the one from just after our own transaction. The kernel counts the generations of its rules; in an unchanged
//! generation the listing need not be made.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

pub mod counters;
pub mod foreign;
mod guard;
mod roads;
pub mod ruleset;
pub mod standing;

use crate::net::tool::{Tool, ToolError};
use ruleset::Ruleset;
use standing::Standing;

const NFT: Tool = Tool {
    name: "nft",
    package: "nftables",
};
/// How often a transaction is repeated when somebody else's comes between it and its listing.
const ATTEMPTS: usize = 3;

/// A table of ours in the kernel.
#[derive(Debug)]
pub struct Table {
    name: &'static str,
    /// The ruleset last put into the kernel, and how the kernel lists it.
    applied: Option<(Ruleset, String)>,
    /// The generation in which the kernel was last seen to hold it.
    verified: Option<u32>,
    /// What its counters had counted when they were last read: a new table goes on from there.
    counted: BTreeMap<String, u64>,
}

/// What [`Table::ensure`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel held what it should.
    Unchanged,
    /// The table was made as it is wanted now.
    Applied,
    /// Somebody had changed or removed the table: it was made anew.
    Healed,
}

impl Table {
    /// The table of a name, of which nothing is known yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            applied: None,
            verified: None,
            counted: BTreeMap::new(),
        }
    }

    /// Leaves the table as it is when there is one that checks what it must; else as [`Self::ensure`].
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub async fn keep(&mut self, wanted: &Ruleset) -> Result<Outcome, ToolError> {
        if self.applied.is_none() {
            let listing = list(self.name).await?;
            if listing.is_some_and(|text| wanted.is_checked_by(&text)) {
                return Ok(Outcome::Unchanged);
            }
        }
        self.ensure(wanted).await
    }

    /// Makes the kernel hold `wanted`, if it does not; one ruleset gives way to the other at a stroke.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub async fn ensure(&mut self, wanted: &Ruleset) -> Result<Outcome, ToolError> {
        if wanted.checks() {
            self.count();
        }
        let mut outcome = Outcome::Applied;
        if let Some((applied, listing)) = self.applied.take_if(|(applied, _)| applied == wanted) {
            let now = generation();
            let held = (now.is_some() && now == self.verified)
                || list(self.name).await?.as_ref() == Some(&listing);
            if held {
                self.applied = Some((applied, listing));
                self.verified = now;
                return Ok(Outcome::Unchanged);
            }
            outcome = Outcome::Healed;
        }
        self.verified = None;
        // Be it for a change by somebody since it was listed, or by a kernel that does not take the deletion of chains that maps led
        // to: then at a stroke.
        let mut refused = false;
        for attempt in 1..=ATTEMPTS {
            let before = generation();
            let standing = Standing::of(&list(self.name).await?.unwrap_or_default());
            if wanted.checks() {
                self.count();
            }
            let text = wanted.render(&self.counted);
            let mut made = 0_u32;
            let mut failed = None;
            let transactions = if refused {
                standing::whole(self.name, &text)
            } else {
                standing.transactions(self.name, &text)
            };
            for transaction in transactions {
                if let Err(error) = NFT.run(&["-f", "-"], &transaction).await {
                    failed = Some(error);
                    break;
                }
                made += 1;
            }
            match failed {
                Some(error @ ToolError::Failed { .. }) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, "the table is replaced as a whole");
                    refused = true;
                    continue;
                }
                Some(error) => return Err(error),
                None => {}
            }
            let listing = list(self.name).await?;
            let after = generation();
            // So many more than before: the listing is of our transactions and of nobody else's.
            let alone = before.map(|g| g.wrapping_add(made)) == after;
            if let Some(listing) = listing {
                self.applied = Some((wanted.clone(), listing));
                self.verified = after.filter(|_| alone);
            }
            if alone {
                break;
            }
        }
        Ok(outcome)
    }

    /// Reads the counters. Those of a table that somebody has deleted are as they were last read.
    fn count(&mut self) {
        match counters::read_of(self.name) {
            Ok(counted) => {
                for (name, packets) in counted {
                    let known = self.counted.entry(name).or_default();
                    *known = packets.max(*known);
                }
            }
            Err(error) => tracing::debug!(%error, "counters of nftables not read"),
        }
    }
}

/// Removes a table of ours; one that is not there is fine.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn remove(table: &str) -> Result<(), ToolError> {
    let text = format!("add table inet {table}\ndelete table inet {table}\n");
    match list(table).await? {
        Some(_) => NFT.run(&["-f", "-"], &text).await.map(drop),
        None => Ok(()),
    }
}

/// Chains of others that drop or translate what we forward: texts for people. `devices` are ours.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn foreign_obstacles(devices: &BTreeSet<String>) -> Result<Vec<String>, ToolError> {
    let listing = NFT.run(&["-j", "list", "chains"], "").await?;
    let mut problems = Vec::new();
    for suspect in foreign::suspects(&listing) {
        let chain = [
            "-j",
            "list",
            "chain",
            &suspect.family,
            &suspect.table,
            &suspect.name,
        ];
        // It may be gone by now.
        let Ok(rules) = NFT.run(&chain, "").await else {
            continue;
        };
        let found = devices
            .iter()
            .filter_map(|device| foreign::obstacle(&suspect, &rules, device));
        problems.extend(found);
    }
    Ok(problems)
}

/// Whether there is a table of others of this name, for IPv4 or IPv6.
pub async fn has_table(name: &str) -> bool {
    lists(&["table"], &[name]).await
}

/// Whether iptables' table `nat` has this chain, for IPv4 or IPv6, as far as iptables is built on nftables.
pub async fn has_nat_chain(name: &str) -> bool {
    lists(&["chain"], &["nat", name]).await
}

/// Whether `nft list WHAT FAMILY NAME` finds something. One that is not there, and a tool that fails, are the same.
async fn lists(what: &[&str], name: &[&str]) -> bool {
    for family in ["ip", "ip6"] {
        // Without what is in it: a table of kube-proxy can have megabytes.
        let arguments = [&["-t", "list"], what, &[family], name].concat();
        if NFT.run(&arguments, "").await.is_ok() {
            return true;
        }
    }
    false
}

/// The kernel's canonical listing of a table of ours; `None` when there is none.
async fn list(table: &str) -> Result<Option<String>, ToolError> {
    match NFT.run(&["-s", "list", "table", "inet", table], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(ToolError::Failed { stderr, .. }) if stderr.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Counts the transactions of nftables in this network namespace; `None` when the kernel does not say.
pub fn generation() -> Option<u32> {
    ask_generation().ok().flatten()
}

fn ask_generation() -> io::Result<Option<u32>> {
    /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`
    const GETGEN: u16 = 10 << 8 | 16;
    const NLM_F_REQUEST: u16 = 1;
    const REQUEST: u32 = 20;
    /// What stands before it: `struct nlmsghdr`, `struct nfgenmsg`, and the header of `NFTA_GEN_ID`.
    const ID: std::ops::Range<usize> = 24..28;
    let id_header = [8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
    let mut request = REQUEST.to_ne_bytes().to_vec();
    request.extend(GETGEN.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.resize(REQUEST as usize, 0);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
    let is_id = answer.get(20..ID.start) == Some(id_header.as_slice());
    let id = answer
        .get(ID)
        .and_then(|v| v.try_into().ok())
        .map(u32::from_be_bytes);
    Ok(id.filter(|_| is_id))
}
