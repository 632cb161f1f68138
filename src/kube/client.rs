//! The way to the API server of our own cluster. Shell.

use std::time::Duration;

use kube::{Client, Config};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor the environment of a pod says where it is.
    #[error("neither KUBECONFIG nor a pod's environment says where the API server is")]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// What they say is unusable.
    #[error("what is said of the API server is unusable")]
    Unusable(#[source] Box<kube::Error>),
}

/// A client for the API server: as `KUBECONFIG` says, else as a pod is told. The token is read again as it is renewed.
///
/// # Errors
/// [`ClientError`].
pub async fn client() -> Result<Client, ClientError> {
    let config = Config::infer().await;
    let mut config = config.map_err(|error| ClientError::Nowhere(Box::new(error)))?;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| ClientError::Unusable(Box::new(error)))
}
