//! How a call to the broker fails, and what to do about it. PURE.

use std::error::Error;
use std::io;
use std::time::Duration;

use subsea_api::{Code, Problem};

type BoxError = Box<dyn Error + Send + Sync>;

/// Why the broker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer: no route, nobody there, or cut off in the middle.
    #[error("the broker at {url} cannot be reached")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// What answers was not certified by the fleet's authority.
    #[error(
        "what answers at {url} is not this fleet's broker: its certificate is of another authority"
    )]
    WrongCa {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// TLS failed for another reason.
    #[error("no secure connection to the broker at {url}")]
    Tls {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The broker refused.
    #[error("{0}")]
    Problem(Problem),
    /// The answer makes no sense.
    #[error("{0}")]
    Protocol(String),
    /// The URLs or authorities in the join file or the state directory cannot be used.
    #[error("{0}")]
    Bundle(String),
    /// This node's certificate or key cannot be used.
    #[error("{0}")]
    Identity(String),
}

impl ClientError {
    /// The broker's code, when it was the broker that refused.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            Self::Unreachable { .. }
            | Self::WrongCa { .. }
            | Self::Tls { .. }
            | Self::Protocol(_)
            | Self::Bundle(_)
            | Self::Identity(_) => None,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Problem(problem) => return problem.hint.clone(),
            Self::Unreachable { .. } => {
                "check that `subsea-broker serve` runs, and that its port can be reached from this host"
            }
            Self::WrongCa { .. } => {
                "is the join file of another fleet, or was the broker started on a new data directory? \
                 Create a new join file with `subsea-broker token create`"
            }
            Self::Tls { source, .. } => tls_hint(source),
            Self::Protocol(_) => {
                "does something between this host and the broker answer in its place, or is the broker of another version?"
            }
            Self::Bundle(_) => "create a new join file with `subsea-broker token create`",
            Self::Identity(_) => {
                "leave with `subsea leave --local`, and join again with a new token"
            }
        };
        Some(text.to_owned())
    }
}

fn tls_hint(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    if let rustls::Error::InvalidCertificate(
        Bad::Expired
        | Bad::ExpiredContext { .. }
        | Bad::NotValidYet
        | Bad::NotValidYetContext { .. },
    ) = error
    {
        "is the clock of this host, or of the broker's, right?"
    } else if let rustls::Error::InvalidCertificate(
        Bad::NotValidForName | Bad::NotValidForNameContext { .. },
    ) = error
    {
        "start the broker with `--advertise` and the URL that this host uses"
    } else if let rustls::Error::AlertReceived(_) = error {
        "the broker did not take this node's certificate: was it started on a new data directory?"
    } else {
        "does something between this host and the broker answer in its place?"
    }
}

/// A failure of hyper, told by what is at its root.
pub(super) fn classify(url: String, error: &(dyn Error + 'static)) -> ClientError {
    use rustls::CertificateError as Bad;
    match tls_cause(error) {
        Some(
            source @ rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature),
        ) => ClientError::WrongCa {
            url,
            source: source.clone(),
        },
        Some(source) => ClientError::Tls {
            url,
            source: source.clone(),
        },
        None => ClientError::Unreachable {
            url,
            source: root(error),
        },
    }
}

/// Nothing came for that long.
pub(super) fn silent(url: String, after: Duration) -> ClientError {
    let what = format!("it was silent for {} s", after.as_secs());
    ClientError::Unreachable {
        url,
        source: io::Error::new(io::ErrorKind::TimedOut, what).into(),
    }
}

/// The TLS error inside; an [`io::Error`] hides what it wraps from `source`.
fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = inner
            .map(|e| e as &(dyn Error + 'static))
            .or_else(|| error.source());
    }
    None
}

/// hyper says "client error (Connect)" before it says why: only the why is kept, as far as it is text.
fn root(error: &(dyn Error + 'static)) -> BoxError {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if let Some(io) = innermost.downcast_ref::<io::Error>() {
        return io::Error::new(io.kind(), io.to_string()).into();
    }
    innermost.to_string().into()
}
