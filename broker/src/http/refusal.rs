//! Problems as HTTP answers. Shell.

use axum::Json;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use subsea_api::{Code, Problem};

use crate::store::StoreError;

/// A problem on its way out.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        tracing::debug!(code = %self.0.code, message = %self.0.message, "refused");
        (status, Json(self.0)).into_response()
    }
}

pub(super) async fn no_such_call(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Problem::new(Code::NotFound, format!("there is no call {path}"))
            .hint("GET /v1/openapi.json lists all calls"),
    )
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Problem::new(
            Code::BadRequest,
            format!("there is no call {method} {path}"),
        )
        .hint("GET /v1/openapi.json lists all calls"),
    )
}
