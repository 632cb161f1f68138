//! Signs service account tokens as an API server does, and as one who would like to be one.

use std::process::Command;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaEncoding,
    RsaKeyPair,
};
use serde_json::{Value, json};

/// A signing key with its name.
pub(crate) struct Signer {
    kid: String,
    pair: Pair,
}

enum Pair {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

impl Signer {
    /// A new P-256 key.
    pub(crate) fn ec(kid: &str) -> Self {
        let random = SystemRandom::new();
        let how = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(how, &random).expect("a key that signs");
        let pair =
            EcdsaKeyPair::from_pkcs8(how, pkcs8.as_ref(), &random).expect("a key that signs");
        Self {
            kid: kid.to_owned(),
            pair: Pair::Ec(Box::new(pair)),
        }
    }

    /// The RSA key of this process: they take long to make.
    pub(crate) fn rsa(kid: &str) -> Self {
        static KEY: OnceLock<Vec<u8>> = OnceLock::new();
        let pkcs8 = KEY.get_or_init(|| {
            let made = Command::new("openssl")
                .args(["genpkey", "-algorithm", "RSA", "-pkeyopt"])
                .args(["rsa_keygen_bits:2048", "-outform", "DER"])
                .output()
                .expect("this test makes an RSA key with `openssl`: install it");
            assert!(made.status.success(), "{made:?}");
            made.stdout
        });
        let pair = RsaKeyPair::from_pkcs8(pkcs8)
            .or_else(|_| RsaKeyPair::from_der(pkcs8))
            .expect("a key that signs");
        Self {
            kid: kid.to_owned(),
            pair: Pair::Rsa(Box::new(pair)),
        }
    }

    pub(crate) fn alg(&self) -> &'static str {
        match self.pair {
            Pair::Ec(_) => "ES256",
            Pair::Rsa(_) => "RS256",
        }
    }

    /// The public key, as `/openid/v1/jwks` shows it.
    pub(crate) fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({"use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
            }
            Pair::Rsa(pair) => {
                let key = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256",
                    "n": URL_SAFE_NO_PAD.encode(key.n), "e": URL_SAFE_NO_PAD.encode(key.e)})
            }
        }
    }

    /// A token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": self.alg(), "kid": self.kid}), claims)
    }

    /// A token with this header, signed by the key's own algorithm whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_by(&RSA_PKCS1_SHA256, header, claims)
    }

    /// As `sign`, by another algorithm of RSA.
    pub(crate) fn sign_by(
        &self,
        rsa: &'static dyn RsaEncoding,
        header: &Value,
        claims: &Value,
    ) -> String {
        let message = unsigned(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Ec(pair) => pair
                .sign(&random, message.as_bytes())
                .expect("a key that signs")
                .as_ref()
                .to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(rsa, &random, message.as_bytes(), &mut signature)
                    .expect("a key that signs");
                signature
            }
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims as they are signed.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// What an API server says of a pod's token: account, node, and when it was made, in seconds.
pub(crate) fn claims(account: &str, node: &str, at: u64) -> Value {
    json!({
        "aud": ["subsea-broker"], "exp": at + 3600, "iat": at, "nbf": at,
        "iss": "https://kubernetes.default.svc.cluster.local",
        "jti": "4b7a3b62-1c5e-4a0d-9a43-000000000000",
        "kubernetes.io": {
            "namespace": "subsea",
            "node": {"name": node, "uid": "7d0c0b6e-0000-0000-0000-000000000000"},
            "pod": {"name": "subsea-x", "uid": "9f0c0b6e-0000-0000-0000-000000000000"},
            "serviceaccount": {"name": account, "uid": "1f0c0b6e-0000-0000-0000-000000000000"}
        },
        "sub": format!("system:serviceaccount:subsea:{account}")
    })
}

/// How the broker is told of a cluster's service accounts.
pub(crate) fn accounts(signers: &[&Signer]) -> Value {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({
        "issuer": "https://kubernetes.default.svc.cluster.local", "namespace": "subsea",
        "keys": {"keys": keys}
    })
}
