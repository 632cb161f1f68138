//! What `subsea status --wait` waits for. PURE.

use std::fmt;

use subsea_api::{ClusterId, NodeName};

use crate::gateway::status::{PathState, PathStatus, SnapshotSource, Status};

/// What is missing until everything is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// The fleet is not known yet.
    Snapshot,
    /// A member has no gateway.
    Gateway(ClusterId),
    /// A gateway is not connected, and why as far as it is known.
    Path(ClusterId, NodeName, PathState, Option<String>),
}

impl Missing {
    /// Whether it is the same lack, whatever the reason says: reasons count seconds.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(cluster, node, state, _), Self::Path(cluster_2, node_2, state_2, _)) => {
                (cluster, node, state) == (cluster_2, node_2, state_2)
            }
            (Self::Snapshot | Self::Gateway(_) | Self::Path(..), other) => self == other,
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot => {
                f.write_str("the fleet is not known yet: no snapshot from broker or disk")
            }
            Self::Gateway(cluster) => write!(f, "cluster {cluster} has no gateway"),
            Self::Path(cluster, gateway, state, why) => {
                write!(f, "{cluster}/{gateway} is {}", state.as_str())?;
                why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
            }
        }
    }
}

/// Everything that is missing; nothing in a fleet of one.
pub(super) fn missing(status: &Status) -> Vec<Missing> {
    if status.snapshot.source == SnapshotSource::None {
        return vec![Missing::Snapshot];
    }
    let mut found = Vec::new();
    for member in &status.members {
        if member.gateways.is_empty() {
            found.push(Missing::Gateway(member.cluster.clone()));
        }
        for path in member.gateways.iter().filter(|path| !is_connected(path)) {
            found.push(Missing::Path(
                member.cluster.clone(),
                path.gateway.clone(),
                path.state,
                path.why.clone(),
            ));
        }
    }
    found
}

/// Whether packets go both ways, as far as can be told: a stock peer answers no echo, so that its probe address or
/// its session must do.
pub(super) fn is_connected(path: &PathStatus) -> bool {
    match path.state {
        PathState::Connected => true,
        PathState::Kept | PathState::Unprobed => path.two_way,
        PathState::Connecting | PathState::OneWay | PathState::Down => false,
    }
}

#[cfg(test)]
mod tests {
    use subsea_api::UnixMillis;

    use super::*;
    use crate::cli::fixture::example;
    use crate::gateway::status::MemberStatus;

    fn path(state: PathState, handshake: Option<u64>, two_way: bool) -> PathStatus {
        let mut path = example().members.remove(0).gateways.remove(0);
        path.state = state;
        path.latest_handshake = handshake.map(UnixMillis);
        path.two_way = two_way;
        path
    }

    #[test]
    fn two_way_traffic_counts_and_nothing_else() {
        for (state, handshake, two_way, connected) in [
            (PathState::Connected, None, true, true),
            (PathState::Connecting, Some(999_999), false, false),
            (PathState::OneWay, Some(999_999), false, false),
            (PathState::Down, Some(999_999), false, false),
            (PathState::Kept, Some(999_999), true, true),
            (PathState::Kept, Some(999_999), false, false),
            (PathState::Unprobed, Some(999_999), true, true),
            (PathState::Unprobed, Some(999_999), false, false),
        ] {
            assert_eq!(
                is_connected(&path(state, handshake, two_way)),
                connected,
                "{state:?} {handshake:?} {two_way}"
            );
        }
    }

    #[test]
    fn what_is_missing_is_named_and_a_fleet_of_one_lacks_nothing() {
        let mut status = example();
        let texts = |status: &Status| {
            missing(status)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            texts(&status),
            ["west/gw-1 is one-way: we hear it, it does not hear us"]
        );
        status.members.push(MemberStatus {
            cluster: "north".parse().unwrap(),
            allocations: Vec::new(),
            gateways: Vec::new(),
        });
        assert_eq!(texts(&status)[1], "cluster north has no gateway");
        status.snapshot.source = SnapshotSource::None;
        assert_eq!(missing(&status), [Missing::Snapshot]);
        status.snapshot.source = SnapshotSource::Disk;
        status.members.clear();
        assert!(missing(&status).is_empty());
    }
}
