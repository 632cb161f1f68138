//! The join file: what an operator carries from the broker to a cluster. PURE.

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, FleetName, Role};
use crate::secret::Token;
use crate::snapshot::BrokerInfo;
use crate::time::UnixMillis;

/// Broker URLs, CA and a one-time token; YAML, mode 0600. It is a secret until it is used.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinFile {
    /// The format: 1.
    pub version: u32,
    /// The fleet to join.
    pub fleet: FleetName,
    /// The cluster that the token admits or enrols into.
    pub cluster: ClusterId,
    /// What the token entitles to.
    pub role: Role,
    /// When the token expires.
    pub expires: UnixMillis,
    /// Where the broker is and how it is known.
    pub broker: BrokerInfo,
    /// The one-time token.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub token: Token,
}

/// The text is no join file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinFileError {
    /// Not YAML of the expected shape.
    #[error(
        "it is not a complete join file ({0}): was it cut or edited? Create a new one with `subsea-broker token create`"
    )]
    Syntax(String),
    /// A later format.
    #[error("its format is version {0}, this program reads version 1: use a newer `subsea`")]
    Version(u32),
}

impl JoinFile {
    /// Reads the YAML form, of at most 64 KiB.
    ///
    /// # Errors
    /// [`JoinFileError`] for anything that is not a whole join file; the message never repeats the text.
    pub fn parse(text: &str) -> Result<Self, JoinFileError> {
        if text.len() > 64 * 1024 {
            return Err(JoinFileError::Syntax("larger than 64 KiB".into()));
        }
        let file: Self = serde_saphyr::from_str(text)
            .map_err(|e| JoinFileError::Syntax(first_line(&e.to_string())))?;
        if file.version != 1 {
            return Err(JoinFileError::Version(file.version));
        }
        if file.broker.urls.is_empty() || !file.broker.ca_pem.contains("-----END CERTIFICATE-----")
        {
            return Err(JoinFileError::Syntax(
                "no broker URL or CA certificate in it".into(),
            ));
        }
        Ok(file)
    }

    /// The YAML form, with the token in it.
    ///
    /// # Errors
    /// When the values cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, JoinFileError> {
        serde_saphyr::to_string(self).map_err(|e| JoinFileError::Syntax(e.to_string()))
    }
}

/// Parsers show a piece of the source below their first line; a join file's source is secret.
fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(160)
        .collect()
}
