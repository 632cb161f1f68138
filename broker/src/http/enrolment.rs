//! Calls of clusters whose nodes enrol by their service accounts. Shell.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use subsea_api::enrolment::{
    AdmitRequest, AdmitResponse, EnrolRequest, ServiceAccountKeys, WithdrawRequest,
};
use subsea_api::member::JoinResponse;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{ClusterId, FleetName, Problem, ServiceAccountToken};

use super::extract::{Caller, Input};
use super::member::{read_request, sign, writer};
use super::{App, Refusal};
use crate::auth::Holder;
use crate::{clock, registry};

/// Admits a cluster whose nodes then enrol by themselves, or changes it, and burns the token, in one transaction.
#[utoipa::path(post, path = "/v1/admit", tag = "open", request_body = AdmitRequest,
    responses((status = 200, body = AdmitResponse), (status = "default", body = Problem)))]
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    Input(request): Input<AdmitRequest>,
) -> Result<Json<AdmitResponse>, Refusal> {
    let cluster = request.cluster.clone();
    let allocations = app
        .write(
            format!("token/{}", request.token.id()),
            move |state, now| registry::admit(state, &request, now),
        )
        .await?;
    let (fleet, broker) = identity(&app);
    Ok(Json(AdmitResponse {
        fleet,
        cluster,
        broker,
        allocations,
    }))
}

/// Enrols the node that a service account token proves.
#[utoipa::path(post, path = "/v1/enrol", tag = "open", request_body = EnrolRequest,
    responses((status = 200, body = JoinResponse), (status = "default", body = Problem)))]
pub(super) async fn enrol(
    State(app): State<Arc<App>>,
    Input(request): Input<EnrolRequest>,
) -> Result<Json<JoinResponse>, Refusal> {
    let (certificate_request, serial, csr) = read_request(&request.csr_pem)?;
    let cluster = request.cluster.clone();
    let enrolled = app
        .write(
            who(&cluster, &request.service_account_token),
            move |state, now| registry::enrol_node(state, &request, &csr, now),
        )
        .await?;
    let holder = Holder::Node {
        cluster: cluster.clone(),
        role: enrolled.role,
        node: enrolled.node.clone(),
    };
    let certificate_pem = sign(&app, certificate_request, holder, serial).await?;
    let (fleet, broker) = identity(&app);
    Ok(Json(JoinResponse {
        fleet,
        cluster,
        node: enrolled.node,
        role: enrolled.role,
        certificate_pem,
        broker,
        allocations: enrolled.allocations,
    }))
}

/// Takes an admitted cluster out of the fleet. Done too when it is no member.
#[utoipa::path(post, path = "/v1/withdraw", tag = "open", request_body = WithdrawRequest,
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn withdraw(
    State(app): State<Arc<App>>,
    Input(request): Input<WithdrawRequest>,
) -> Result<StatusCode, Refusal> {
    let who = who(&request.cluster, &request.service_account_token);
    let request = app
        .blocking(move |app| {
            // Anybody can ask for signatures to be checked here: first where no write waits for it.
            let known = app
                .store
                .read()
                .state
                .admissions
                .get(&request.cluster)
                .cloned();
            if let Some(known) = known {
                let token = &request.service_account_token;
                registry::check_operator(&request.cluster, &known, token, clock::now())?;
            }
            Ok(request)
        })
        .await?;
    app.write(who, move |state, now| {
        registry::withdraw(state, &request, now)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replaces the keys that the service account tokens of the caller's cluster are signed with.
#[utoipa::path(put, path = "/v1/service-accounts", tag = "member", request_body = ServiceAccountKeys,
    responses((status = 204, description = "Done."), (status = "default", body = Problem)))]
pub(super) async fn set_service_accounts(
    State(app): State<Arc<App>>,
    caller: Caller,
    Input(request): Input<ServiceAccountKeys>,
) -> Result<StatusCode, Refusal> {
    writer(&caller)?;
    let (own, key) = (caller.node.clone(), caller.certificate.key.clone());
    app.write(caller.who(), move |state, _| {
        // Once more, where no revocation can come between.
        state.check_holder(&own, &key)?;
        registry::set_service_account_keys(state, &own.cluster, &request.keys)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn identity(app: &App) -> (FleetName, BrokerInfo) {
    let memory = app.store.read();
    let state = &memory.state;
    (state.identity.fleet.clone(), state.broker.clone())
}

/// Who asks, as the audit log names it. It is what the token says, which stands in the log only once it is proven.
fn who(cluster: &ClusterId, token: &ServiceAccountToken) -> String {
    let Ok(claims) = token.claims() else {
        return format!("cluster/{cluster}/service-account/unknown");
    };
    let account = claims
        .place()
        .map_or("unknown", |(_, account)| account.as_str());
    match claims.node() {
        Some(node) => format!("cluster/{cluster}/service-account/{account}/{node}"),
        None => format!("cluster/{cluster}/service-account/{account}"),
    }
}
