//! Who calls, and what the call says: certificates, paths, queries and bounded bodies. Shell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;
use subsea_api::{Code, Problem, Role};

use super::{App, Refusal};
use crate::auth::{ClientCertificate, Fingerprint, Holder};
use crate::clock;
use crate::registry::{NodeKey, RENEWAL_GRACE, Seat};

/// The largest body of a request, but for a restore.
pub(super) const MAX_BODY: usize = 256 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(15);

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where from.
    pub address: SocketAddr,
    /// The certificate that it showed, if that names a holder.
    pub certificate: Option<ClientCertificate>,
}

/// A node of a member, whose certificate is in force.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) certificate: ClientCertificate,
    pub(super) node: NodeKey,
    pub(super) role: Role,
}

/// As [`Caller`], but its certificate may have expired up to 30 days ago.
#[derive(Debug, Clone)]
pub(super) struct RenewingCaller(pub(super) Caller);

/// An operator.
#[derive(Debug, Clone)]
pub(super) struct Operator(pub(super) String);

impl Caller {
    /// The caller as the audit log names it.
    pub(super) fn who(&self) -> String {
        self.certificate.holder.to_string()
    }

    fn check(app: &App, parts: &Parts, grace: Duration) -> Result<Self, Problem> {
        let certificate = certificate(app, parts, grace)?;
        let Holder::Node {
            cluster,
            role,
            node,
        } = &certificate.holder
        else {
            return Err(Problem::new(
                Code::Forbidden,
                "an operator's certificate is not a member's",
            ));
        };
        let seat = Seat::of(*role)
            .ok_or_else(|| Problem::new(Code::Forbidden, "the certificate names no node"))?;
        let node = NodeKey {
            cluster: cluster.clone(),
            seat,
            node: node.clone(),
        };
        let enrolled = app
            .store
            .read()
            .state
            .check_holder(&node, &certificate.key)?
            .role;
        // Of an old and a new role the weaker one counts: agents and founders have seats of their own.
        let role = if enrolled == *role {
            *role
        } else {
            Role::Gateway
        };
        Ok(Self {
            certificate,
            node,
            role,
        })
    }
}

/// The certificate of the connection, when it is of this fleet and in force.
fn certificate(app: &App, parts: &Parts, grace: Duration) -> Result<ClientCertificate, Problem> {
    let certificate = parts
        .extensions
        .get::<Arc<Peer>>()
        .and_then(|peer| peer.certificate.clone())
        .ok_or_else(|| {
            Problem::new(
                Code::Unauthenticated,
                "this call needs a client certificate of the fleet",
            )
            .hint("a node gets one by `subsea join`; an operator's stands in the admin file")
        })?;
    let fleet = app.store.read().state.identity.fleet.clone();
    if certificate.fleet != fleet {
        return Err(Problem::new(
            Code::FleetMismatch,
            format!(
                "the certificate is of fleet {}, this broker serves fleet {fleet}",
                certificate.fleet
            ),
        ));
    }
    if clock::now() > certificate.not_after.plus(grace) {
        let late = Problem::new(Code::CertificateExpired, "the certificate has expired");
        return Err(if matches!(certificate.holder, Holder::Admin(_)) {
            late.hint(
                "write a new admin file with `subsea-broker admin reissue` on the broker's host",
            )
        } else if grace.is_zero() {
            late.hint("renew it; a running daemon does so by itself")
        } else {
            late.hint("it is too old to be renewed: enrol the node with a new token")
        });
    }
    Ok(certificate)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        Ok(Self::check(app, parts, Duration::ZERO)?)
    }
}

impl FromRequestParts<Arc<App>> for RenewingCaller {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        Ok(Self(Caller::check(app, parts, RENEWAL_GRACE)?))
    }
}

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let certificate = certificate(app, parts, Duration::ZERO)?;
        if !matches!(certificate.holder, Holder::Admin(_)) {
            return Err(
                Problem::new(Code::Forbidden, "this call needs an operator's certificate")
                    .hint("use the admin file of the broker's data directory")
                    .into(),
            );
        }
        let known = app.blocking(|app| Ok(app.store.fleet("admin")?)).await?;
        if known.as_deref() != Some(Fingerprint::as_str(&certificate.key)) {
            return Err(Problem::new(
                Code::Unauthenticated,
                "this operator's certificate was replaced",
            )
            .hint("use the newest admin file")
            .into());
        }
        Ok(Self(certificate.holder.to_string()))
    }
}

/// A JSON body of at most [`MAX_BODY`] bytes, received within 15 s.
#[derive(Debug)]
pub(super) struct Input<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Input<T> {
    type Rejection = Refusal;
    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, Refusal> {
        let bytes = collect(request.into_body()).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Problem::new(
                Code::BadRequest,
                format!("the body is not what this call takes: {error}"),
            )
            .hint("GET /v1/openapi.json describes every body")
            .into()
        })
    }
}

async fn collect(body: Body) -> Result<axum::body::Bytes, Problem> {
    match tokio::time::timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Problem::new(
            Code::TooLarge,
            format!("the body has more than {MAX_BODY} bytes"),
        )),
        Ok(Err(_)) => Err(Problem::new(
            Code::BadRequest,
            "the body ended before its end",
        )),
        Err(_) => Err(Problem::new(
            Code::Timeout,
            format!("the body took longer than {} s", BODY_TIME.as_secs()),
        )),
    }
}

/// The variables of the path.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Path<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Refusal> {
        let path = axum::extract::Path::from_request_parts(parts, app).await;
        path.map(|axum::extract::Path(value)| Self(value))
            .map_err(|e| Problem::new(Code::BadRequest, e.body_text()).into())
    }
}

/// The variables of the query.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Refusal> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Problem::new(Code::BadRequest, e.body_text()).into())
    }
}
