//! How a join or a leave fails, and what to do about it. PURE.

use std::io;
use std::path::PathBuf;

use subsea_api::join_file::JoinFileError;
use subsea_api::{ClusterId, Code, Conflict, FleetName, NodeName, Role};

use crate::broker_client::ClientError;
use crate::control::ControlError;
use crate::net::netlink::NetlinkError;
use crate::state::StateError;

/// Why a join, a pre-flight or a leave was not done.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The join file cannot be read.
    #[error("could not read the join file `{}`", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The join file is damaged.
    #[error("`{}` cannot be used: {source}", .path.display())]
    JoinFile {
        /// Which.
        path: PathBuf,
        /// Why; part of the message.
        source: JoinFileError,
    },
    /// `--cluster` names another cluster than the join file.
    #[error("the join file is for cluster `{file}`, not for `{given}`")]
    OtherCluster {
        /// In the file.
        file: ClusterId,
        /// On the command line.
        given: ClusterId,
    },
    /// A flag that must be there, or must not, with this kind of join file.
    #[error("{message}")]
    Flags {
        /// Which.
        message: String,
        /// What to do.
        hint: &'static str,
    },
    /// The host's name cannot be a node's.
    #[error("the name of this host cannot be the name of a node")]
    NoNodeName,
    /// The directory belongs to another cluster, node or fleet.
    #[error("the state directory belongs to {is}, the join is for {wanted}")]
    Occupied {
        /// Whose it is.
        is: String,
        /// Whose it would be.
        wanted: String,
    },
    /// What Kubernetes mounts for us cannot be read.
    #[error("could not read `{}`", .path.display())]
    Mount {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What Kubernetes mounts for us cannot be used.
    #[error("`{}` cannot be used: {why}", .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A service account token that enrols no node.
    #[error("{why}")]
    ServiceAccount {
        /// Why.
        why: String,
    },
    /// The directory of this node belongs to another installation.
    #[error("the state directory `{}` belongs to {is}, and this is {wanted}", .path.display())]
    OtherNode {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        is: String,
        /// Whose it would be.
        wanted: String,
    },
    /// Blocks overlap.
    #[error("{}", conflicts(.0))]
    Conflicts(Vec<Conflict>),
    /// The token was used before, for other blocks.
    #[error(
        "cluster `{cluster}` is registered with other blocks: this node has used the token before, and a token works once"
    )]
    OtherBlocks {
        /// Which.
        cluster: ClusterId,
    },
    /// There is nothing to leave.
    #[error("this node is no member: `{}` holds no membership", .path.display())]
    NotJoined {
        /// The state directory.
        path: PathBuf,
    },
    /// A gateway runs, and could not be stopped.
    #[error("the running gateway could not be stopped: {why}")]
    NotStopped {
        /// Why.
        why: String,
    },
    /// The broker could not be told that we leave.
    #[error("nothing was removed: {source}")]
    NotLeft {
        /// Why; part of the message.
        source: ClientError,
    },
    /// The host's routes could not be read.
    #[error("could not read this host's routes")]
    Routes(#[source] NetlinkError),
    /// The broker failed or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(StateError),
    /// The control socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn conflicts(pairs: &[Conflict]) -> String {
    match pairs.len() {
        1 => "1 pair of blocks conflicts: nothing was registered".to_owned(),
        n => format!("{n} pairs of blocks conflict: nothing was registered"),
    }
}

impl EnrolError {
    /// Conflicts that the broker found are the same as those that the pre-flight finds.
    pub(super) fn refused(error: ClientError) -> Self {
        let found = match &error {
            ClientError::Problem(p) if p.code == Code::CidrConflict => p.details.as_ref(),
            ClientError::Problem(_)
            | ClientError::Unreachable { .. }
            | ClientError::WrongCa { .. }
            | ClientError::Tls { .. }
            | ClientError::Protocol(_)
            | ClientError::Bundle(_)
            | ClientError::Identity(_) => None,
        };
        let found = found.and_then(|details| details.get("conflicts")).cloned();
        match found.and_then(|value| serde_json::from_value::<Vec<Conflict>>(value).ok()) {
            Some(pairs) if !pairs.is_empty() => Self::Conflicts(pairs),
            Some(_) | None => Self::Client(error),
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File { .. } => {
                "create one with `subsea-broker token create --cluster ID -o FILE`"
            }
            Self::OtherCluster { .. } => {
                "use the join file of that cluster, or leave `--cluster` out"
            }
            Self::Flags { hint, .. } => hint,
            Self::NoNodeName => "give one with `--node NAME`: a-z, 0-9, `-` and dots",
            Self::Occupied { .. } => {
                "give this node its own `--state-dir`, or leave first with `subsea leave`"
            }
            Self::Mount { .. } => {
                "it is mounted from the Secret `subsea-enrolment` or projected for the service account: `subsea join --context` makes both"
            }
            Self::Unusable { .. } => "`subsea join --context` with a new join file writes it anew",
            Self::ServiceAccount { .. } => {
                "mount a projected token, audience `subsea-broker`, as Subsea's manifests do; Kubernetes 1.32 or later names the node in it"
            }
            Self::OtherNode { path, .. } => {
                return Some(format!(
                    "it is left of an earlier installation on this node: when nothing of that runs any more, remove it with `rm -r {}`",
                    path.display()
                ));
            }
            Self::Conflicts(_) => {
                "join again with free blocks: the same join file and state directory work"
            }
            Self::OtherBlocks { .. } => {
                "to change the blocks, create a new token with `subsea-broker token create` and join again"
            }
            Self::NotJoined { .. } => "check `--state-dir`; join with `subsea join`",
            Self::NotStopped { .. } => "end the process yourself, and leave again",
            Self::NotLeft { source } => {
                match source {
                    ClientError::Unreachable { .. }
                    | ClientError::WrongCa { .. }
                    | ClientError::Tls { .. }
                    | ClientError::Protocol(_) => {
                        "leave with `--local` to clean this host up without the broker; an operator then removes the \
                     cluster with `subsea-broker cluster forget`"
                    }
                    ClientError::Problem(_) | ClientError::Bundle(_) | ClientError::Identity(_) => {
                        return source.hint().or_else(|| {
                        Some("`--force` leaves all the same, `--local` leaves without the broker".to_owned())
                    });
                    }
                }
            }
            Self::Routes(_) => "leave the comparison out with `--skip-host-routes`",
            Self::Client(error) => return error.hint(),
            Self::State(error) => return error.hint(),
            Self::JoinFile { .. } | Self::Control(_) => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Flags { .. } | Self::NoNodeName)
    }

    /// Whether the join file is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whose a directory is, as the message says it.
    pub(super) fn owner(
        fleet: &FleetName,
        cluster: &ClusterId,
        node: &NodeName,
        role: Role,
    ) -> String {
        format!("{role} `{node}` of cluster `{cluster}` in fleet `{fleet}`")
    }
}
