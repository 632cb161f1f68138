//! What a cluster says about its own network: the blocks of pods and services, the nodes' addresses, the network plugin.
//!
//! ```text
//! API server --read--> Facts --decide--> Discovered { pod, service, nodes, cni, proxy, notes } --rows--> a table
//!                        |                    `--missing--> flags that must be given, and why
//!                        `--cni::findings--> settings that stand in the way
//! Node, CiliumNode, BlockAffinity --follow--> the blocks of one node's pods
//! ```
//!
//! Nothing is guessed. A block that is too small loses pods, one that is too large takes addresses from others; so only
//! what hands addresses out, or was told what to hand out, counts ([`found::Rank`]), and what the nodes have is held
//! against it. [`mod@decide`] says in which order.

pub(crate) mod control_plane;
pub mod decide;
pub mod facts;
#[cfg(test)]
mod fake;
mod follow;
pub mod found;
mod mirror;
mod nodes;
pub mod prefixes;
pub mod query;
mod read;
mod settle;
mod trim;

pub use decide::{Discovered, Flags, Missing, Row, decide};
pub use facts::{Facts, Reading};
pub use follow::{Following, follow};
pub use found::{Found, Note, Rank, Source, Weight};
pub use nodes::Node;
pub use prefixes::{NodeFacts, PrefixSource, Prefixes, pod_prefixes};
pub use query::Query;
pub use read::{DiscoverError, read, read_places};
