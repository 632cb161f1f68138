//! The watch stream. Shell.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::Response;
use futures_util::stream;
use serde::Deserialize;
use subsea_api::{Code, Problem};

use super::extract::{Caller, Query};
use super::{App, Refusal};
use crate::clock;
use crate::hub::{Position, Subscription};

/// What the watcher has.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchQuery {
    /// The epoch of its snapshot; leave it out without one.
    epoch: Option<String>,
    /// The revision of its snapshot.
    #[serde(default)]
    since: u64,
}

/// Streams the fleet's state: a snapshot, or the changes since a revision, then changes as they come.
#[utoipa::path(get, path = "/v1/watch", tag = "member", params(WatchQuery),
    responses((status = 200, description = "Lines of WatchEvent, without end.", content_type = "application/x-ndjson",
        body = subsea_api::snapshot::WatchEvent), (status = "default", body = Problem)))]
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Query(query): Query<WatchQuery>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let gzip = accepts_gzip(&headers);
    let position = Position {
        epoch: query.epoch,
        since: query.since,
    };
    let now = clock::now();
    let (node, key) = (caller.node.clone(), caller.certificate.key.clone());
    let subscription = app
        .hub
        .open(&app.store, caller.node, &position, now, |memory| {
            memory.state.check_holder(&node, &key).map(|_| ())
        })
        .await?;
    // A stream does not outlive the certificate that opened it; a renewed one opens the next.
    let left = caller.certificate.not_after.since(now);
    let mut response = Response::builder()
        .header(CONTENT_TYPE, "application/x-ndjson")
        .header(CACHE_CONTROL, "no-store");
    if gzip {
        response = response.header(CONTENT_ENCODING, "gzip");
    }
    response
        .body(body(subscription, gzip, left))
        .map_err(|e| Problem::new(Code::Internal, e.to_string()).into())
}

fn body(subscription: Subscription, gzip: bool, left: Duration) -> Body {
    let end = tokio::time::Instant::now() + left;
    Body::from_stream(stream::unfold(
        subscription,
        move |mut subscription| async move {
            let frame = tokio::time::timeout_at(end, subscription.next())
                .await
                .ok()??;
            let bytes = frame.bytes(gzip);
            Some((Ok::<_, std::convert::Infallible>(bytes), subscription))
        },
    ))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            name.trim().eq_ignore_ascii_case("gzip") && !matches!(weight.trim(), "q=0" | "q=0.0")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_when_it_is_named() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, value.parse().unwrap());
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip") && accepts("br, GZIP;q=0.5"));
        assert!(!accepts("br") && !accepts("gzip;q=0") && !accepts("identity"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
