//! Calls of members and of those who want to become one. Shell.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use subsea_api::member::{
    Challenge, GatewayRegistration, JoinRequest, JoinResponse, Lease, PreflightReport,
    PreflightRequest, RenewRequest, RenewResponse,
};
use subsea_api::snapshot::{Gateway, Listener};
use subsea_api::{ClusterId, Code, NodeName, Problem, Role};

use super::extract::{Caller, Input, Path, Query, RenewingCaller};
use super::{App, Refusal};
use crate::auth::Holder;
use crate::registry::{self, Csr, Join, Seat};
use crate::{clock, tls};

type Answer<T> = Result<Json<T>, Refusal>;

/// Whether the broker serves.
#[utoipa::path(get, path = "/healthz", tag = "open", responses((status = 200, description = "It serves.", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Says whether a join would succeed; burns nothing.
#[utoipa::path(post, path = "/v1/preflight", tag = "open", request_body = PreflightRequest,
    responses((status = 200, body = PreflightReport), (status = "default", body = Problem)))]
pub(super) async fn preflight(
    State(app): State<Arc<App>>,
    Input(request): Input<PreflightRequest>,
) -> Answer<PreflightReport> {
    let report = app
        .blocking(move |app| {
            let now = clock::now();
            app.store.sweep(now)?;
            registry::preflight(&app.store.read().state, &request, now)
        })
        .await?;
    Ok(Json(report))
}

/// Admits a cluster or enrols a further node, and burns the token, in one transaction.
#[utoipa::path(post, path = "/v1/join", tag = "open", request_body = JoinRequest,
    responses((status = 200, body = JoinResponse), (status = "default", body = Problem)))]
pub(super) async fn join(
    State(app): State<Arc<App>>,
    Input(request): Input<JoinRequest>,
) -> Answer<JoinResponse> {
    let (certificate_request, serial, csr) = read_request(&request.csr_pem)?;
    let asked = request.clone();
    let grant = app
        .write(
            format!("token/{}", request.token.id()),
            move |state, now| {
                registry::join(
                    state,
                    Join {
                        request: &asked,
                        csr: &csr,
                        now,
                    },
                )
            },
        )
        .await?;
    let holder = Holder::Node {
        cluster: request.cluster.clone(),
        role: grant.role,
        node: request.node.clone(),
    };
    let certificate_pem = sign(&app, certificate_request, holder, serial).await?;
    let (fleet, broker) = {
        let memory = app.store.read();
        (
            memory.state.identity.fleet.clone(),
            memory.state.broker.clone(),
        )
    };
    Ok(Json(JoinResponse {
        fleet,
        cluster: request.cluster,
        node: request.node,
        role: grant.role,
        certificate_pem,
        broker,
        allocations: grant.allocations,
    }))
}

/// Gives a new certificate for the key in use.
#[utoipa::path(post, path = "/v1/renew", tag = "member", request_body = RenewRequest,
    responses((status = 200, body = RenewResponse), (status = "default", body = Problem)))]
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    RenewingCaller(caller): RenewingCaller,
    Input(request): Input<RenewRequest>,
) -> Answer<RenewResponse> {
    let (certificate_request, serial, csr) = read_request(&request.csr_pem)?;
    let (node, shown) = (caller.node.clone(), caller.certificate.clone());
    let role = app
        .write(caller.who(), move |state, now| {
            let enrolment = state.check_holder(&node, &shown.key)?;
            let decision = registry::renew(&node, enrolment, &shown.serial, &csr, now)?;
            if let Some(note) = decision.note.as_ref().filter(|n| n.action.ends_with("suspected")) {
                tracing::warn!(subject = %note.subject, detail = %note.detail, "two holders of one certificate?");
            }
            let role = enrolment.role;
            Ok(registry::Decision { answer: role, effects: decision.effects, note: decision.note, cut: decision.cut })
        })
        .await?;
    let holder = Holder::Node {
        cluster: caller.node.cluster,
        role,
        node: caller.node.node,
    };
    let certificate_pem = sign(&app, certificate_request, holder, serial).await?;
    let broker = app.store.read().state.broker.clone();
    Ok(Json(RenewResponse {
        certificate_pem,
        broker,
    }))
}

/// Gives what a proof of possession is made of.
#[utoipa::path(post, path = "/v1/challenge", tag = "member",
    responses((status = 200, body = Challenge), (status = "default", body = Problem)))]
pub(super) async fn challenge(State(app): State<Arc<App>>, caller: Caller) -> Answer<Challenge> {
    writer(&caller)?;
    let salt = tls::random().map_err(internal)?;
    let broker_key = app
        .challenger
        .public_key()
        .ok_or_else(|| Problem::new(Code::Internal, "the broker has no challenge key"))?;
    let nonce = app
        .challenger
        .nonce(&caller.certificate.holder, salt, clock::now());
    Ok(Json(Challenge { broker_key, nonce }))
}

/// Replaces the listeners and node addresses of the caller's own gateway.
#[utoipa::path(put, path = "/v1/clusters/{cluster}/gateways/{node}", tag = "member",
    params(("cluster" = String, Path), ("node" = String, Path)), request_body = GatewayRegistration,
    responses((status = 200, body = Gateway), (status = "default", body = Problem)))]
pub(super) async fn register_gateway(
    State(app): State<Arc<App>>,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
    caller: Caller,
    Input(registration): Input<GatewayRegistration>,
) -> Answer<Gateway> {
    own_node(&caller, &cluster, &node)?;
    let listeners = possessed(&app, &caller, &registration)?;
    let addresses = registration.node_addresses;
    let (own, key) = (caller.node.clone(), caller.certificate.key.clone());
    // Before the commit: afterwards nothing may end what has just been registered.
    app.leases().renew(&cluster, &node, clock::since_boot());
    let gateway = app
        .write(caller.who(), move |state, _| {
            // Once more, where no revocation can come between.
            state.check_holder(&own, &key)?;
            registry::register_gateway(state, &cluster, &node, &listeners, &addresses)
        })
        .await?;
    Ok(Json(gateway))
}

/// Renews the lease of the caller's own gateway: no revision, unless it was over.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/gateways/{node}/lease", tag = "member",
    params(("cluster" = String, Path), ("node" = String, Path)),
    responses((status = 200, body = Lease), (status = "default", body = Problem)))]
pub(super) async fn renew_lease(
    State(app): State<Arc<App>>,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
    caller: Caller,
) -> Answer<Lease> {
    own_node(&caller, &cluster, &node)?;
    // That a lease is over stands in the record, or is being committed: then the lease knows.
    let over = registry::is_over(&app.store.read().state, &cluster, &node)?;
    let (ending, lasts) = {
        let mut leases = app.leases();
        let ending = leases.renew(&cluster, &node, clock::since_boot());
        (ending, leases.lasts())
    };
    if over || ending {
        let (own, key) = (caller.node.clone(), caller.certificate.key.clone());
        app.write(caller.who(), move |state, _| {
            state.check_holder(&own, &key)?;
            registry::renew_lease(state, &cluster, &node)
        })
        .await?;
    }
    let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(Lease { lasts_ms }))
}

/// Removes the caller's own gateway, or another one of its cluster whose lease is over: the caller knows that its node is no more.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/gateways/{node}", tag = "member",
    params(("cluster" = String, Path), ("node" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn remove_gateway(
    State(app): State<Arc<App>>,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    writer(&caller)?;
    let role = caller.role;
    if caller.node.cluster == cluster && caller.node.node != node {
        let (own, key) = (caller.node.clone(), caller.certificate.key.clone());
        app.write(caller.who(), move |state, now| {
            state.check_holder(&own, &key)?;
            registry::clear_gateway(state, &cluster, &node, now)
        })
        .await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    own_records(&caller, &cluster, &node)?;
    app.write(caller.who(), move |state, now| {
        registry::remove_gateway(state, &cluster, &node, role, now)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the enrolment of the caller's own agent.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/agents/{node}", tag = "member",
    params(("cluster" = String, Path), ("node" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn remove_agent(
    State(app): State<Arc<App>>,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    if caller.node.seat != Seat::Agent {
        let message = format!("a certificate of role {} is not an agent's", caller.role);
        return Err(Problem::new(Code::Forbidden, message).into());
    }
    own_records(&caller, &cluster, &node)?;
    let (own, key) = (caller.node.clone(), caller.certificate.key.clone());
    app.write(caller.who(), move |state, _| {
        state.check_holder(&own, &key)?;
        registry::remove_agent(state, &cluster, &node)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether to leave although other gateways are registered.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LeaveQuery {
    /// Take the other gateways out too.
    #[serde(default)]
    force: bool,
}

/// The caller's cluster leaves; a further gateway (role gateway) takes only itself out.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}", tag = "member",
    params(("cluster" = String, Path), LeaveQuery),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn leave(
    State(app): State<Arc<App>>,
    Path(cluster): Path<ClusterId>,
    Query(query): Query<LeaveQuery>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    let node = caller.node.node.clone();
    own_node(&caller, &cluster, &node)?;
    let role = caller.role;
    app.write(caller.who(), move |state, now| {
        if role == Role::Member {
            registry::leave(state, &cluster, &node, query.force, now)
        } else {
            registry::remove_gateway(state, &cluster, &node, role, now)
        }
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn writer(caller: &Caller) -> Result<(), Problem> {
    if caller.role.may_write() {
        return Ok(());
    }
    Err(Problem::new(
        Code::Forbidden,
        format!("a certificate of role {} only reads", caller.role),
    ))
}

fn own_node(caller: &Caller, cluster: &ClusterId, node: &NodeName) -> Result<(), Problem> {
    writer(caller)?;
    own_records(caller, cluster, node)
}

fn own_records(caller: &Caller, cluster: &ClusterId, node: &NodeName) -> Result<(), Problem> {
    if caller.node.cluster == *cluster && caller.node.node == *node {
        return Ok(());
    }
    Err(Problem::new(
        Code::Forbidden,
        format!(
            "the certificate is of node {} of cluster {}: it cannot write records of {cluster}/{node}",
            caller.node.node, caller.node.cluster
        ),
    ))
}

/// The listeners, when the caller has shown that it holds the private key of each.
fn possessed(
    app: &App,
    caller: &Caller,
    registration: &GatewayRegistration,
) -> Result<Vec<Listener>, Problem> {
    let now = clock::now();
    let fleet = app.store.read().state.identity.fleet.clone();
    let NodeNames { cluster, node } = NodeNames::of(caller);
    for entry in registration.listeners.iter().take(64) {
        let (key, nonce) = (&entry.listener.public_key, entry.nonce.as_str());
        if !app
            .challenger
            .is_fresh(nonce, &caller.certificate.holder, now)
        {
            return Err(Problem::new(
                Code::ProofInvalid,
                format!(
                    "the challenge of listener {} is stale or of another node",
                    short(&entry.listener.id)
                ),
            )
            .hint("ask for a new challenge and register within one minute"));
        }
        if !app
            .challenger
            .is_proof(&fleet, cluster, node, key, nonce, &entry.proof)
        {
            return Err(Problem::new(
                Code::ProofInvalid,
                format!("possession of the private key of {key} was not shown"),
            )
            .hint("register only keys that were made on this node"));
        }
    }
    Ok(registration
        .listeners
        .iter()
        .map(|e| e.listener.clone())
        .collect())
}

struct NodeNames<'a> {
    cluster: &'a ClusterId,
    node: &'a NodeName,
}

impl<'a> NodeNames<'a> {
    fn of(caller: &'a Caller) -> Self {
        Self {
            cluster: &caller.node.cluster,
            node: &caller.node.node,
        }
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(63).collect()
}

pub(super) fn read_request(pem: &str) -> Result<(tls::Request, [u8; 16], Csr), Problem> {
    let request = tls::Request::from_pem(pem).map_err(|e| {
        Problem::new(Code::BadRequest, e.to_string())
            .hint("send a PKCS #10 request in PEM, made with an ECDSA P-256 key")
    })?;
    let serial = tls::serial().map_err(internal)?;
    let csr = Csr {
        key: request.key.clone(),
        request: request.whole.clone(),
        serial: tls::serial_text(&serial),
    };
    Ok((request, serial, csr))
}

pub(super) async fn sign(
    app: &Arc<App>,
    request: tls::Request,
    holder: Holder,
    serial: [u8; 16],
) -> Result<String, Problem> {
    app.blocking(move |app| {
        let now = clock::now();
        let signed = app
            .authority
            .sign(&request, &holder, &serial, now, app.certificate_lifetime);
        signed.map_err(internal)
    })
    .await
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is the last use of an error"
)]
fn internal(error: tls::TlsError) -> Problem {
    tracing::error!(%error, "the cryptography failed");
    Problem::new(Code::Internal, "the broker could not make a certificate")
        .hint("the broker's log says why")
}
