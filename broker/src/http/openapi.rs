//! The description of the API, made from the code. Shell.

use axum::Json;
use subsea_api::snapshot::WatchEvent;
use utoipa::OpenApi as _;

use super::{admin, enrolment, member, transfer, watch};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Subsea broker",
        description = "Members, public keys, endpoints and CIDR allocations of a fleet. HTTPS with client certificates of the fleet's own authority. Errors are `Problem` with a stable `code`."
    ),
    paths(
        member::healthz,
        member::preflight,
        member::join,
        enrolment::admit,
        enrolment::enrol,
        enrolment::withdraw,
        enrolment::set_service_accounts,
        member::renew,
        member::challenge,
        member::register_gateway,
        member::renew_lease,
        member::remove_gateway,
        member::remove_agent,
        member::leave,
        watch::watch,
        admin::create_token,
        admin::tokens,
        admin::revoke_token,
        admin::clusters,
        admin::cluster,
        admin::forget,
        admin::revoke,
        admin::add_stock_gateway,
        admin::forget_gateway,
        admin::allocations,
        admin::reserve,
        admin::release,
        admin::audit,
        transfer::backup,
        transfer::restore,
        admin::status,
    ),
    components(schemas(WatchEvent))
)]
struct Api;

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Sends it.
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}
