//! The HTTP API: what `api/src/member.rs`, `api/src/enrolment.rs` and `api/src/admin.rs` say, and errors as `Problem`. Shell.

mod admin;
mod enrolment;
mod extract;
mod member;
mod openapi;
mod refusal;
mod transfer;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post, put};
use subsea_api::{Code, Problem, UnixMillis};

pub use extract::Peer;
pub use openapi::document;

use crate::auth::Challenger;
use crate::clock;
use crate::hub::Hub;
use crate::registry::{Decision, Leases, State};
use crate::store::Store;
use crate::tls::Authority;
use refusal::Refusal;

/// What all handlers share.
#[derive(Debug)]
pub struct App {
    /// The store.
    pub store: Arc<Store>,
    /// Who signs.
    pub authority: Authority,
    /// Who checks possession of keys.
    pub challenger: Challenger,
    /// The watchers.
    pub hub: Arc<Hub>,
    /// The leases of gateways. Locked for a moment, and never while a commit is waited for.
    pub leases: Mutex<Leases>,
    /// How long members' certificates live.
    pub certificate_lifetime: Duration,
    /// Since when the process runs.
    pub started: UnixMillis,
    /// Where the store lies; room for copies of it.
    pub data_dir: PathBuf,
}

impl App {
    /// The leases.
    pub fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides and commits on a thread that may block, then cuts whose streams must end.
    ///
    /// # Errors
    /// The refusal of `decide`, or `store-unavailable`.
    pub async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        who: String,
        decide: impl FnOnce(&State, UnixMillis) -> Result<Decision<T>, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let committed = self
            .blocking(move |app| {
                let now = clock::now();
                let committed = app.store.write(&who, now, |state| decide(state, now))?;
                // Here and not in the handler: a caller that hangs up must not save its streams.
                if let Some(cut) = &committed.cut {
                    app.hub.cut(cut);
                }
                Ok(committed)
            })
            .await?;
        Ok(committed.answer)
    }

    /// Runs something on a thread that may block.
    ///
    /// # Errors
    /// Those of `work`; `internal` when it panicked.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = self.clone();
        tokio::task::spawn_blocking(move || work(&app))
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "a request failed");
                Err(
                    Problem::new(Code::Internal, "the broker failed on this request")
                        .hint("the broker's log says why"),
                )
            })
    }
}

/// All calls.
pub fn router(app: Arc<App>) -> Router {
    let admin = Router::new()
        .route("/tokens", post(admin::create_token).get(admin::tokens))
        .route("/tokens/{id}", delete(admin::revoke_token))
        .route("/clusters", get(admin::clusters))
        .route(
            "/clusters/{cluster}",
            get(admin::cluster).delete(admin::forget),
        )
        .route("/clusters/{cluster}/revoke", post(admin::revoke))
        .route(
            "/clusters/{cluster}/stock-gateways/{node}",
            put(admin::add_stock_gateway),
        )
        .route(
            "/clusters/{cluster}/gateways/{node}",
            delete(admin::forget_gateway),
        )
        .route(
            "/allocations",
            get(admin::allocations)
                .post(admin::reserve)
                .delete(admin::release),
        )
        .route("/audit", get(admin::audit))
        .route("/backup", get(transfer::backup))
        .route("/restore", post(transfer::restore))
        .route("/status", get(admin::status));
    Router::new()
        .route("/healthz", get(member::healthz))
        .route("/v1/openapi.json", get(openapi::serve))
        .route("/v1/preflight", post(member::preflight))
        .route("/v1/join", post(member::join))
        .route("/v1/admit", post(enrolment::admit))
        .route("/v1/enrol", post(enrolment::enrol))
        .route("/v1/withdraw", post(enrolment::withdraw))
        .route("/v1/service-accounts", put(enrolment::set_service_accounts))
        .route("/v1/renew", post(member::renew))
        .route("/v1/challenge", post(member::challenge))
        .route(
            "/v1/clusters/{cluster}/gateways/{node}",
            put(member::register_gateway).delete(member::remove_gateway),
        )
        .route(
            "/v1/clusters/{cluster}/gateways/{node}/lease",
            post(member::renew_lease),
        )
        .route(
            "/v1/clusters/{cluster}/agents/{node}",
            delete(member::remove_agent),
        )
        .route("/v1/clusters/{cluster}", delete(member::leave))
        .route("/v1/watch", get(watch::watch))
        .nest("/v1/admin", admin)
        .fallback(refusal::no_such_call)
        .method_not_allowed_fallback(refusal::no_such_method)
        .with_state(app)
}
