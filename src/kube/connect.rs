//! The API server that an operator means. Shell.

use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use super::error::KubeError;

/// How long an API server may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to answer: one that hangs counts as one that is away.
const ANSWER: Duration = Duration::from_secs(30);

/// A client for a context of the kubeconfig; without one for the current context, or in a pod for its own cluster.
///
/// # Errors
/// [`KubeError::Config`] when there is no such context, or what it says cannot be used. Nothing is asked yet.
pub async fn connect(context: Option<&str>) -> Result<Client, KubeError> {
    answering(config(context).await?)
}

/// The same in a pod, to watch by: nothing needs to come for minutes. What watches looks after that itself.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to_watch() -> Result<Client, KubeError> {
    client(config(None).await?)
}

async fn config(context: Option<&str>) -> Result<Config, KubeError> {
    match context {
        Some(context) => {
            let options = KubeConfigOptions {
                context: Some(context.to_owned()),
                ..KubeConfigOptions::default()
            };
            let config = Config::from_kubeconfig(&options).await;
            config.map_err(|e| KubeError::Config(e.into()))
        }
        None => Config::infer()
            .await
            .map_err(|e| KubeError::Config(e.into())),
    }
}

/// A client for the cluster that this pod runs in, by its service account.
///
/// # Errors
/// [`KubeError::Pod`] when this is no pod, or one without a token. Nothing is asked yet.
pub fn connect_in_cluster() -> Result<Client, KubeError> {
    let config = Config::incluster().map_err(|e| KubeError::Pod(e.into()))?;
    answering(config)
}

/// A client that takes an API server that hangs for one that is away.
///
/// # Errors
/// [`KubeError::Config`] when what the configuration says cannot be used.
pub fn answering(mut config: Config) -> Result<Client, KubeError> {
    config.read_timeout = Some(ANSWER);
    // Counted from the question, not from when the connection was used last.
    config.reset_reader_on_write = true;
    client(config)
}

fn client(mut config: Config) -> Result<Client, KubeError> {
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|e| KubeError::Config(e.into()))
}
