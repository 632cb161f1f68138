//! Bounds: large and endless bodies, slow and idle connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use subsea_api::{Code, Problem};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Broker, tls_config};

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
    let began = Instant::now();
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
    let (head, handshake, body) = tokio::join!(head, handshake, body);
    head.unwrap();
    handshake.unwrap();
    assert!(body.unwrap().starts_with("HTTP/1.1 408"));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_do_no_harm() {
    let broker = Broker::start().await;
    let mut idle = Vec::new();
    for i in 0..1000 {
        let stream = tcp(&broker).await;
        // Half of them get as far as TLS.
        if i % 2 == 0 {
            idle.push((Some(stream), None));
        } else {
            drop(stream);
            idle.push((None, Some(tls(&broker).await)));
        }
    }
    let began = Instant::now();
    let east = broker.member("east", "10.0.0.0/16").await;
    east.register(&broker, "192.0.2.1:51820").await.unwrap();
    assert!(east.client(&broker).watch("").await.is_ok());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    drop(idle);
    broker.stop().await;
}
