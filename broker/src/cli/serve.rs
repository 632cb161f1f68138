//! `subsea-broker serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use subsea_api::FleetName;
use subsea_api::admin::Pool;
use subsea_broker::{SecretName, ServeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::args;
use super::failure::Failure;

/// Run the broker
///
/// Logs go to standard error; `SUBSEA_LOG` sets what is logged (default `info`). SIGTERM and SIGINT end it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the store, the CA and the admin file live (made with mode 0700)
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,

    /// The address to listen on, such as 0.0.0.0:7443
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,

    /// A URL by which members reach the broker; may be given several times, best first [default: made of --listen]
    #[arg(long, value_name = "URL", value_parser = args::broker_url)]
    advertise: Vec<String>,

    /// The fleet's name, set at the first start and kept for ever [default: random]
    #[arg(long, value_name = "NAME")]
    fleet: Option<FleetName>,

    /// A pool that `auto` takes blocks from; may be given several times [default: pod=10.32.0.0/11,
    /// service=10.112.0.0/12, infra=198.19.0.0/16]
    #[arg(long, value_name = "KIND=CIDR", value_parser = args::pool)]
    pool: Vec<Pool>,

    /// How long the certificates of members live
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = args::duration)]
    certificate_lifetime: Duration,

    /// Keep the admin file in this Secret of the cluster that the broker runs in; it must exist
    #[arg(long, value_name = "NAMESPACE/NAME")]
    publish_admin: Option<SecretName>,

    /// How long a gateway's lease lasts without being renewed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = args::duration, hide = true)]
    lease: Duration,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    log()?;
    let shutdown = shutdown()?;
    let config = ServeConfig {
        data_dir: args.data_dir,
        listen: args.listen,
        advertise: args.advertise,
        fleet: args.fleet,
        pools: args.pool,
        certificate_lifetime: args.certificate_lifetime,
        lease: args.lease,
        publish_admin: args.publish_admin,
    };
    subsea_broker::serve(config, shutdown)
        .await
        .map_err(|e| Failure::of(&e))
}

/// Sends the log to standard error.
pub(super) fn log() -> Result<(), Failure> {
    let filter = match std::env::var("SUBSEA_LOG") {
        Ok(text) => EnvFilter::try_new(&text).map_err(|e| {
            Failure::usage(format!("SUBSEA_LOG is `{text}`, which is no log filter: {e}"))
                .hint("use a level, such as `debug`, or levels by target, such as `info,subsea_broker=debug`")
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    Ok(())
}

fn shutdown() -> Result<impl Future<Output = ()> + Send, Failure> {
    let caught =
        |kind| signal(kind).map_err(|e| Failure::failed(format!("cannot catch signals: {e}")));
    let mut terminate = caught(SignalKind::terminate())?;
    let mut interrupt = caught(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
        }
    })
}
