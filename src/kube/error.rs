//! How a call to an API server fails, and what to do about it. PURE.

use std::error::Error;
use std::fmt::Write as _;

use kube::core::Status;

/// The API server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// There is no such context, or no kubeconfig.
    #[error("the cluster cannot be chosen")]
    Config(#[source] Box<dyn Error + Send + Sync>),
    /// This is no pod.
    #[error("the cluster of this pod cannot be reached")]
    Pod(#[source] Box<dyn Error + Send + Sync>),
    /// No answer.
    #[error("could not {verb} {what}: the API server does not answer")]
    Unreachable {
        /// Such as `apply`.
        verb: &'static str,
        /// Kind and name.
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// It does not know who asks.
    #[error("could not {verb} {what}: the API server does not take our credentials ({message})")]
    Unauthorized {
        /// Such as `apply`.
        verb: &'static str,
        /// Kind and name.
        what: String,
        /// Its words.
        message: String,
    },
    /// Who asks may not.
    #[error("not allowed to {verb} {what}: {message}")]
    Forbidden {
        /// Such as `apply`.
        verb: &'static str,
        /// Kind and name.
        what: String,
        /// Its words: they name the verb and the resource as roles do.
        message: String,
    },
    /// Fields belong to others.
    #[error("could not apply {what}: {}", owners(.fields))]
    Conflict {
        /// Kind and name.
        what: String,
        /// Manager and field, for each.
        fields: Vec<(String, String)>,
    },
    /// There is none.
    #[error("could not {verb} {what}: there is none ({message})")]
    Missing {
        /// Such as `get`.
        verb: &'static str,
        /// Kind and name.
        what: String,
        /// Its words.
        message: String,
    },
    /// It does not take what was sent.
    #[error("could not {verb} {what}: {message}")]
    Refused {
        /// The code of HTTP.
        code: u16,
        /// Such as `apply`.
        verb: &'static str,
        /// Kind and name.
        what: String,
        /// Its words.
        message: String,
    },
    /// The API server has no such kind.
    #[error("the API server does not know {kind} of {version}, which {what} is")]
    UnknownKind {
        /// The kind.
        kind: String,
        /// Its group and version.
        version: String,
        /// Kind and name of the object.
        what: String,
    },
    /// The Secret is not there with which an image is to be pulled.
    #[error("Secret {namespace}/{name}, with which the image is to be pulled, is not there")]
    NoPullSecret {
        /// Where it would be.
        namespace: String,
        /// What it is called.
        name: String,
    },
    /// It was waited for in vain.
    #[error("{what} after {seconds} s{}", because(.why))]
    Late {
        /// What is still so.
        what: String,
        /// How long it was waited.
        seconds: u64,
        /// What stands in the way, as far as it is known.
        why: Vec<String>,
    },
    /// The user wanted it.
    #[error("interrupted; what was done so far stays")]
    Interrupted,
}

impl KubeError {
    /// What a call to do `verb` with `what` came to.
    pub fn of(verb: &'static str, what: impl Into<String>, error: kube::Error) -> Self {
        let what = what.into();
        if let kube::Error::Api(status) = &error {
            return Self::refused(verb, what, status);
        }
        Self::Unreachable {
            verb,
            what,
            source: Box::new(error),
        }
    }

    fn refused(verb: &'static str, what: String, status: &Status) -> Self {
        let message = status.message.clone();
        if status.code == 401 {
            return Self::Unauthorized {
                verb,
                what,
                message,
            };
        }
        if status.is_forbidden() {
            return Self::Forbidden {
                verb,
                what,
                message,
            };
        }
        if status.is_not_found() {
            return Self::Missing {
                verb,
                what,
                message,
            };
        }
        let fields = fields(status);
        if status.is_conflict() && !fields.is_empty() {
            return Self::Conflict { what, fields };
        }
        Self::Refused {
            code: status.code,
            verb,
            what,
            message,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(_) => {
                Some("`kubectl config get-contexts` lists what `--context` can be; `KUBECONFIG` says which file".into())
            }
            Self::Pod(_) => Some(
                "`--in-cluster` is for pods with the token of a service account; elsewhere give `--context`".into(),
            ),
            Self::Unreachable { .. } => Some("does `kubectl get --raw /readyz` answer with the same context?".into()),
            Self::Unauthorized { .. } => Some("log in to the cluster again, or choose another `--context`".into()),
            Self::Forbidden { .. } => Some(
                "installing needs the rights of a cluster's administrator; `kubectl auth can-i --list` shows yours".into(),
            ),
            Self::Conflict { .. } => Some(
                "take the fields out of what the other one applies, or repeat with `--force-conflicts` to take them over"
                    .into(),
            ),
            Self::NoPullSecret { namespace, name } => Some(format!(
                "make it in the same context, and the namespace where that is not there yet: `kubectl create namespace {namespace}`; `kubectl create \
                 secret docker-registry {name} --namespace {namespace} --docker-server=REGISTRY --docker-username=NAME --docker-password=PASSWORD`. \
                 Where none is needed, leave `--pull-secret` out, or say `--no-pull-secret` where the daemons have one"
            )),
            Self::UnknownKind { .. } => Some("a definition is missing, or the API server is older than Kubernetes 1.32, which is needed".into()),
            Self::Interrupted => Some("the same command goes on from there".into()),
            Self::Missing { .. } | Self::Refused { .. } | Self::Late { .. } => None,
        }
    }

    /// Whether the same may succeed a moment later: the API server is away, or says that it cannot just now.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => matches!(
                **source,
                kube::Error::HyperError(_) | kube::Error::Service(_)
            ),
            Self::Refused { code, .. } => *code == 429 || *code >= 500,
            Self::Config(_)
            | Self::Pod(_)
            | Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::Conflict { .. }
            | Self::Missing { .. }
            | Self::UnknownKind { .. }
            | Self::NoPullSecret { .. }
            | Self::Late { .. }
            | Self::Interrupted => false,
        }
    }

    /// Whether there was nothing to do it with.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Whether an object, or its kind, is not there.
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Manager and field of each conflict of a server-side apply.
fn fields(status: &Status) -> Vec<(String, String)> {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let conflicts = causes.filter(|c| c.reason == "FieldManagerConflict");
    // `conflict with "kubectl" using apps/v1`
    let manager = |message: &str| message.split('"').nth(1).unwrap_or(message).to_owned();
    conflicts
        .map(|c| (manager(&c.message), c.field.clone()))
        .collect()
}

fn owners(fields: &[(String, String)]) -> String {
    let each = fields
        .iter()
        .map(|(manager, field)| format!("`{field}` belongs to `{manager}`"));
    each.collect::<Vec<_>>().join(", ")
}

fn because(why: &[String]) -> String {
    let mut text = String::new();
    for line in why {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: serde_json::Value) -> kube::Error {
        kube::Error::Api(Box::new(serde_json::from_value(json).unwrap()))
    }

    #[test]
    fn a_conflict_names_the_other_manager_and_the_field() {
        let error = status(serde_json::json!({
            "status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Apply failed with 1 conflict",
            "details": {"causes": [{
                "reason": "FieldManagerConflict",
                "message": "conflict with \"helm\" using apps/v1",
                "field": ".spec.updateStrategy.rollingUpdate.maxUnavailable"
            }]}
        }));
        let error = KubeError::of("apply", "DaemonSet subsea/subsea-agent", error);
        assert_eq!(
            error.to_string(),
            "could not apply DaemonSet subsea/subsea-agent: \
             `.spec.updateStrategy.rollingUpdate.maxUnavailable` belongs to `helm`"
        );
        assert!(error.hint().unwrap().contains("--force-conflicts"));
    }

    #[test]
    fn what_is_forbidden_names_verb_and_resource() {
        let words =
            "daemonsets.apps \"x\" is forbidden: User \"bob\" cannot patch resource \"daemonsets\"";
        let error = status(serde_json::json!({
            "status": "Failure", "reason": "Forbidden", "code": 403, "message": words
        }));
        let error = KubeError::of("apply", "DaemonSet subsea/x", error);
        assert_eq!(
            error.to_string(),
            format!("not allowed to apply DaemonSet subsea/x: {words}")
        );
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for (code, reason, transient) in [
            (503, "ServiceUnavailable", true),
            (500, "InternalError", true),
            (429, "TooManyRequests", true),
            (403, "Forbidden", false),
            (404, "NotFound", false),
            (422, "Invalid", false),
        ] {
            let error = status(serde_json::json!({
                "status": "Failure", "reason": reason, "code": code, "message": "no"
            }));
            let error = KubeError::of("list", "nodes", error);
            assert_eq!(error.is_transient(), transient, "{code}");
        }
        let away = kube::Error::Service("connection refused".into());
        assert!(KubeError::of("list", "nodes", away).is_transient());
    }

    #[test]
    fn what_was_waited_for_says_why() {
        let error = KubeError::Late {
            what: "the namespace `subsea` is still there".to_owned(),
            seconds: 60,
            why: vec!["a finalizer".to_owned(), "a pod".to_owned()],
        };
        assert_eq!(
            error.to_string(),
            "the namespace `subsea` is still there after 60 s\n  a finalizer\n  a pod"
        );
    }
}
