//! Keys that sign the tokens of service accounts.

use std::path::{Path, PathBuf};

use crate::command::run;

/// The kinds that clusters have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Tokens are RS256, as from nearly all installers.
    Rsa,
    /// Tokens are ES256.
    Ecdsa,
}

/// A key pair in files.
pub(super) struct SigningKey {
    pub(super) private: PathBuf,
    pub(super) public: PathBuf,
}

impl SigningKey {
    pub(super) fn make(kind: Kind, dir: &Path, name: &str) -> Self {
        let key = Self {
            private: dir.join(format!("{name}.key")),
            public: dir.join(format!("{name}.pub")),
        };
        match kind {
            Kind::Rsa => {
                openssl(&["genrsa", "-out", text(&key.private), "2048"]);
                let (private, public) = (text(&key.private), text(&key.public));
                openssl(&["rsa", "-in", private, "-pubout", "-out", public]);
            }
            Kind::Ecdsa => {
                let pair = rcgen::KeyPair::generate().expect("a key of P-256");
                write(&key.private, &pair.serialize_pem());
                write(&key.public, &pair.public_key_pem());
            }
        }
        key
    }
}

/// ring makes no RSA keys.
fn openssl(arguments: &[&str]) {
    run(std::process::Command::new("openssl").args(arguments)).ok();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ASCII")
}

fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
