//! A gateway as the broker sees it: joins, shows its key and is registered.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use rcgen::{CertificateParams, KeyPair};
use ring::hmac;
use subsea_api::PublicKey;
use subsea_api::join_file::JoinFile;
use subsea_api::member::{
    Challenge, CidrRequests, GatewayRegistration, JoinRequest, JoinResponse, Lease,
    ListenerRegistration, proof_message,
};
use subsea_api::snapshot::{Gateway, Listener, ListenerState};
use tokio_rustls::TlsConnector;
use x25519_dalek::StaticSecret;

use crate::client;

/// What is made before the clock runs: the token, the key and the certificate request.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) role: &'static str,
    file: JoinFile,
    key_pem: String,
    csr_pem: String,
}

/// An enrolled gateway.
pub(crate) struct Member {
    pub(crate) tls: TlsConnector,
    address: SocketAddr,
    joined: JoinResponse,
    number: u32,
}

impl Identity {
    pub(crate) fn new(file: JoinFile, role: &'static str) -> Self {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        Self {
            role,
            file,
            key_pem: key.serialize_pem(),
            csr_pem: csr.pem().unwrap(),
        }
    }

    pub(crate) async fn join(self, address: SocketAddr, number: u32) -> Member {
        let cidrs = if self.role == "member" {
            CidrRequests {
                pod: vec!["auto/24".parse().unwrap()],
                service: vec!["auto/24".parse().unwrap()],
                ..CidrRequests::default()
            }
        } else {
            CidrRequests::default()
        };
        let ca = &self.file.broker.ca_pem;
        let request = JoinRequest {
            fleet: self.file.fleet.clone(),
            token: self.file.token.clone(),
            cluster: self.file.cluster.clone(),
            node: format!("{}-1", self.role).parse().unwrap(),
            csr_pem: self.csr_pem,
            cidrs,
        };
        let mut sender = client::connect(address, &client::tls(ca, None))
            .await
            .unwrap();
        let joined: JoinResponse =
            client::call(&mut sender, Method::POST, "/v1/join", &request).await;
        Member {
            tls: client::tls(ca, Some((&joined.certificate_pem, &self.key_pem))),
            address,
            joined,
            number: number * 2 + u32::from(self.role == "gateway"),
        }
    }
}

impl Member {
    /// Registers one listener, with proof of its key.
    pub(crate) async fn register(&self) {
        let mut sender = client::connect(self.address, &self.tls).await.unwrap();
        let challenge: Challenge =
            client::call(&mut sender, Method::POST, "/v1/challenge", &()).await;
        let mut bytes = [42; 32];
        // Not at either end, where clamping makes keys equal (RFC 7748, section 5).
        bytes[8..12].copy_from_slice(&self.number.to_le_bytes());
        let secret = StaticSecret::from(bytes);
        let public = x25519_dalek::PublicKey::from(&secret);
        let public_key = PublicKey::from_bytes(*public.as_bytes()).unwrap();
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(
            *challenge.broker_key.as_bytes(),
        ));
        let JoinResponse {
            fleet,
            cluster,
            node,
            ..
        } = &self.joined;
        let message = proof_message(fleet, cluster, node, &public_key, &challenge.nonce);
        let key = hmac::Key::new(hmac::HMAC_SHA256, shared.as_bytes());
        let [_, _, high, low] = self.number.to_be_bytes();
        let listener = Listener {
            id: "main".into(),
            public_key,
            port: 51820,
            stripe: 0,
            slot: 0,
            for_slot: None,
            state: ListenerState::Active,
            candidates: vec![SocketAddr::from(([192, 0, high + 2, low], 51820))],
        };
        let registration = GatewayRegistration {
            listeners: vec![ListenerRegistration {
                listener,
                nonce: challenge.nonce,
                proof: STANDARD.encode(hmac::sign(&key, &message)),
            }],
            node_addresses: Vec::new(),
        };
        let path = format!("/v1/clusters/{cluster}/gateways/{node}");
        let _: Gateway = client::call(&mut sender, Method::PUT, &path, &registration).await;
    }

    /// Renews the lease on a connection of its own: the broker closes one that is idle between two renewals.
    pub(crate) async fn renew(&self) {
        let mut sender = client::connect(self.address, &self.tls).await.unwrap();
        let JoinResponse { cluster, node, .. } = &self.joined;
        let path = format!("/v1/clusters/{cluster}/gateways/{node}/lease");
        let _: Lease = client::call(&mut sender, Method::POST, &path, &()).await;
    }
}
