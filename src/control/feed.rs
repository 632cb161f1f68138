//! What a gateway says of itself to the agent of its node, and that to the agents of the other nodes. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subsea_api::ClusterId;

/// A gateway speaks at least so often; one that is silent for four times as long is taken for dead.
pub const BEAT: Duration = Duration::from_millis(250);

/// So long an agent may be away, for an upgrade or after a crash, before what it said last is doubted: by its gateway, whom it
/// told that the nodes of the cluster are reached, and by those nodes, whom it told of the gateway. Both doubt at once, or
/// questions would take one way and answers another.
pub const HOLD: Duration = Duration::from_secs(15);

/// How a gateway is for traffic of its own cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// It is about to stop: nothing new shall go to it, and what goes shall move.
    pub draining: bool,
    /// It does not reach its own cluster.
    pub inward_dead: bool,
    /// The clusters that it reaches now, and the largest inner packet that gets there whole, in bytes.
    pub reaches: BTreeMap<ClusterId, u32>,
    /// The clusters that it could reach, by gateways that are kept out of use because they failed lately or would rather not:
    /// for who has no better way.
    #[serde(default)]
    pub could: BTreeSet<ClusterId>,
}

impl Feed {
    /// Whether traffic to `cluster` may go to this gateway.
    pub fn carries(&self, cluster: &ClusterId) -> bool {
        !self.draining && !self.inward_dead && self.reaches.contains_key(cluster)
    }
}
