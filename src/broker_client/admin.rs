//! What an operator asks a broker for, with the admin certificate. Shell.

use hyper::Method;
use subsea_api::admin::{AdminFile, BrokerStatus, TokenCreate};
use subsea_api::join_file::JoinFile;
use subsea_api::snapshot::BrokerInfo;

use super::BrokerClient;
use super::error::ClientError;

impl BrokerClient {
    /// A client of the broker that wrote the admin file; `urls` are tried before the one in it.
    ///
    /// # Errors
    /// [`ClientError::Bundle`] or [`ClientError::Identity`] when what is in the file cannot be used.
    pub fn operator(file: &AdminFile, urls: &[String]) -> Result<Self, ClientError> {
        let mut all = urls.to_vec();
        if !all.contains(&file.url) {
            all.push(file.url.clone());
        }
        let broker = BrokerInfo {
            urls: all,
            ca_pem: file.ca_pem.clone(),
        };
        Self::with_identity(&broker, &file.certificate_pem, &file.key_pem, None)
    }

    /// The broker at a glance.
    pub async fn status(&self) -> Result<BrokerStatus, ClientError> {
        self.json(Method::GET, "/v1/admin/status", None::<&()>)
            .await
    }

    /// Makes a one-time token.
    pub async fn create_token(&self, request: &TokenCreate) -> Result<JoinFile, ClientError> {
        self.json(Method::POST, "/v1/admin/tokens", Some(request))
            .await
    }
}
