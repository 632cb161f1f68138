//! `subsea sweep`: takes from a node what its daemons left, for `subsea leave --context`. Shell.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use subsea_api::{ClusterId, FleetName};

use super::failure::{CONFLICTS, Failure, say};
use super::signals::signals;
use crate::enrol::{self, EnrolError, LeaveOptions};
use crate::state::{Membership, SOCKET, StateDir, StateError};

/// Takes devices, routes, rules and keys of daemons that ended from this node, then waits for SIGTERM
///
/// What is of another cluster, or of any when none is named, is left alone, and it ends with 2.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A state directory; may repeat
    #[arg(long = "state-dir", value_name = "DIR", required = true)]
    state_dirs: Vec<PathBuf>,

    /// A directory of a gateway's socket; may repeat
    #[arg(long = "socket-dir", value_name = "DIR")]
    socket_dirs: Vec<PathBuf>,

    /// Take what is of this fleet
    #[arg(long, value_name = "NAME", requires = "cluster")]
    fleet: Option<FleetName>,

    /// Take what is of this cluster
    #[arg(long, value_name = "ID", requires = "fleet")]
    cluster: Option<ClusterId>,

    /// Listens there as soon as everything is gone: who can connect knows so
    #[arg(long, value_name = "ADDR:PORT")]
    ready_listen: SocketAddr,
}

impl Args {
    fn is_of(&self, membership: &Membership) -> bool {
        let of = (Some(&membership.fleet), Some(&membership.cluster));
        (self.fleet.as_ref(), self.cluster.as_ref()) == of
    }
}

/// Sweeps, says so, and stays until a signal.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = LeaveOptions {
        local: true,
        force: true,
    };
    let mut failed = Vec::new();
    let mut foreign = Vec::new();
    for dir in &args.state_dirs {
        match owner(dir) {
            Owner::Running => {
                failed.push(format!("a daemon still uses {}", dir.display()));
                continue;
            }
            Owner::Of(membership) if !args.is_of(&membership) => {
                let (dir, cluster, fleet) = (dir.display(), &membership.cluster, &membership.fleet);
                foreign.push(format!("{dir} is of cluster {cluster} of fleet {fleet}"));
                continue;
            }
            Owner::Of(_) | Owner::Nobody => {}
        }
        let mut progress = |text: &str| say(&format!("{text}\n"));
        let left = match enrol::leave(dir, options, &mut progress).await {
            Ok(left) => left,
            // Nothing ever ran here, or an earlier sweep was here.
            Err(EnrolError::NotJoined { .. } | EnrolError::State(StateError::Missing { .. })) => {
                // The mount of a pod may have made it; one that is not empty is somebody else's.
                drop(std::fs::remove_dir(dir));
                continue;
            }
            Err(error) => {
                failed.push(format!("{}: {error}", dir.display()));
                continue;
            }
        };
        for line in &left.done {
            say(&format!("{line}\n"));
        }
        failed.extend(left.failed);
    }
    failed.extend(
        args.socket_dirs
            .iter()
            .filter_map(|dir| remove_socket(dir).err()),
    );
    if !failed.is_empty() {
        let failed = failed.join("\n  ");
        return Err(Failure::failed(format!(
            "not everything was removed:\n  {failed}"
        )));
    }
    if !foreign.is_empty() {
        let foreign = foreign.join("\n  ");
        let own = match (&args.cluster, &args.fleet) {
            (Some(cluster), Some(fleet)) => format!("not of cluster {cluster} of fleet {fleet}"),
            (_, _) => "and nothing in the cluster says that it is its own".to_owned(),
        };
        return Err(
            Failure::failed(format!("left as it is: {foreign}, {own}")).with_code(CONFLICTS)
        );
    }
    let address = args.ready_listen;
    let mut listener = tokio::net::TcpListener::bind(address).await;
    // All addresses of a host without IPv6 are those of IPv4.
    if address.ip() == Ipv6Addr::UNSPECIFIED && listener.is_err() {
        listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    let listener =
        listener.map_err(|e| Failure::failed(format!("cannot listen on {address}: {e}")))?;
    let shutdown = signals()?;
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(ExitCode::SUCCESS),
            accepted = listener.accept() => drop(accepted),
        }
    }
}

/// Removes a socket that nobody listens on any more, and its directory when there is nothing else in it.
fn remove_socket(dir: &Path) -> Result<(), String> {
    let socket = dir.join(SOCKET);
    if UnixStream::connect(&socket).is_ok() {
        return Err(format!("a daemon still listens on {}", socket.display()));
    }
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(format!("could not remove {}: {error}", socket.display()));
        }
        Ok(()) | Err(_) => {}
    }
    // One that is not empty is somebody else's.
    drop(std::fs::remove_dir(dir));
    Ok(())
}

/// Whose a state directory is.
enum Owner {
    /// A daemon's that runs.
    Running,
    /// A node's of this membership.
    Of(Box<Membership>),
    /// Nobody's that can be told.
    Nobody,
}

fn owner(dir: &Path) -> Owner {
    let Ok(state) = StateDir::open(dir) else {
        return Owner::Nobody;
    };
    let Ok(Some(membership)) = state.membership() else {
        return Owner::Nobody;
    };
    match state.lock() {
        Err(StateError::Locked { .. }) => Owner::Running,
        Ok(_) | Err(_) => Owner::Of(Box::new(membership)),
    }
}
