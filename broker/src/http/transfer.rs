//! Backup and restore of the whole store. Shell.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use subsea_api::admin::BrokerStatus;
use subsea_api::{Code, Problem};

use super::extract::Operator;
use super::{App, Refusal, admin};
use crate::registry::{Cut, Decision, Note};
use crate::store::{StoreError, prepare};
use crate::{clock, data_dir};

/// The largest store that is taken back.
const MAX_STORE: u64 = 1 << 30;
/// How long the next piece of a store may take.
const PIECE_TIME: Duration = Duration::from_secs(15);
/// How much of a store is sent at a time.
const PIECE: usize = 64 * 1024;

/// Sends a consistent copy of the store. It holds the fleet's authority: keep it like a key.
#[utoipa::path(get, path = "/v1/admin/backup", tag = "admin",
    responses((status = 200, description = "The store, an SQLite database.", content_type = "application/vnd.sqlite3"),
        (status = "default", body = Problem)))]
pub(super) async fn backup(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
) -> Result<Response, Refusal> {
    // No change, but the authority's key leaves the broker: the log must tell who has it.
    app.write(who.clone(), |state, _| {
        let note = Note::new("store.backup", state.identity.fleet.as_str(), "");
        Ok(Decision::changed((), Vec::new(), note))
    })
    .await?;
    let copy = app
        .blocking(move |app| {
            let file = draft(app)?;
            app.store.backup(file.path())?;
            tracing::info!(%who, "backup made");
            file.reopen()
                .map_err(|e| StoreError::io("read", file.path(), e).into())
        })
        .await?;
    // The file has no name any more; it goes when the last piece is read.
    let copy = tokio::fs::File::from_std(copy);
    let pieces = futures_util::stream::unfold(copy, |mut copy| async {
        use tokio::io::AsyncReadExt as _;
        let mut piece = vec![0; PIECE];
        match copy.read(&mut piece).await {
            Ok(0) => None,
            Ok(n) => {
                piece.truncate(n);
                Some((Ok(Bytes::from(piece)), copy))
            }
            Err(error) => Some((Err(error), copy)),
        }
    });
    let kind = [(CONTENT_TYPE, "application/vnd.sqlite3")];
    Ok((kind, Body::from_stream(pieces)).into_response())
}

/// Replaces the store by a backup of the same fleet, under a new epoch. Revocations, burnt tokens, owners of
/// keys and the audit log since the backup stay.
#[utoipa::path(post, path = "/v1/admin/restore", tag = "admin",
    request_body(content = String, content_type = "application/vnd.sqlite3"),
    responses((status = 200, body = BrokerStatus), (status = "default", body = Problem)))]
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    Operator(who): Operator,
    body: Body,
) -> Result<Json<BrokerStatus>, Refusal> {
    let file = app.blocking(draft).await?;
    let file = receive(&app, file, body).await?;
    app.blocking(move |app| {
        let epoch =
            data_dir::new_epoch().map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        app.store
            .restore(file.path(), |carried| -> Result<(), Problem> {
                let made = prepare(file.path(), Some(&carried), &epoch, &who, clock::now());
                made.map_err(|error| match error {
                    StoreError::Corrupt { reason, .. } => bad(&reason),
                    StoreError::Damaged { source, .. } => bad(&source.to_string()),
                    other @ (StoreError::Newer { .. }
                    | StoreError::Full { .. }
                    | StoreError::Io { .. }
                    | StoreError::Sql { .. }
                    | StoreError::Foreign(_)) => other.into(),
                })
            })?;
        app.hub.cut(&Cut::All);
        tracing::warn!(%who, %epoch, "store restored from a backup");
        Ok(())
    })
    .await?;
    Ok(Json(admin::broker_status(&app)))
}

fn bad(reason: &str) -> Problem {
    Problem::new(
        Code::BadRequest,
        format!("the body is no whole backup: {reason}; nothing was changed"),
    )
}

fn draft(app: &App) -> Result<tempfile::NamedTempFile, Problem> {
    tempfile::Builder::new()
        .prefix(data_dir::DRAFT_PREFIX)
        .tempfile_in(&app.data_dir)
        .map_err(|e| StoreError::io("write to", &app.data_dir, e).into())
}

async fn receive(
    app: &Arc<App>,
    mut file: tempfile::NamedTempFile,
    mut body: Body,
) -> Result<tempfile::NamedTempFile, Problem> {
    let mut size = 0;
    loop {
        let next = tokio::time::timeout(PIECE_TIME, body.frame()).await;
        let frame = match next {
            Ok(None) => return Ok(file),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(Problem::new(
                    Code::BadRequest,
                    "the body ended before its end",
                ));
            }
            Err(_) => return Err(Problem::new(Code::Timeout, "the body stalled")),
        };
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        size += piece.len() as u64;
        if size > MAX_STORE {
            return Err(Problem::new(
                Code::TooLarge,
                "the body is larger than any store",
            ));
        }
        file = app
            .blocking(move |app| {
                file.write_all(&piece)
                    .map_err(|e| StoreError::io("write to", &app.data_dir, e))?;
                Ok(file)
            })
            .await?;
    }
}
