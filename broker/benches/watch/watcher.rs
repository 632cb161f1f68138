//! A watch that tells when it heard of which revision. It decodes the stream but does not build the fleet from it:
//! a thousand gateways do that on a thousand machines.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt as _;
use hyper::Method;
use tokio::sync::mpsc;

use crate::client::{self, Error};
use crate::member::Member;

/// Which state a watch starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// None: the broker sends its whole state.
    Empty,
    /// This revision.
    At(u64),
}

/// A watcher has a revision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) watcher: usize,
    pub(crate) revision: u64,
    pub(crate) at: Instant,
}

/// Watches, and starts again whenever the stream breaks.
pub(crate) async fn watch(
    watcher: usize,
    member: &Member,
    address: SocketAddr,
    epoch: &str,
    start: Start,
    told: &mpsc::Sender<Heard>,
) {
    let path = match start {
        Start::Empty => "/v1/watch".to_owned(),
        Start::At(revision) => format!("/v1/watch?epoch={epoch}&since={revision}"),
    };
    loop {
        let ended = stream(watcher, member, address, &path, told).await;
        if std::env::var_os("SUBSEA_BENCH_TRACE").is_some() {
            println!("watch {watcher} ended: {ended:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stream(
    watcher: usize,
    member: &Member,
    address: SocketAddr,
    path: &str,
    told: &mpsc::Sender<Heard>,
) -> Result<(), Error> {
    let mut sender = client::connect(address, &member.tls).await?;
    let answer = sender
        .send_request(client::request(Method::GET, path, Vec::new()))
        .await?;
    if !answer.status().is_success() {
        return Err(answer.status().to_string().into());
    }
    let gzip = answer.headers().get("content-encoding").is_some();
    let mut body = answer.into_body();
    let mut decoder = MultiGzDecoder::new(Lines::default());
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let at = Instant::now();
        let lines = if gzip {
            decoder.write_all(data)?;
            decoder.flush()?;
            decoder.get_mut()
        } else {
            decoder.get_mut().write_all(data)?;
            decoder.get_mut()
        };
        for revision in lines.revisions.drain(..) {
            told.send(Heard {
                watcher,
                revision,
                at,
            })
            .await?;
        }
    }
    Ok(())
}

/// Finds the revision that each line of the stream leads to.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    revisions: Vec<u64>,
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::str::from_utf8(&self.line).unwrap_or_default();
            self.revisions.extend(revision(line));
            self.line = Vec::new();
        }
        self.line.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn revision(line: &str) -> Option<u64> {
    let name = if line.starts_with(r#"{"type":"delta""#) {
        r#""to":"#
    } else {
        r#""revision":"#
    };
    let number = &line[line.find(name)? + name.len()..];
    let end = number.find(|c: char| !c.is_ascii_digit())?;
    number[..end].parse().ok()
}
