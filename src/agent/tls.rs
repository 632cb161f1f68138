//! TLS between agents: both ends show the certificate that the broker gave to their node, and each looks whose it is. Shell.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use subsea_api::{ClusterId, FleetName, NodeName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::seal::{End, LABEL, MATERIAL, Seal};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// A certificate or key cannot be read.
    #[error("the {0} cannot be read")]
    Unreadable(&'static str),
    /// It does not fit together.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    /// The other end is not who it should be.
    #[error("the other end is not an agent of this cluster: {0}")]
    Stranger(String),
    /// The session gives no key.
    #[error("no key could be derived from the session: {0}")]
    Export(rustls::Error),
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::other(error)
    }
}

/// Both roles of an agent.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

impl Tls {
    /// Trusts the fleet's authorities and nothing else; TLS 1.3 only.
    pub(super) fn new(ca: &str, certificate: &str, key: &str) -> Result<Self, TlsError> {
        let read = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()
        };
        let mut roots = RootCertStore::empty();
        for authority in read(ca).map_err(|_| TlsError::Unreadable("fleet's CA certificate"))? {
            roots
                .add(authority)
                .map_err(|_| TlsError::Unreadable("fleet's CA certificate"))?;
        }
        let chain = read(certificate).map_err(|_| TlsError::Unreadable("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| TlsError::Unreadable("key of the certificate"))?;
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(&error))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&error))?;
        // A session that is taken up again shows no certificate.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // The certificate of a node has no host name: what is looked at instead is who holds it, in `holder`.
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OfTheFleet(verifier)))
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&error))?;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// Believes a node that accepts as it would one that connects: both have the same kind of certificate.
#[derive(Debug)]
struct OfTheFleet(Arc<dyn ClientCertVerifier>);

impl ServerCertVerifier for OfTheFleet {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The node whose agent showed `chain`, if it is one of our cluster.
pub(super) fn holder(
    chain: Option<&[CertificateDer<'_>]>,
    fleet: &FleetName,
    cluster: &ClusterId,
) -> Result<NodeName, TlsError> {
    let stranger = |text: &str| TlsError::Stranger(text.to_owned());
    let first = chain.and_then(<[_]>::first);
    let first = first.ok_or_else(|| stranger("it showed no certificate"))?;
    let (_, certificate) =
        X509Certificate::from_der(first).map_err(|_| TlsError::Unreadable("certificate"))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| TlsError::Unreadable("certificate"))?;
    let uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        });
    let prefix = format!("spiffe://{fleet}/cluster/{cluster}/agent/");
    let uris: Vec<&str> = uris.collect();
    let [uri] = uris.as_slice() else {
        return Err(stranger("its certificate has not exactly one name"));
    };
    let node = uri.strip_prefix(&prefix).ok_or_else(|| stranger(uri))?;
    node.parse().map_err(|_| stranger(uri))
}

/// The keys of the echo that belongs to a session.
pub(super) fn seal<D>(session: &rustls::ConnectionCommon<D>, end: End) -> Result<Seal, TlsError> {
    let material = zeroize::Zeroizing::new([0; MATERIAL]);
    let mut material = material;
    session
        .export_keying_material(&mut *material, LABEL, None)
        .map_err(TlsError::Export)?;
    Ok(Seal::new(&material, end))
}
