//! An API server for tests of shells: it answers as a function says, without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Response, StatusCode, Uri};
use futures_util::stream;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// An answer.
pub(super) enum Answer {
    /// A whole document.
    Object(Value),
    /// An error.
    Status(u16, &'static str),
    /// Lines of a watch, until the sender goes.
    Stream(mpsc::Receiver<Value>),
}

/// A client of a server that answers a path with a query as `answer` says.
pub(super) fn client(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Client {
    let answer = Arc::new(answer);
    let app = Router::new().fallback(move |uri: Uri| {
        let answer = Arc::clone(&answer);
        async move { respond(answer(&uri.to_string())) }
    });
    Client::new(app.into_service::<kube::client::Body>(), "default")
}

fn respond(answer: Answer) -> Response<Body> {
    let (code, body) = match answer {
        Answer::Object(value) => (200, Body::from(value.to_string())),
        Answer::Status(code, message) => (code, Body::from(status(code, message).to_string())),
        Answer::Stream(receiver) => {
            let lines = stream::unfold(receiver, |mut receiver| async {
                let line = receiver.recv().await?;
                Some((Ok::<_, std::io::Error>(format!("{line}\n")), receiver))
            });
            (200, Body::from_stream(lines))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status code");
    response.headers_mut().insert(
        "content-type",
        "application/json".parse().expect("a header"),
    );
    response
}

/// An error as API servers write it.
pub(super) fn status(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message, "reason": "Test", "code": code})
}

/// A list as API servers write it.
pub(super) fn list(items: &[Value], next: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1", "continue": next.unwrap_or_default()}, "items": items})
}
