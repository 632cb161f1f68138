//! The fleet's authority, the certificates that it signs, and the TLS settings of the server. Shell.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName as Subject, RootCertStore,
};
use serde::{Deserialize, Serialize};
use subsea_api::{FleetName, UnixMillis};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::ZeroizeOnDrop;

use crate::auth::{Fingerprint, Holder, hex};

/// How long the authority and the server certificate live.
const AUTHORITY_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// How long an operator's certificate lives.
pub const ADMIN_LIFE: Duration = Duration::from_hours(365 * 24);
/// Certificates are valid a little before they are made: clocks differ.
const BACKDATE: Duration = Duration::from_mins(5);
/// A server certificate with less time left is made anew at the start.
const SERVER_RENEWAL: Duration = Duration::from_hours(365 * 24);

/// A certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The request is not one.
    #[error("the certificate request cannot be used: {0}")]
    Request(String),
    /// The cryptography failed.
    #[error("could not make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The kept certificates or keys cannot be used.
    #[error("the broker's own certificates cannot be used: {0}")]
    Own(String),
}

/// A certificate and its key as they are kept.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Pair {
    /// PEM.
    pub certificate_pem: String,
    /// PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(key redacted)")
    }
}

/// The server's certificate as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerPair {
    /// The names it is good for, sorted.
    pub hosts: Vec<String>,
    /// When it expires.
    pub expires: UnixMillis,
    /// Itself.
    pub pair: Pair,
}

/// A certificate request whose self-signature was good.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of its public key.
    pub key: Fingerprint,
    /// Of the whole request.
    pub whole: Fingerprint,
    public_key: rcgen::PublicKey,
}

impl Request {
    /// Reads a PEM certificate request. Its subject and extensions count for nothing.
    ///
    /// # Errors
    /// When it is malformed, its signature is bad or its key is not ECDSA P-256.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        let params = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|e| TlsError::Request(e.to_string()))?;
        let public_key = params.public_key;
        if *public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(TlsError::Request("its key is not ECDSA P-256".into()));
        }
        Ok(Self {
            key: Fingerprint::of(&public_key.subject_public_key_info()),
            whole: Fingerprint::of(pem.as_bytes()),
            public_key,
        })
    }
}

/// The fleet's authority.
#[derive(Debug)]
pub struct Authority {
    fleet: FleetName,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    expires: UnixMillis,
}

impl Authority {
    /// Makes the authority of a new fleet.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn create(fleet: &FleetName, now: UnixMillis) -> Result<Pair, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = params(
            &format!("subsea fleet {fleet}"),
            now,
            AUTHORITY_LIFE,
            &serial()?,
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Pair {
            certificate_pem: params.self_signed(&key)?.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Takes the authority up again.
    ///
    /// # Errors
    /// When what was kept is no authority.
    pub fn load(fleet: FleetName, pair: &Pair) -> Result<Self, TlsError> {
        let own = |e: rcgen::Error| TlsError::Own(e.to_string());
        let key = KeyPair::from_pem(&pair.key_pem).map_err(own)?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate_pem, key).map_err(own)?;
        Ok(Self {
            fleet,
            expires: expiry(&certificate_der(&pair.certificate_pem)?)?,
            certificate_pem: pair.certificate_pem.clone(),
            issuer,
        })
    }

    /// Its certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When it expires.
    pub fn expires(&self) -> UnixMillis {
        self.expires
    }

    /// Signs a certificate for a holder.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn sign(
        &self,
        request: &Request,
        holder: &Holder,
        serial: &[u8; 16],
        now: UnixMillis,
        life: Duration,
    ) -> Result<String, TlsError> {
        let params = self.client_params(holder, serial, now, life)?;
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// Makes a key and a certificate for an operator; the fingerprint is that of the key.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn admin(&self, holder: &Holder, now: UnixMillis) -> Result<(Pair, Fingerprint), TlsError> {
        let key = KeyPair::generate()?;
        let params = self.client_params(holder, &serial()?, now, ADMIN_LIFE)?;
        let pair = Pair {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
        };
        Ok((pair, Fingerprint::of(&key.subject_public_key_info())))
    }

    fn client_params(
        &self,
        holder: &Holder,
        serial: &[u8; 16],
        now: UnixMillis,
        life: Duration,
    ) -> Result<CertificateParams, TlsError> {
        let mut params = params(&holder.to_string(), now, life, serial);
        let uri = holder.uri(&self.fleet);
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// The server's certificate: the kept one while it names the same hosts and lives long enough, else a new one.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn server(
        &self,
        kept: Option<ServerPair>,
        mut hosts: Vec<String>,
        now: UnixMillis,
    ) -> Result<ServerPair, TlsError> {
        hosts.sort_unstable();
        hosts.dedup();
        if let Some(kept) = kept
            && kept.hosts == hosts
            && kept.expires > now.plus(SERVER_RENEWAL).min(self.expires)
            && kept.expires > now
        {
            return Ok(kept);
        }
        let key = KeyPair::generate()?;
        let left = self.expires.since(now).min(AUTHORITY_LIFE);
        let mut params = params("subsea broker", now, left, &serial()?);
        for host in &hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = Pair {
            certificate_pem: params.signed_by(&key, &self.issuer)?.pem(),
            key_pem: key.serialize_pem(),
        };
        Ok(ServerPair {
            hosts,
            expires: expiry(&certificate_der(&pair.certificate_pem)?)?,
            pair,
        })
    }

    /// The TLS settings of the server.
    ///
    /// # Errors
    /// When the certificates do not fit each other.
    pub fn server_config(&self, server: &ServerPair) -> Result<rustls::ServerConfig, TlsError> {
        let own = |e: rustls::Error| TlsError::Own(e.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate_der(&self.certificate_pem)?)
            .map_err(own)?;
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| TlsError::Own(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(server.pair.key_pem.as_bytes())
            .map_err(|e| TlsError::Own(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(own)?
            .with_client_cert_verifier(Arc::new(Lenient { inner }))
            .with_single_cert(vec![certificate_der(&server.pair.certificate_pem)?], key)
            .map_err(own)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// 16 random bytes for a serial number: positive and of full length.
///
/// # Errors
/// When the system has no randomness.
pub fn serial() -> Result<[u8; 16], TlsError> {
    let mut bytes: [u8; 16] = random()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes)
}

/// Secure random bytes.
///
/// # Errors
/// When the system has no randomness.
pub fn random<const N: usize>() -> Result<[u8; N], TlsError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| TlsError::Own(format!("no randomness: {e}")))?;
    Ok(bytes)
}

/// A serial number as certificates and records show it.
pub fn serial_text(serial: &[u8; 16]) -> String {
    hex(serial)
}

fn params(name: &str, now: UnixMillis, life: Duration, serial: &[u8; 16]) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(now.0);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name = DistinguishedName::new();
    // A common name has room for 64 characters (RFC 5280); whom it names stands in the URI.
    let short: String = name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, short);
    params
}

fn certificate_der(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| TlsError::Own(e.to_string()))
}

fn expiry(der: &[u8]) -> Result<UnixMillis, TlsError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| TlsError::Own(e.to_string()))?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UnixMillis(seconds.saturating_mul(1000)))
}

/// Lets certificates through that are good but for having expired: who holds one may renew it, and each
/// request refuses it for anything else (`docs/security.md`).
#[derive(Debug)]
struct Lenient {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Lenient {
    fn root_hint_subjects(&self) -> &[Subject] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self
            .inner
            .verify_client_cert(end_entity, intermediates, now);
        let expired = matches!(
            verdict,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        );
        match expiry(end_entity) {
            // All else is judged as of its last second.
            Ok(last) if expired => {
                let last = UnixTime::since_unix_epoch(Duration::from_millis(last.0));
                self.inner
                    .verify_client_cert(end_entity, intermediates, last)
            }
            Ok(_) | Err(_) => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClientCertificate;
    use subsea_api::Role;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn authority() -> Authority {
        let fleet: FleetName = "f1".parse().unwrap();
        Authority::load(fleet.clone(), &Authority::create(&fleet, NOW).unwrap()).unwrap()
    }

    #[test]
    fn a_signed_certificate_names_its_holder_whatever_the_request_says() {
        let key = KeyPair::generate().unwrap();
        let mut asked = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = asked.serialize_request(&key).unwrap().pem().unwrap();
        let request = Request::from_pem(&pem).unwrap();
        let holder = Holder::Node {
            cluster: "east".parse().unwrap(),
            role: Role::Member,
            node: "gw-1".parse().unwrap(),
        };
        let serial = serial().unwrap();
        let pem = authority()
            .sign(&request, &holder, &serial, NOW, Duration::from_hours(24))
            .unwrap();
        let der = certificate_der(&pem).unwrap();
        let read = ClientCertificate::from_der(&der).unwrap();
        assert_eq!(read.holder, holder);
        assert_eq!(read.serial, serial_text(&serial));
        assert_eq!(read.key, request.key);
        assert_eq!(read.not_after, NOW.plus(Duration::from_hours(24)));
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        assert!(!cert.is_ca());
        assert_eq!(cert.validity().not_before.timestamp(), 1_800_000_000 - 300);
    }

    #[test]
    fn requests_with_another_sort_of_key_or_a_broken_signature_are_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        assert!(Request::from_pem(&request.pem().unwrap()).is_err());
        assert!(Request::from_pem("no request").is_err());
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let mut der = request.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(CertificateSigningRequestParams::from_der(&der.into()).is_err());
    }

    #[test]
    fn the_server_certificate_is_made_anew_only_when_its_hosts_change_or_it_ages() {
        let authority = authority();
        let hosts = vec!["10.0.0.1".to_owned(), "b.example".to_owned()];
        let first = authority.server(None, hosts.clone(), NOW).unwrap();
        let again = authority
            .server(Some(first.clone()), hosts.clone(), NOW)
            .unwrap();
        assert_eq!(first.pair.certificate_pem, again.pair.certificate_pem);
        let other = authority
            .server(Some(first.clone()), vec!["b.example".into()], NOW)
            .unwrap();
        assert_ne!(first.pair.certificate_pem, other.pair.certificate_pem);
        assert!(authority.server_config(&other).is_ok());
    }

    #[test]
    fn an_expired_certificate_passes_and_a_foreign_one_does_not() {
        let (own, foreign) = (authority(), authority());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate_der(own.certificate_pem()).unwrap())
            .unwrap();
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .unwrap();
        let lenient = Lenient { inner };
        let admin = Holder::Admin("admin".parse().unwrap());
        let late = UnixTime::since_unix_epoch(Duration::from_millis(NOW.0) + ADMIN_LIFE * 2);
        let check = |authority: &Authority, now| {
            let (pair, _) = authority.admin(&admin, NOW).unwrap();
            let der = certificate_der(&pair.certificate_pem).unwrap();
            lenient.verify_client_cert(&der, &[], now)
        };
        assert!(check(&own, late).is_ok());
        assert!(check(&foreign, late).is_err());
        let early = UnixTime::since_unix_epoch(Duration::from_millis(NOW.0 - 3_600_000));
        assert!(check(&own, early).is_err(), "not yet valid");
    }
}
