//! What an API server's refusal means, and what to do about it. PURE.

use kube::Error;

/// Why something could not be asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// We may not do this.
    Forbidden(String),
    /// It does not know the kind of object.
    NoKind(String),
    /// There is no such object.
    Missing,
    /// Somebody else changed it at the same time.
    Conflict,
    /// It does not take what we say.
    Invalid(String),
    /// It cannot be reached, or has a fault of its own.
    Away(String),
}

impl Fault {
    /// What `error` means for a request for an object or a list of them; `named` says whether it named an object.
    pub fn of(error: &Error, named: bool) -> Self {
        let Error::Api(status) = error else {
            let ours = matches!(error, Error::SerdeError(_) | Error::BuildRequest(_));
            return if ours {
                Self::Invalid(text(error))
            } else {
                Self::Away(text(error))
            };
        };
        match status.code {
            403 => Self::Forbidden(status.message.clone()),
            404 => {
                // Of a path that it does not serve, the server says no more than that.
                let object = status.details.as_ref().is_some_and(|d| !d.name.is_empty());
                if named && object {
                    Self::Missing
                } else {
                    Self::NoKind(status.message.clone())
                }
            }
            409 => Self::Conflict,
            400 | 405 | 413 | 415 | 422 => Self::Invalid(status.message.clone()),
            _ => Self::Away(text(error)),
        }
    }

    /// The same for people: what was to be done, why it was not, what helps.
    pub fn describe(&self, what: &str) -> String {
        match self {
            Self::Forbidden(why) => {
                format!("Kubernetes: may not {what}: {why}; apply manifests/cluster/roles.yaml")
            }
            Self::NoKind(_) => format!(
                "Kubernetes: could not {what}: the CRDs are missing: apply manifests/cluster/crds.yaml"
            ),
            Self::Missing => format!("Kubernetes: could not {what}: it is not there"),
            Self::Conflict => {
                format!("Kubernetes: could not {what}: somebody else changed it at the same time")
            }
            Self::Invalid(why) => format!(
                "Kubernetes: could not {what}: {why}; are the CRDs of this version? Apply manifests/cluster/crds.yaml"
            ),
            Self::Away(why) => format!("Kubernetes: could not {what}: {why}; it is tried again"),
        }
    }
}

/// An error with its causes. The client's own text repeats what its cause says, and shows it once more as Rust does.
pub fn text(error: &Error) -> String {
    if let Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    if let Error::Service(cause) = error {
        return crate::membership::chain(&**cause);
    }
    crate::membership::chain(error)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str, name: Option<&str>) -> Error {
        let mut status = Status::failure(message, "").with_code(code);
        if let Some(name) = name {
            let details = serde_json::json!({"name": name});
            status.details = Some(serde_json::from_value(details).unwrap());
        }
        Error::Api(status.boxed())
    }

    #[test]
    fn each_refusal_is_told_apart_and_says_what_to_do() {
        let of = |error: &Error| Fault::of(error, true);
        let forbidden = of(&api(403, "User \"x\" cannot patch", None));
        let text = forbidden.describe("patch connections.subsea.dev/status");
        assert_eq!(
            text,
            "Kubernetes: may not patch connections.subsea.dev/status: User \"x\" cannot patch; apply manifests/cluster/roles.yaml"
        );
        assert_eq!(of(&api(404, "gone", Some("gw-1"))), Fault::Missing);
        let no_kind = of(&api(404, "404 page not found", None));
        assert!(
            no_kind
                .describe("list")
                .contains("the CRDs are missing: apply ")
        );
        assert_eq!(
            Fault::of(&api(404, "x", Some("n")), false),
            Fault::NoKind("x".to_owned())
        );
        assert_eq!(of(&api(409, "x", None)), Fault::Conflict);
        assert!(matches!(of(&api(422, "x", None)), Fault::Invalid(_)));
        for code in [401, 429, 500, 503, 504] {
            assert!(
                matches!(of(&api(code, "x", None)), Fault::Away(_)),
                "{code}"
            );
        }
    }
}
