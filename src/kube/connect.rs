//! The API server that an operator means. Shell.

use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use super::error::KubeError;

/// How long an API server may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// A client for a context of the kubeconfig; without one for the current context, or in a pod for its own cluster.
///
/// # Errors
/// [`KubeError::Config`] when there is no such context, or what it says cannot be used. Nothing is asked yet.
pub async fn connect(context: Option<&str>) -> Result<Client, KubeError> {
    let config = match context {
        Some(context) => {
            let options = KubeConfigOptions {
                context: Some(context.to_owned()),
                ..KubeConfigOptions::default()
            };
            Config::from_kubeconfig(&options)
                .await
                .map_err(|e| KubeError::Config(e.into()))?
        }
        None => Config::infer()
            .await
            .map_err(|e| KubeError::Config(e.into()))?,
    };
    client(config)
}

/// A client for the cluster that this pod runs in, by its service account.
///
/// # Errors
/// [`KubeError::Pod`] when this is no pod, or one without a token. Nothing is asked yet.
pub fn connect_in_cluster() -> Result<Client, KubeError> {
    client(Config::incluster().map_err(|e| KubeError::Pod(e.into()))?)
}

fn client(mut config: Config) -> Result<Client, KubeError> {
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|e| KubeError::Config(e.into()))
}
