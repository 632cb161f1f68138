//! Calls of operators. Shell.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use subsea_api::admin::{
    AllocationInfo, AuditEntry, BrokerStatus, ClusterInfo, Reservation, StockGateway, TokenCreate,
    TokenInfo,
};
use subsea_api::join_file::JoinFile;
use subsea_api::{Cidr, ClusterId, Code, NodeName, Problem, Token};

use super::extract::{Input, Operator, Path, Query};
use super::{App, Refusal};
use crate::registry::Seat;
use crate::{clock, registry, tls};

type Answer<T> = Result<Json<T>, Refusal>;
type Done = Result<StatusCode, Refusal>;

/// The most audit entries in one answer.
const MAX_AUDIT: u64 = 1000;

/// Makes a join token.
#[utoipa::path(post, path = "/v1/admin/tokens", tag = "admin", request_body = TokenCreate,
    responses((status = 200, body = JoinFile), (status = "default", body = Problem)))]
pub(super) async fn create_token(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Input(request): Input<TokenCreate>,
) -> Answer<JoinFile> {
    let random = |_| Problem::new(Code::Internal, "the broker has no randomness");
    let id = u32::from_be_bytes(tls::random().map_err(random)?);
    let token = Token::from_parts(id, tls::random().map_err(random)?);
    let (asked, secret) = (request.clone(), token.clone());
    let new = app
        .write(who, move |state, now| {
            registry::create_token(state, &asked, &secret, now)
        })
        .await?;
    let memory = app.store.read();
    Ok(Json(JoinFile {
        version: 1,
        fleet: memory.state.identity.fleet.clone(),
        cluster: request.cluster,
        role: request.role,
        expires: new.expires,
        broker: memory.state.broker.clone(),
        token,
    }))
}

/// Lists the tokens, without their secrets.
#[utoipa::path(get, path = "/v1/admin/tokens", tag = "admin",
    responses((status = 200, body = Vec<TokenInfo>), (status = "default", body = Problem)))]
pub(super) async fn tokens(State(app): State<Arc<App>>, _: Operator) -> Answer<Vec<TokenInfo>> {
    Ok(Json(registry::tokens(
        &app.store.read().state,
        clock::now(),
    )))
}

/// Makes a token useless.
#[utoipa::path(delete, path = "/v1/admin/tokens/{id}", tag = "admin", params(("id" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn revoke_token(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Path(id): Path<String>,
) -> Done {
    app.write(who, move |state, now| {
        registry::revoke_token(state, &id, now)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the members.
#[utoipa::path(get, path = "/v1/admin/clusters", tag = "admin",
    responses((status = 200, body = Vec<ClusterInfo>), (status = "default", body = Problem)))]
pub(super) async fn clusters(State(app): State<Arc<App>>, _: Operator) -> Answer<Vec<ClusterInfo>> {
    let records = app.store.read().state.clusters.clone();
    let list = records.into_iter().map(|(id, record)| ClusterInfo {
        watching: app.hub.watching(&id, Seat::Gateway),
        agents_watching: app.hub.watching(&id, Seat::Agent),
        id,
        record,
    });
    Ok(Json(list.collect()))
}

/// Shows a member.
#[utoipa::path(get, path = "/v1/admin/clusters/{cluster}", tag = "admin", params(("cluster" = String, Path)),
    responses((status = 200, body = ClusterInfo), (status = "default", body = Problem)))]
pub(super) async fn cluster(
    State(app): State<Arc<App>>,
    _: Operator,
    Path(id): Path<ClusterId>,
) -> Answer<ClusterInfo> {
    Ok(Json(info(&app, &id)?))
}

fn info(app: &App, id: &ClusterId) -> Result<ClusterInfo, Problem> {
    let memory = app.store.read();
    let record = memory.state.clusters.get(id).cloned().ok_or_else(|| {
        let revoked = memory.state.revoked.contains_key(id);
        let why = if revoked {
            "was revoked"
        } else {
            "is not a member of the fleet"
        };
        Problem::new(Code::NotFound, format!("cluster {id} {why}"))
            .hint("`subsea-broker cluster list` shows the members")
    })?;
    Ok(ClusterInfo {
        id: id.clone(),
        record,
        watching: app.hub.watching(id, Seat::Gateway),
        agents_watching: app.hub.watching(id, Seat::Agent),
    })
}

/// Removes a member, or lets a revoked one join again.
#[utoipa::path(delete, path = "/v1/admin/clusters/{cluster}", tag = "admin", params(("cluster" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn forget(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Path(id): Path<ClusterId>,
) -> Done {
    app.write(who, move |state, now| registry::forget(state, &id, now))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shuts a member out.
#[utoipa::path(post, path = "/v1/admin/clusters/{cluster}/revoke", tag = "admin", params(("cluster" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Path(id): Path<ClusterId>,
) -> Done {
    app.write(who, move |state, now| registry::revoke(state, &id, now))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Registers a stock WireGuard peer.
#[utoipa::path(put, path = "/v1/admin/clusters/{cluster}/stock-gateways/{node}", tag = "admin",
    params(("cluster" = String, Path), ("node" = String, Path)), request_body = StockGateway,
    responses((status = 200, body = ClusterInfo), (status = "default", body = Problem)))]
pub(super) async fn add_stock_gateway(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
    Input(request): Input<StockGateway>,
) -> Answer<ClusterInfo> {
    let id = cluster.clone();
    app.write(who, move |state, now| {
        registry::add_stock_gateway(state, &cluster, &node, &request, now)
    })
    .await?;
    Ok(Json(info(&app, &id)?))
}

/// Removes a gateway and its node's enrolment.
#[utoipa::path(delete, path = "/v1/admin/clusters/{cluster}/gateways/{node}", tag = "admin",
    params(("cluster" = String, Path), ("node" = String, Path)),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn forget_gateway(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Path((cluster, node)): Path<(ClusterId, NodeName)>,
) -> Done {
    app.write(who, move |state, now| {
        registry::forget_gateway(state, &cluster, &node, now)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the blocks in use, reserved and resting.
#[utoipa::path(get, path = "/v1/admin/allocations", tag = "admin",
    responses((status = 200, body = Vec<AllocationInfo>), (status = "default", body = Problem)))]
pub(super) async fn allocations(
    State(app): State<Arc<App>>,
    _: Operator,
) -> Answer<Vec<AllocationInfo>> {
    let list = app
        .blocking(|app| {
            app.store.sweep(clock::now())?;
            Ok(registry::allocations(&app.store.read().state))
        })
        .await?;
    Ok(Json(list))
}

/// Reserves a block for a cluster.
#[utoipa::path(post, path = "/v1/admin/allocations", tag = "admin", request_body = Reservation,
    responses((status = 200, body = AllocationInfo), (status = "default", body = Problem)))]
pub(super) async fn reserve(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Input(request): Input<Reservation>,
) -> Answer<AllocationInfo> {
    let info = app
        .write(who, move |state, _| registry::reserve(state, &request))
        .await?;
    Ok(Json(info))
}

/// Which block.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReleaseQuery {
    /// The block, whole.
    #[param(value_type = String)]
    cidr: Cidr,
}

/// Gives up a reservation, or ends the rest of a block.
#[utoipa::path(delete, path = "/v1/admin/allocations", tag = "admin", params(ReleaseQuery),
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn release(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    Query(query): Query<ReleaseQuery>,
) -> Done {
    app.write(who, move |state, _| registry::release(state, query.cidr))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of the audit log.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Entries above this number, from there on; without it the newest.
    #[serde(default)]
    after: Option<u64>,
    /// At most so many; 1,000 unless told, and at most.
    #[serde(default)]
    limit: Option<u64>,
}

/// Reads the audit log, oldest first.
#[utoipa::path(get, path = "/v1/admin/audit", tag = "admin", params(AuditQuery),
    responses((status = 200, body = Vec<AuditEntry>), (status = "default", body = Problem)))]
pub(super) async fn audit(
    State(app): State<Arc<App>>,
    _: Operator,
    Query(query): Query<AuditQuery>,
) -> Answer<Vec<AuditEntry>> {
    let limit = query.limit.unwrap_or(MAX_AUDIT).min(MAX_AUDIT);
    let entries = app
        .blocking(move |app| {
            Ok(match query.after {
                Some(after) => app.store.audit(after, limit)?,
                None => app.store.newest_audit(limit)?,
            })
        })
        .await?;
    Ok(Json(entries))
}

/// The broker at a glance.
#[utoipa::path(get, path = "/v1/admin/status", tag = "admin",
    responses((status = 200, body = BrokerStatus), (status = "default", body = Problem)))]
pub(super) async fn status(State(app): State<Arc<App>>, _: Operator) -> Answer<BrokerStatus> {
    Ok(Json(broker_status(&app)))
}

pub(super) fn broker_status(app: &App) -> BrokerStatus {
    let memory = app.store.read();
    let expires = app.authority.expires();
    crate::status::status(&memory.state, expires, app.started, app.hub.count())
}
