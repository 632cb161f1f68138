//! What can be shown without a broker; the rest is in `tests/join.rs`, against a real one.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};

use subsea_api::snapshot::BrokerInfo;

use super::*;

fn authority() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).unwrap().pem()
}

fn broker(urls: &[&str]) -> BrokerInfo {
    BrokerInfo {
        urls: urls.iter().map(|&u| u.to_owned()).collect(),
        ca_pem: authority(),
    }
}

#[tokio::test]
async fn nobody_there_is_told_with_the_url() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("https://{closed}");
    let client = BrokerClient::anonymous(&broker(&[&url]), None).unwrap();
    let error = client.reach().await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        format!("the broker at {url} cannot be reached")
    );
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("refused"), "{why}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_server_without_tls_is_no_broker() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 16];
        stream.read_exact(&mut hello).unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        hello
    });
    let client = BrokerClient::anonymous(&broker(&[&url]), None).unwrap();
    let error = client.reach().await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error:?}");
    // A TLS handshake record, not a request in clear.
    assert_eq!(server.join().unwrap()[0], 22);
}

#[tokio::test]
async fn the_source_address_follows_the_routes() {
    let client = BrokerClient::anonymous(&broker(&["https://127.0.0.1:1"]), None).unwrap();
    assert_eq!(
        client.local_address_towards().await.unwrap(),
        Ipv4Addr::LOCALHOST
    );
}

#[test]
fn only_urls_of_a_broker_are_taken() {
    for good in [
        "https://a",
        "https://a:1",
        "https://10.0.0.1:7443/",
        "https://[fd00::1]:7443",
    ] {
        assert!(connect::parse_url(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a:1",
        "http://a:1",
        "https://a:1/x",
        "https://a:1?x",
        "https://u@a:1",
        "https://",
    ] {
        assert!(connect::parse_url(bad).is_err(), "{bad}");
    }
    let none = BrokerInfo {
        urls: Vec::new(),
        ca_pem: authority(),
    };
    assert!(matches!(
        BrokerClient::anonymous(&none, None),
        Err(ClientError::Bundle(_))
    ));
    let no_ca = BrokerInfo {
        urls: vec!["https://a".into()],
        ca_pem: String::new(),
    };
    assert!(matches!(
        BrokerClient::anonymous(&no_ca, None),
        Err(ClientError::Bundle(_))
    ));
}

#[test]
fn queries_are_escaped() {
    assert_eq!(
        connect::escape("a-B_9.~ &=%/\u{e9}"),
        "a-B_9.~%20%26%3D%25%2F%C3%A9"
    );
}

#[test]
fn a_request_for_a_certificate_is_made_from_a_key_of_ours() {
    let key = new_tls_key().unwrap();
    assert!(csr_pem(&key).unwrap().contains("BEGIN CERTIFICATE REQUEST"));
    assert!(matches!(csr_pem("no key"), Err(ClientError::Identity(_))));
}

#[test]
fn a_certificate_of_another_key_is_refused_before_it_is_used() {
    let certificate = authority();
    let key = new_tls_key().unwrap();
    let broker = broker(&["https://a"]);
    assert!(matches!(
        BrokerClient::with_identity(&broker, &certificate, &key, None),
        Err(ClientError::Identity(_))
    ));
}
