//! `subsea join`. Shell.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use subsea_api::{ClusterId, NodeName, Role};

use super::args::{self, CidrArgs};
use super::failure::{Failure, say};
use super::join_cluster::{self, ClusterArgs};
use super::{conflicts, out, preflight};
use crate::enrol::{self, EnrolError, JoinOptions, Joined};

/// Joins a cluster to a fleet, or enrols a further node of a member
///
/// With `--context`, a whole cluster of Kubernetes joins: its blocks are looked up, the daemons are installed, and the command
/// ends when all tunnels are up. A second time is an upgrade. With `--enrol-only`, somebody else installs the daemons: the broker
/// is asked to admit the cluster, and its nodes can enrol. Without it, this host is a node.
///
/// With a join file of role `member`, the cluster's blocks are given too. With one of role `gateway`, `agent` or
/// `dns`, they are the cluster's already. The broker checks and registers at once: a refused join leaves nothing
/// behind, and a join that was interrupted can be repeated.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The join file, as `subsea-broker token create` writes it
    #[arg(value_name = "JOINFILE")]
    file: PathBuf,

    /// The cluster; must be the join file's
    #[arg(long, value_name = "ID")]
    cluster: Option<ClusterId>,

    #[command(flatten)]
    cidrs: CidrArgs,

    /// The state directory of this node; one for each daemon
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present_any = ["context", "in_cluster"],
        conflicts_with_all = ["context", "in_cluster", "dry_run"]
    )]
    state_dir: Option<PathBuf>,

    /// The name of this node, unique in its cluster; by default the host's name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["context", "in_cluster"])]
    node: Option<NodeName>,

    /// Do not compare this host's routes with the blocks of other members
    #[arg(long, conflicts_with_all = ["context", "in_cluster"])]
    skip_host_routes: bool,

    #[command(flatten)]
    whole: ClusterArgs,
}

/// Joins and prints what was registered.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let Some(state_dir) = args.state_dir else {
        let cidrs = args.cidrs.into();
        return join_cluster::run(&args.file, args.cluster, cidrs, args.whole).await;
    };
    let file = enrol::read_join_file(&args.file)?;
    let options = JoinOptions {
        cluster: args.cluster,
        node: args.node,
        default_node: args::node_name(&rustix::system::uname().nodename().to_string_lossy()),
        cidrs: args.cidrs.into(),
        skip_host_routes: args.skip_host_routes,
    };
    match enrol::join(&file, &state_dir, options).await {
        Ok(joined) => {
            say(&conflicts::warnings(&joined.warnings));
            out::print(&registered(&joined, &state_dir))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(EnrolError::Conflicts(pairs)) => {
            out::print(&conflicts::table(&pairs, out::colour()))?;
            Err(EnrolError::Conflicts(pairs).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn registered(joined: &Joined, state_dir: &Path) -> String {
    let who = &joined.membership;
    let again = if joined.already {
        "already a member: "
    } else {
        ""
    };
    let blocks = preflight::allocations(&who.allocations, out::colour());
    let dir = state_dir.display();
    let (state, next) = match who.role {
        Role::Member | Role::Gateway | Role::Admin => (
            "registered, not connected",
            format!("start `subsea gateway --state-dir {dir}`"),
        ),
        Role::Agent => (
            "registered",
            format!("start `subsea agent --state-dir {dir}`"),
        ),
        Role::Dns => (
            "registered",
            "the DNS daemon is not part of this version".to_owned(),
        ),
    };
    format!(
        "{again}{} `{}` of cluster `{}` in fleet `{}`\n\n{blocks}\n{state}: {next}\n",
        who.role, who.node, who.cluster, who.fleet
    )
}
