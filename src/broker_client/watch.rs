//! The watch stream: the fleet's state as it changes. Shell.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, HeaderValue};
use subsea_api::snapshot::WatchEvent;
use tokio::time::Instant;

use super::error::{self, ClientError};
use super::frames::Frames;

/// The broker sends something every 10 s: two beats may be lost, not more.
const SILENCE: Duration = Duration::from_secs(25);
/// The longest event, decoded: a snapshot of a fleet far larger than planned.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// An open watch.
#[derive(Debug)]
pub struct WatchStream {
    url: String,
    body: Incoming,
    frames: Frames,
    heard: Instant,
}

impl WatchStream {
    pub(super) fn new(url: String, answer: Response<Incoming>) -> Result<Self, ClientError> {
        let gzip = match answer
            .headers()
            .get(CONTENT_ENCODING)
            .map(HeaderValue::as_bytes)
        {
            None | Some(b"identity") => false,
            Some(b"gzip") => true,
            Some(_) => {
                return Err(ClientError::Protocol(format!(
                    "the broker at {url} sends the watch in an encoding that was not asked for"
                )));
            }
        };
        Ok(Self {
            url,
            body: answer.into_body(),
            frames: Frames::new(gzip, MAX_LINE),
            heard: Instant::now(),
        })
    }

    /// The next event; none when the broker closed the stream. May be dropped and called again at any time.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] after 25 s of silence or when the connection breaks;
    /// [`ClientError::Protocol`] for what is no event, or none that fits in memory.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        loop {
            if let Some(line) = self.frames.next_line().map_err(|e| self.nonsense(&e))? {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| self.nonsense(&e));
            }
            let frame = tokio::time::timeout_at(self.heard + SILENCE, self.body.frame()).await;
            match frame {
                Err(_) => return Err(error::silent(self.url.clone(), SILENCE)),
                Ok(None) if self.frames.is_between_lines() => return Ok(None),
                Ok(None) => return Err(self.nonsense(&"it ended in the middle of an event")),
                Ok(Some(Err(error))) => {
                    return Err(error::classify(self.url.clone(), &error));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.heard = Instant::now();
                        self.frames.push(data);
                    }
                }
            }
        }
    }

    fn nonsense(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Protocol(format!(
            "the watch of the broker at {} is not understood: {why}",
            self.url
        ))
    }
}
