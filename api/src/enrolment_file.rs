//! The enrolment file: what a cluster's nodes must know to enrol, but for their secrets. PURE.
//!
//! It is `broker.yaml` in the Secret `subsea-enrolment` of the cluster, beside the credential.

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, FleetName};
use crate::snapshot::BrokerInfo;

/// Fleet, cluster, broker URLs and CA; YAML. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentFile {
    /// The format: 1.
    pub version: u32,
    /// The fleet.
    pub fleet: FleetName,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where the broker is and how it is known.
    pub broker: BrokerInfo,
}

/// The text is no enrolment file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentFileError {
    /// Not YAML of the expected shape.
    #[error(
        "it is not a complete enrolment file ({0}): was it cut or edited? `subsea join --context` writes it anew"
    )]
    Syntax(String),
    /// A later format.
    #[error("its format is version {0}, this program reads version 1: use a newer `subsea`")]
    Version(u32),
}

impl EnrolmentFile {
    /// An enrolment file of the present format.
    pub fn new(fleet: FleetName, cluster: ClusterId, broker: BrokerInfo) -> Self {
        Self {
            version: 1,
            fleet,
            cluster,
            broker,
        }
    }

    /// Reads the YAML form, of at most 64 KiB.
    ///
    /// # Errors
    /// [`EnrolmentFileError`] for anything that is not a whole enrolment file.
    pub fn parse(text: &str) -> Result<Self, EnrolmentFileError> {
        let syntax = |why: &str| Err(EnrolmentFileError::Syntax(why.to_owned()));
        if text.len() > 64 * 1024 {
            return syntax("larger than 64 KiB");
        }
        // A later format may have fields that this one refuses: the version decides before they are read.
        if let Ok(Version { version }) = serde_saphyr::from_str(text)
            && version != 1
        {
            return Err(EnrolmentFileError::Version(version));
        }
        let file: Self = match serde_saphyr::from_str(text) {
            Ok(file) => file,
            Err(error) => {
                // Below the first line parsers show a piece of the source.
                let error = error.to_string();
                let line: String = error
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(160)
                    .collect();
                return Err(EnrolmentFileError::Syntax(line));
            }
        };
        let pem = ["-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"];
        if file.broker.urls.is_empty() || !pem.iter().all(|m| file.broker.ca_pem.contains(m)) {
            return syntax("no broker URL or CA certificate in it");
        }
        Ok(file)
    }

    /// The YAML form.
    ///
    /// # Errors
    /// When the values cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, EnrolmentFileError> {
        serde_saphyr::to_string(self).map_err(|e| EnrolmentFileError::Syntax(e.to_string()))
    }
}

/// The one field that every version of the format has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> EnrolmentFile {
        let broker = BrokerInfo {
            urls: vec!["https://10.0.0.1:8443".into()],
            ca_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
        };
        EnrolmentFile::new("fleet".parse().unwrap(), "east".parse().unwrap(), broker)
    }

    #[test]
    fn an_enrolment_file_survives_its_text_form() {
        let text = file().to_yaml().unwrap();
        assert_eq!(EnrolmentFile::parse(&text), Ok(file()));
    }

    #[test]
    fn a_file_that_is_cut_or_has_more_in_it_is_refused() {
        let text = file().to_yaml().unwrap();
        for end in 0..text.trim_end().len() {
            let error = EnrolmentFile::parse(&text[..end]).unwrap_err().to_string();
            assert!(error.contains("complete enrolment file"), "{end}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for more in ["colour: blue\n", "version: 1\n", "token: x\n"] {
            assert!(
                EnrolmentFile::parse(&format!("{text}{more}")).is_err(),
                "{more}"
            );
        }
        assert!(EnrolmentFile::parse(&"a".repeat(65 * 1024)).is_err());
        let nobody = text
            .replace("https://10.0.0.1:8443", "")
            .replace("- \n", "");
        assert_ne!(nobody, text);
        assert!(EnrolmentFile::parse(&nobody).is_err());
    }

    #[test]
    fn a_later_version_is_named_whatever_else_is_in_it() {
        let later = file()
            .to_yaml()
            .unwrap()
            .replace("version: 1", "version: 3")
            + "colour: blue\n";
        assert_eq!(
            EnrolmentFile::parse(&later),
            Err(EnrolmentFileError::Version(3))
        );
    }
}
