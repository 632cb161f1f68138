//! What the daemons have in common on the command line: their port for health and metrics, and their place in a cluster. Shell.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::failure::Failure;
use crate::control::around::Around;
use crate::kube::configuration::Environment;
use crate::kube::daemon::{self, DaemonError, Places, Room};
use crate::monitor::Subject;
use crate::monitor::server::Server;
use crate::monitor::verdict::{Report, Stage};

/// How long the process waits at its end for what still has something to say.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A daemon among others of its node.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DaemonArgs {
    /// Serve /healthz, /readyz and /metrics over HTTP there; without it not at all, with --kubernetes at the node's address
    /// (`NODE_IP`), port 4853 of a gateway and 4854 of an agent
    #[arg(long, value_name = "IP:PORT")]
    http_listen: Option<SocketAddr>,

    /// Run as a pod: enrol by service account, take settings from a `ConfigMap` and addresses from the node's object. Needs
    /// `NODE_NAME`, and takes `NODE_IP` and `POD_NAMESPACE` from the environment
    #[arg(long, help_heading = "Kubernetes")]
    pub(super) kubernetes: bool,

    /// Where the Secret `subsea-enrolment` is mounted
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/subsea/enrolment",
        requires = "kubernetes",
        help_heading = "Kubernetes"
    )]
    enrolment_dir: PathBuf,

    /// Where the `ConfigMap` `subsea-config` is mounted; flags win over it
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/subsea/config",
        requires = "kubernetes",
        help_heading = "Kubernetes"
    )]
    config_dir: PathBuf,

    /// The service account token for the broker, of audience `subsea-broker`
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/subsea/token",
        requires = "kubernetes",
        help_heading = "Kubernetes"
    )]
    token_file: PathBuf,
}

impl DaemonArgs {
    /// Serves health and metrics, if it is asked for, in Kubernetes on this port; `stage` says how far the daemon is.
    pub(super) async fn serve<S: Report>(
        &self,
        port: u16,
        around: &Around<S>,
        stage: &watch::Sender<Stage>,
    ) -> Result<Option<Server>, Failure> {
        let subject = || Subject::new(around.door.clone(), stage.subscribe());
        // Where the kubelet asks, and not at addresses that lead outside.
        let node = std::env::var("NODE_IP").ok();
        let node = node.and_then(|ip| ip.parse::<IpAddr>().ok());
        let node = node.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let listen = match self.http_listen {
            Some(listen) => listen,
            None if self.kubernetes => (node, port).into(),
            None => return Ok(None),
        };
        let mut server = Server::start(listen, subject()).await;
        if self.http_listen.is_none() {
            // A node without that address, and a host without IPv6: better everywhere than not at all.
            for ip in [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()] {
                if server
                    .as_ref()
                    .is_err_and(|e| e.kind() != ErrorKind::AddrInUse)
                {
                    let listen = SocketAddr::new(ip, port);
                    server = Server::start(listen, subject()).await;
                }
            }
        }
        server.map(Some).map_err(|error| {
            Failure::failed(format!(
                "cannot listen on {listen} for health and metrics: {error}"
            ))
            .hint("give another address or port by `--http-listen`")
        })
    }

    /// Runs the daemon as a pod until `stop` turns true.
    pub(super) async fn run<R: Room>(
        &self,
        room: R,
        state_dir: &Path,
        around: Around<R::Status>,
        stage: watch::Sender<Stage>,
        stop: watch::Receiver<bool>,
    ) -> Result<(), Failure>
    where
        Failure: From<R::Error>,
    {
        let environment =
            Environment::read().map_err(|error| Failure::failed(error.to_string()))?;
        let places = Places {
            state_dir: state_dir.to_owned(),
            enrolment_dir: self.enrolment_dir.clone(),
            config_dir: self.config_dir.clone(),
            token_file: self.token_file.clone(),
        };
        let ended = daemon::run(room, places, environment, around, stage, stop).await;
        ended.map_err(|error| match error {
            DaemonError::Room(error) => error.into(),
            DaemonError::State(error) => error.into(),
            DaemonError::Options(why) => Failure::failed(why),
        })
    }
}

/// Turns true with SIGTERM or SIGINT.
pub(super) fn stop() -> Result<watch::Receiver<bool>, Failure> {
    let signals = super::signals::signals()?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        signals.await;
        sender.send_replace(true);
    });
    Ok(receiver)
}

/// Waits a little for a task that was asked to end.
pub(super) async fn last_words(task: crate::task::Task) {
    if tokio::time::timeout(LAST_WORDS, task.join()).await.is_err() {
        tracing::debug!("not everything was said at the end");
    }
}
