//! Why a cluster did not become a member, and what to do about it. PURE.

use subsea_api::service_account::Account;
use subsea_api::{Code, Role};

use super::SECRET;
use crate::broker_client::ClientError;
use crate::enrol::EnrolError;
use crate::kube::cni::Finding;
use crate::kube::discover::{self, DiscoverError};
use crate::kube::error::KubeError;
use crate::kube::labels;
use crate::kube::manifests::ManifestError;

/// Why a cluster did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The cluster did not do what it was asked.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The cluster could not be read.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The objects cannot be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The broker refused, or could not be reached.
    #[error("the broker did not admit the cluster")]
    Broker(#[source] ClientError),
    /// The join file is for a node.
    #[error(
        "the join file is for a node of role {0}; a whole cluster joins with one of role member"
    )]
    Role(Role),
    /// A block is to be chosen by the broker, and the cluster has its blocks.
    #[error(
        "the blocks of a cluster that runs cannot be chosen by the broker: give the ones that it has"
    )]
    Auto,
    /// The cluster does not tell its blocks.
    #[error("the cluster does not tell all of its blocks")]
    Missing(Vec<discover::Missing>),
    /// A setting of the cluster stands in the way.
    #[error("settings of the cluster stand in the way")]
    Blocked(Vec<Finding>),
    /// There is no node that could be a gateway.
    #[error(
        "no node is labelled {}=true, and none is ready to be",
        labels::GATEWAY
    )]
    NoNode,
    /// The Secret holds the enrolment of something else.
    #[error("the Secret {namespace}/{SECRET} enrols cluster {cluster} of fleet {fleet}")]
    OtherCluster {
        /// Where.
        namespace: String,
        /// Whose.
        cluster: String,
        /// Of which fleet.
        fleet: String,
    },
    /// The join file was used, and not here.
    #[error(
        "the join file was used already, and the namespace {namespace} has no credential of cluster {cluster} that it could have been used with; nothing was touched"
    )]
    UsedElsewhere {
        /// Where it was looked for.
        namespace: String,
        /// Whose file it is.
        cluster: String,
    },
    /// The join file was used, and the broker does not know the cluster by the credential that is here.
    #[error(
        "the join file was used already, and the broker knows no cluster {cluster} by the credential in the Secret {namespace}/{SECRET}"
    )]
    NoMember {
        /// Where the credential is.
        namespace: String,
        /// Who is no member.
        cluster: String,
    },
    /// The API server does not tell how its tokens are signed.
    #[error(
        "the API server does not tell how the tokens of its service accounts are signed: {why}"
    )]
    Issuer {
        /// Why.
        why: String,
    },
    /// An earlier join with this file asked for other blocks.
    #[error("an earlier join with this file was admitted with other blocks: {0}")]
    OtherBlocks(String),
    /// There is no namespace for the Secret.
    #[error("the namespace {0} is not there")]
    NoNamespace(String),
    /// There is no account whose token the broker could be shown.
    #[error("the ServiceAccount {0}/{account} is not there", account = Account::Operator.as_str())]
    NoAccount(String),
    /// The token of this pod cannot be read.
    #[error(transparent)]
    Token(#[from] EnrolError),
    /// Another part of Subsea lives there.
    #[error("the broker lives in the namespace {0}, which the daemons cannot share")]
    BrokerHere(String),
    /// The cluster has daemons.
    #[error(
        "the daemons of this cluster live in the namespace {home}, and not in {named}: nothing was touched"
    )]
    Elsewhere {
        /// Where they are.
        home: String,
        /// Where they were to be.
        named: String,
    },
    /// No random numbers.
    #[error("this host gives no random numbers: {why}")]
    Random {
        /// Why.
        why: String,
    },
}

impl InstallError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kube(error) => error.hint(),
            Self::Broker(error) => error.hint(),
            Self::Role(_) => Some("`subsea token create --cluster ID` makes one".into()),
            Self::Auto => Some("give blocks such as `--pod-cidr 10.32.0.0/16`, or none: they are looked up".into()),
            Self::Missing(missing) => {
                let flags: Vec<&str> = missing.iter().map(|m| m.flag).collect();
                Some(format!("give {}", flags.join(" and ")))
            }
            Self::Blocked(_) => Some("change them as said above, or go on with `--ignore-findings`".into()),
            Self::NoNode => Some(format!(
                "`kubectl label node NAME {}=true` says which nodes are gateways",
                labels::GATEWAY
            )),
            Self::OtherCluster { .. } => {
                Some("take it out first with `subsea leave --context`, or join with its own id".into())
            }
            Self::UsedElsewhere { cluster, .. } => Some(format!(
                "is it the right context and namespace? Another cluster may be {cluster}; this one joins with a new file, of an id of its own: `subsea token create --cluster ID`"
            )),
            Self::NoMember { cluster, .. } => Some(format!(
                "was it taken out at the broker? With a new file it is admitted again: `subsea token create --cluster {cluster}`"
            )),
            Self::Issuer { .. } => Some(
                "its flag `--service-account-issuer` must be set, and `kubectl get --raw /openid/v1/jwks` must answer".into(),
            ),
            Self::OtherBlocks(_) => Some("blocks change with a new join file: `subsea token create --cluster ID` makes one".into()),
            Self::NoNamespace(namespace) => Some(format!(
                "install the daemons first (`kubectl apply --server-side -k`, or the chart), or make it: `kubectl create namespace {namespace}`"
            )),
            Self::NoAccount(_) => Some(
                "install the daemons first: `kubectl apply --server-side -k`, or the chart; their objects have it".into(),
            ),
            Self::Token(error) => error.hint(),
            Self::BrokerHere(_) => Some(
                "choose another one with `--namespace`: a leave takes all of Subsea out of it".into(),
            ),
            Self::Elsewhere { home, .. } => Some(format!(
                "repeat with `--namespace {home}`; to move them, `subsea leave --namespace {home}` first"
            )),
            Self::Discover(_) | Self::Manifest(_) | Self::Random { .. } => None,
        }
    }

    /// Whether the join file is of no use any more, or was of none to this broker ever.
    pub fn is_spent(&self) -> bool {
        let spent = [Code::TokenExpired, Code::TokenRevoked, Code::TokenUnknown];
        self.is_used() || self.code().is_some_and(|code| spent.contains(&code))
    }

    /// Whether the broker says that the join file was used.
    pub(super) fn is_used(&self) -> bool {
        self.code() == Some(Code::TokenUsed)
    }

    /// Whether the same again would end alike, until somebody has done something about it.
    pub fn is_final(&self) -> bool {
        let refused = [Code::ClusterExists, Code::KeyTaken, Code::TokenMismatch];
        self.is_spent()
            || self.code().is_some_and(|code| refused.contains(&code))
            || matches!(
                self,
                Self::UsedElsewhere { .. } | Self::NoMember { .. } | Self::OtherCluster { .. }
            )
    }

    fn code(&self) -> Option<Code> {
        if let Self::Broker(error) = self {
            error.code()
        } else {
            None
        }
    }
}
