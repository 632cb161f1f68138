//! The files that say what to join and by what right. Shell.

use std::io::{self, Read as _};
use std::path::Path;

use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::{JoinFile, JoinFileError};
use subsea_api::{ServiceAccountToken, Token};
use zeroize::Zeroizing;

use super::error::EnrolError;

/// Fleet, cluster and broker, in the Secret `subsea-enrolment`.
pub const ENROLMENT_FILE: &str = "broker.yaml";
/// The cluster's enrolment credential, beside it.
pub const CREDENTIAL_FILE: &str = "credential";

/// The largest file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// Reads a join file.
///
/// # Errors
/// [`EnrolError::File`] when it cannot be read; [`EnrolError::JoinFile`] when it is no whole join file.
pub fn read_join_file(path: &Path) -> Result<JoinFile, EnrolError> {
    let nonsense = |source| EnrolError::JoinFile {
        path: path.to_owned(),
        source,
    };
    let text = read(path).map_err(|source| {
        if source.kind() == io::ErrorKind::InvalidData {
            nonsense(JoinFileError::Syntax("it is no text".to_owned()))
        } else {
            EnrolError::File {
                path: path.to_owned(),
                source,
            }
        }
    })?;
    JoinFile::parse(&text).map_err(nonsense)
}

/// Reads the directory where the Secret `subsea-enrolment` is mounted.
///
/// # Errors
/// [`EnrolError::Mount`] when a file cannot be read; [`EnrolError::Unusable`] when there is nonsense in it.
pub fn read_enrolment(dir: &Path) -> Result<(EnrolmentFile, Token), EnrolError> {
    let path = dir.join(ENROLMENT_FILE);
    let file = EnrolmentFile::parse(&mounted(&path)?).map_err(|e| unusable(&path, &e))?;
    let path = dir.join(CREDENTIAL_FILE);
    let credential: Result<Token, _> = mounted(&path)?.trim().parse();
    // The error of a token speaks of join files.
    let why = "it is no enrolment credential";
    Ok((file, credential.map_err(|_| unusable(&path, &why))?))
}

/// Reads a projected service account token. Kubernetes replaces it: read it anew before each use.
///
/// # Errors
/// As [`read_enrolment`].
pub fn read_service_account_token(path: &Path) -> Result<ServiceAccountToken, EnrolError> {
    mounted(path)?
        .trim()
        .parse()
        .map_err(|e: subsea_api::service_account::ServiceAccountTokenError| unusable(path, &e))
}

fn mounted(path: &Path) -> Result<Zeroizing<String>, EnrolError> {
    read(path).map_err(|source| EnrolError::Mount {
        path: path.to_owned(),
        source,
    })
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> EnrolError {
    EnrolError::Unusable {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

/// Reads a text, a byte more of it than is allowed, so that the parser sees that it is too long.
fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = std::fs::File::open(path)?;
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024 + 2));
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    Ok(text)
}
