//! Bounds: large and endless bodies, slow and idle connections.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use subsea_api::{Code, Problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Broker, Node, tls_config};

async fn tcp(broker: &Broker) -> TcpStream {
    TcpStream::connect(broker.url.strip_prefix("https://").unwrap())
        .await
        .unwrap()
}

async fn tls(broker: &Broker) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(tls_config(&broker.ca_pem, None)));
    let name = ServerName::try_from("127.0.0.1").unwrap();
    connector.connect(name, tcp(broker).await).await.unwrap()
}

/// Reads until the end, or until the far side has had enough.
async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n) = stream.read(&mut piece).await {
        if n == 0 {
            break;
        }
        text.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_endless_bodies_are_refused() {
    let broker = Broker::start().await;
    let (status, body) = broker
        .anonymous()
        .raw("POST", "/v1/join", vec![b' '; 300 * 1024])
        .await;
    let problem: Problem = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, problem.code), (413, Code::TooLarge));
    let mut endless = tls(&broker).await;
    let head = "POST /v1/join HTTP/1.1\r\nhost: b\r\ntransfer-encoding: chunked\r\n\r\n";
    endless.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut sent = 0;
    while sent < 100 && endless.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1;
    }
    let answer = rest(&mut endless).await;
    assert!(
        sent < 100 || answer.starts_with("HTTP/1.1 413"),
        "{sent} {answer}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_after_a_while() {
    let broker = Broker::start().await;
    let head = tokio::spawn({
        let mut slow = tls(&broker).await;
        async move {
            for byte in "GET /healthz HTTP/1.1\r\nhost: b\r\nx-y: z".bytes().cycle() {
                if slow.write_all(&[byte]).await.is_err() {
                    break;
                }
                let mut answer = [0; 64];
                let read = tokio::time::timeout(Duration::from_millis(500), slow.read(&mut answer));
                if read.await.is_ok() {
                    break;
                }
            }
        }
    });
    let handshake = tokio::spawn({
        let mut mute = tcp(&broker).await;
        async move { rest(&mut mute).await }
    });
    let body = tokio::spawn({
        let mut slow = tls(&broker).await;
        async move {
            let head = "POST /v1/join HTTP/1.1\r\nhost: b\r\ncontent-length: 1000\r\n\r\n{";
            slow.write_all(head.as_bytes()).await.unwrap();
            let mut answer = [0; 512];
            let n = slow.read(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer[..n]).into_owned()
        }
    });
    let all = async { tokio::join!(head, handshake, body) };
    let all = tokio::time::timeout(Duration::from_secs(40), all).await;
    let (head, handshake, body) = all.expect("they are not cut");
    head.unwrap();
    handshake.unwrap();
    assert!(body.unwrap().starts_with("HTTP/1.1 408"));
    broker.stop().await;
}

/// Whether the broker serves a gateway while a thousand connections idle. It cuts them after some seconds: when it
/// has done so by then, they may be what it waited for.
async fn serves_beside_a_thousand(broker: &Broker, east: &Node) -> bool {
    let mut idle = Vec::new();
    let mut greeted = Vec::new();
    for _ in 0..500 {
        idle.push(tcp(broker).await);
        // Half of them get as far as TLS.
        greeted.push(tls(broker).await);
    }
    east.register(broker, "192.0.2.1:51820").await.unwrap();
    assert!(east.client(broker).watch("").await.is_ok());
    idle.into_iter().all(|stream| {
        let open = stream.into_std().unwrap().peek(&mut [0]);
        open.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_do_no_harm() {
    let broker = Broker::start().await;
    let east = broker.member("east", "10.0.0.0/16").await;
    let mut served = false;
    // Again, for a machine may be slower once than those seconds.
    for _ in 0..3 {
        let trial = serves_beside_a_thousand(&broker, &east);
        let trial = tokio::time::timeout(Duration::from_secs(20), trial).await;
        served = trial.unwrap_or(false);
        if served {
            break;
        }
    }
    assert!(served, "nobody is served before idle connections are cut");
    broker.stop().await;
}
