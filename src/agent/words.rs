//! What agents of a cluster say to each other in a session: JSON, a line each. PURE.

use serde::{Deserialize, Serialize};
use subsea_api::Cidr;

use super::encap::Encap;
use crate::control::feed::Feed;

/// The longest line, in bytes: a feed of 1,000 clusters has about 45,000.
pub const MAX_LINE: u64 = 512 * 1024;
/// The most prefixes of a node.
pub const MAX_PREFIXES: usize = 256;

/// A node to a gateway's node: what is behind me.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The blocks that its pods have.
    pub prefixes: Vec<Cidr>,
    /// How packets get to it.
    #[serde(default)]
    pub encap: Encap,
}

/// A gateway's node to a node: how the gateway is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// None while no gateway runs there.
    pub gateway: Option<Feed>,
    /// How packets get to it.
    #[serde(default)]
    pub encap: Encap,
}

/// Why two agents that differ cannot pass packets to each other; none when they can.
pub fn mismatch(ours: Encap, theirs: Encap) -> Option<String> {
    (ours != theirs).then(|| {
        format!("it runs with `--encap {theirs}`, and we with `--encap {ours}`: all agents of a cluster need the same")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_before_mean_vxlan() {
        let hello: Hello = serde_json::from_str(r#"{"prefixes":["10.32.1.0/24"]}"#).unwrap();
        assert_eq!(mismatch(Encap::Vxlan, hello.encap), None);
        let word: Word = serde_json::from_str(r#"{"gateway":null,"encap":"none"}"#).unwrap();
        let text = mismatch(Encap::Vxlan, word.encap).unwrap();
        assert!(text.contains("`--encap none`, and we with `--encap vxlan`"));
    }
}
