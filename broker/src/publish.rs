//! Puts the admin file into a Secret of the management cluster, where `subsea token create --context` reads it. Shell.
//!
//! The Secret exists, empty: the broker may `get` and `patch` that one and nothing else. It serves meanwhile, whatever
//! becomes of this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use subsea_api::Namespace;
use subsea_api::admin::AdminFile;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::data_dir::ADMIN_FILE;
use crate::store::Store;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often the Secret is compared with it, should somebody have changed it.
const COMPARE: Duration = Duration::from_mins(5);
/// The shortest and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How long the API server may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Who wrote it, as the API server notes it.
const MANAGER: &str = "subsea-broker";

/// Names a Secret: `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    namespace: Namespace,
    name: String,
}

impl FromStr for SecretName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "write NAMESPACE/NAME, such as subsea-broker/subsea-broker-admin";
        let (namespace, name) = text.split_once('/').ok_or(shape)?;
        // Its rules are those of a node's name.
        name.parse::<subsea_api::NodeName>().map_err(|_| shape)?;
        Ok(Self {
            namespace: namespace.parse().map_err(|e| format!("{e}"))?,
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why the Secret does not hold the admin file.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("could not read the admin file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the admin file {0} is damaged")]
    Damaged(PathBuf),
    #[error("no API server is configured: {0}")]
    NoApi(String),
    #[error("the Secret {0} does not exist")]
    NoSecret(SecretName),
    #[error("the API server does not let the broker {doing} the Secret {secret}: {message}")]
    Forbidden {
        doing: &'static str,
        secret: SecretName,
        message: String,
    },
    #[error("could not {doing} the Secret {secret}: {why}")]
    Api {
        doing: &'static str,
        secret: SecretName,
        why: String,
    },
}

impl PublishError {
    fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Damaged(_) => {
                "write it anew with `subsea-broker admin reissue --data-dir DIR`"
            }
            Self::NoApi(_) => {
                "run the broker in a pod with its service account's token, or set KUBECONFIG; or leave `--publish-admin` out"
            }
            Self::NoSecret(_) => {
                "make it, empty: the broker may not create Secrets; `subsea deploy-broker` and the manifests do"
            }
            Self::Forbidden { .. } => {
                "give its service account a Role with `get` and `patch` of that Secret, as the manifests do"
            }
            Self::Api { .. } => "is the API server there, and can the broker's pod reach it?",
        }
    }
}

/// Keeps the Secret as the admin file is, for ever.
pub(crate) async fn run(secret: SecretName, data_dir: PathBuf, store: Arc<Store>) {
    // kube takes the process's provider of cryptography, which there is once.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a provider of cryptography was installed before");
    }
    let path = data_dir.join(ADMIN_FILE);
    let mut client = None;
    let mut held: Option<(Zeroizing<String>, Instant)> = None;
    let mut failures = 0;
    loop {
        let pause = match keep(&secret, &path, &store, &mut client, &mut held).await {
            Ok(()) => {
                failures = 0;
                LOOK
            }
            Err(error) => {
                let pause = pause_after(failures);
                failures = failures.saturating_add(1);
                // What it was told of the API server may be out of date.
                client = None;
                held = None;
                tracing::warn!(secret = %secret, %error, hint = error.hint(), retry_in = ?pause,
                    "the admin file is not in its Secret yet");
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How long to wait after a failure that `earlier` came before in a row.
fn pause_after(earlier: u32) -> Duration {
    RETRY
        .0
        .saturating_mul(1_u32.checked_shl(earlier).unwrap_or(u32::MAX))
        .min(RETRY.1)
}

/// Looks at the file, and at the Secret when the file is new or the last look is long ago.
async fn keep(
    secret: &SecretName,
    path: &Path,
    store: &Store,
    client: &mut Option<kube::Client>,
    held: &mut Option<(Zeroizing<String>, Instant)>,
) -> Result<(), PublishError> {
    let text = wanted(path, store).await?;
    if let Some((before, at)) = held
        && *before == text
        && at.elapsed() < COMPARE
    {
        return Ok(());
    }
    let client = if let Some(client) = client {
        client.clone()
    } else {
        let made = kube::Client::try_default()
            .await
            .map_err(|e| PublishError::NoApi(chain(&e)))?;
        client.insert(made).clone()
    };
    let secrets: Api<Secret> = Api::namespaced(client, secret.namespace.as_str());
    let found = within(secret, "get", secrets.get_opt(&secret.name)).await?;
    let found = found.ok_or_else(|| PublishError::NoSecret(secret.clone()))?;
    let there = found.data.as_ref().and_then(|data| data.get(ADMIN_FILE));
    if there.is_none_or(|bytes| bytes.0 != text.as_bytes()) {
        let data = BTreeMap::from([(ADMIN_FILE, ByteString(text.as_bytes().to_vec()))]);
        let patch = Patch::Merge(serde_json::json!({ "data": data }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        within(
            secret,
            "patch",
            secrets.patch(&secret.name, &params, &patch),
        )
        .await?;
        tracing::info!(secret = %secret, "the admin file is in its Secret");
    }
    *held = Some((text, Instant::now()));
    Ok(())
}

/// The admin file, with the address that others reach the broker by.
async fn wanted(path: &Path, store: &Store) -> Result<Zeroizing<String>, PublishError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map(Zeroizing::new)
        .map_err(|source| PublishError::Read {
            path: path.to_owned(),
            source,
        })?;
    let damaged = || PublishError::Damaged(path.to_owned());
    let mut file: AdminFile = serde_saphyr::from_str(&text).map_err(|_| damaged())?;
    if let Some(url) = store.read().state.broker.urls.first() {
        file.url.clone_from(url);
    }
    serde_saphyr::to_string(&file)
        .map(Zeroizing::new)
        .map_err(|_| damaged())
}

async fn within<T>(
    secret: &SecretName,
    doing: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, PublishError> {
    let secret = secret.clone();
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(PublishError::Forbidden {
            doing,
            secret,
            message: status.message.clone(),
        }),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            Err(PublishError::NoSecret(secret))
        }
        Ok(Err(error)) => Err(PublishError::Api {
            doing,
            secret,
            why: chain(&error),
        }),
        Err(_) => Err(PublishError::Api {
            doing,
            secret,
            why: format!("no answer within {} s", TIMEOUT.as_secs()),
        }),
    }
}

/// An error with its causes, in one line, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_named_by_namespace_and_name() {
        let name: SecretName = "subsea-broker/subsea-broker-admin".parse().unwrap();
        assert_eq!(name.to_string(), "subsea-broker/subsea-broker-admin");
        for bad in ["", "a", "/a", "a/", "a/b/c", "A/b", "a/B", "a/b c"] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let seconds = |n| pause_after(n).as_secs();
        assert_eq!([0, 1, 2, 5, 6, 40].map(seconds), [1, 2, 4, 32, 60, 60]);
    }
}
