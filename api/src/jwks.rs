//! The keys that an API server signs service account tokens with (RFC 7517), as far as they are taken: RSA of 2048 to
//! 8192 bits for RS256, and P-256 for ES256. PURE.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The most keys of a set, those that are left out included.
pub const MAX_KEYS: usize = 16;
/// The longest name of a key.
const MAX_KID: usize = 256;
/// The sizes of RSA moduli, in bits. The verifier takes no larger ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The largest RSA exponent that the verifier takes.
const RSA_EXPONENT: std::ops::RangeInclusive<u64> = 3..=0x1_ffff_ffff;

/// A set of public keys: 1 to 16, each with a name of its own, sorted by it. Keys for other algorithms and uses are left
/// out when a set is read (RFC 7517, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "Document")]
pub struct Jwks {
    keys: Vec<Jwk>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Jwk {
    /// Its name.
    kid: String,
    /// What it is for.
    #[serde(rename = "use")]
    usage: Usage,
    /// What it signs by.
    alg: Algorithm,
    /// Its numbers.
    #[serde(flatten)]
    numbers: Numbers,
}

/// Signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
enum Usage {
    /// Signatures.
    Sig,
}

/// The algorithms that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// ECDSA with P-256 and SHA-256.
    ES256,
}

impl Algorithm {
    /// As headers name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
        }
    }
}

/// The numbers of a public key, in base64url.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kty")]
pub enum Numbers {
    /// For RS256.
    #[serde(rename = "RSA")]
    Rsa {
        /// The modulus.
        n: String,
        /// The exponent.
        e: String,
    },
    /// For ES256.
    #[serde(rename = "EC")]
    Ec {
        /// P-256.
        crv: Curve,
        /// The point's x.
        x: String,
        /// The point's y.
        y: String,
    },
}

/// The curve that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Curve {
    /// secp256r1.
    #[serde(rename = "P-256")]
    P256,
}

/// Why a set of keys is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Not JSON of the shape.
    #[error("it is no set of keys (JWKS): {0}")]
    Syntax(String),
    /// Too many.
    #[error("a set has at most {MAX_KEYS} keys, this one has {0}")]
    TooMany(usize),
    /// None of them is for RS256 or ES256.
    #[error("none of its keys is for RS256 or ES256 signatures")]
    Nothing,
    /// One of them cannot be used.
    #[error("the key `{kid}` cannot be used: {why}")]
    Key {
        /// Which.
        kid: String,
        /// Why.
        why: String,
    },
}

impl Jwks {
    /// Reads the answer of an API server to `/openid/v1/jwks`, of at most 256 KiB.
    ///
    /// # Errors
    /// [`JwksError`].
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        if text.len() > 256 * 1024 {
            return Err(JwksError::Syntax("larger than 256 KiB".to_owned()));
        }
        let document: Document =
            serde_json::from_str(text).map_err(|e| JwksError::Syntax(e.to_string()))?;
        document.try_into()
    }

    /// The keys, by name.
    pub fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    /// The key of this name.
    pub fn find(&self, kid: &str) -> Option<&Jwk> {
        self.keys.iter().find(|key| key.kid == kid)
    }
}

impl Jwk {
    /// Its name.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What it signs by.
    pub fn algorithm(&self) -> Algorithm {
        self.alg
    }

    /// Its numbers.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }
}

/// A set as it comes. What RFC 7517 allows and we do not use is ignored.
#[derive(Deserialize)]
struct Document {
    keys: Vec<AnyKey>,
}

/// A key as it comes.
#[derive(Deserialize)]
struct AnyKey {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl TryFrom<Document> for Jwks {
    type Error = JwksError;
    fn try_from(document: Document) -> Result<Self, JwksError> {
        if document.keys.len() > MAX_KEYS {
            return Err(JwksError::TooMany(document.keys.len()));
        }
        let mut keys = Vec::new();
        for key in document.keys {
            keys.extend(key.take()?);
        }
        keys.sort();
        // An API server that is given a file twice lists it twice.
        keys.dedup();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0].kid == pair[1].kid) {
            return Err(bad(&twice[0].kid, "two keys have this name"));
        }
        if keys.is_empty() {
            return Err(JwksError::Nothing);
        }
        Ok(Self { keys })
    }
}

impl AnyKey {
    /// The key, unless it is for something else than we take.
    fn take(self) -> Result<Option<Jwk>, JwksError> {
        let alg = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Algorithm::RS256,
            ("EC", Some("P-256")) => Algorithm::ES256,
            _ => return Ok(None),
        };
        let other_use = self.usage.is_some_and(|usage| usage != "sig");
        if other_use || self.alg.is_some_and(|named| named != alg.as_str()) {
            return Ok(None);
        }
        let kid = self.kid.unwrap_or_default();
        if kid.is_empty() || kid.len() > MAX_KID || kid.chars().any(char::is_control) {
            let shown: String = kid.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(bad(
                &shown,
                "its name (`kid`) must have 1 to 256 characters",
            ));
        }
        let field = |value: Option<String>, name: &str| {
            value.ok_or_else(|| bad(&kid, format!("it has no `{name}`")))
        };
        let numbers = match alg {
            Algorithm::RS256 => {
                let (n, e) = (field(self.n, "n")?, field(self.e, "e")?);
                check_modulus(&kid, &n)?;
                check_exponent(&kid, &e)?;
                Numbers::Rsa { n, e }
            }
            Algorithm::ES256 => {
                let (x, y) = (field(self.x, "x")?, field(self.y, "y")?);
                for (name, value) in [("x", &x), ("y", &y)] {
                    if decoded(&kid, name, value, 32)?.len() != 32 {
                        return Err(bad(&kid, format!("its `{name}` has not 32 bytes")));
                    }
                }
                let crv = Curve::P256;
                Numbers::Ec { crv, x, y }
            }
        };
        Ok(Some(Jwk {
            kid,
            usage: Usage::Sig,
            alg,
            numbers,
        }))
    }
}

fn check_modulus(kid: &str, n: &str) -> Result<(), JwksError> {
    let bytes = decoded(kid, "n", n, RSA_BITS.end() / 8)?;
    let first = bytes.first().copied().unwrap_or_default();
    if first == 0 {
        return Err(bad(kid, "its modulus begins with zeros"));
    }
    let bits = bytes.len() * 8 - first.leading_zeros() as usize;
    if RSA_BITS.contains(&bits) {
        return Ok(());
    }
    Err(bad(
        kid,
        format!(
            "its modulus has {bits} bits, {} to {} are taken",
            RSA_BITS.start(),
            RSA_BITS.end()
        ),
    ))
}

fn check_exponent(kid: &str, e: &str) -> Result<(), JwksError> {
    let bytes = decoded(kid, "e", e, 8)?;
    let value = bytes
        .iter()
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if bytes.first() == Some(&0) || value % 2 == 0 || !RSA_EXPONENT.contains(&value) {
        return Err(bad(kid, "its exponent is none that is taken"));
    }
    Ok(())
}

fn decoded(kid: &str, name: &str, text: &str, most: usize) -> Result<Vec<u8>, JwksError> {
    let fault = || {
        bad(
            kid,
            format!("its `{name}` is not base64url of at most {most} bytes"),
        )
    };
    if text.len() > most.div_ceil(3) * 4 {
        return Err(fault());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| fault())?;
    if bytes.len() > most {
        return Err(fault());
    }
    Ok(bytes)
}

fn bad(kid: &str, why: impl Into<String>) -> JwksError {
    JwksError::Key {
        kid: kid.to_owned(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn modulus(bits: usize) -> String {
        let mut bytes = vec![0xff; bits.div_ceil(8)];
        bytes[0] = 0xff >> (bits.div_ceil(8) * 8 - bits);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn rsa(kid: &str) -> Value {
        json!({"use": "sig", "kty": "RSA", "kid": kid, "alg": "RS256", "n": modulus(2048), "e": "AQAB"})
    }

    fn ec(kid: &str) -> Value {
        let number = URL_SAFE_NO_PAD.encode([7; 32]);
        json!({"use": "sig", "kty": "EC", "kid": kid, "alg": "ES256", "crv": "P-256", "x": number, "y": number})
    }

    fn set(keys: &[Value]) -> Result<Jwks, JwksError> {
        Jwks::parse(&json!({"keys": keys}).to_string())
    }

    #[test]
    fn the_answer_of_an_api_server_survives_its_text_form() {
        let keys = set(&[rsa("b"), ec("a"), rsa("b")]).unwrap();
        let names: Vec<&str> = keys.keys().iter().map(Jwk::kid).collect();
        assert_eq!(names, ["a", "b"], "sorted, each once");
        assert_eq!(keys.find("a").unwrap().algorithm(), Algorithm::ES256);
        assert_eq!(keys.find("b").unwrap().algorithm(), Algorithm::RS256);
        assert!(keys.find("c").is_none());
        let text = serde_json::to_value(&keys).unwrap();
        assert_eq!(text, json!({"keys": [ec("a"), rsa("b")]}));
        assert_eq!(serde_json::from_value::<Jwks>(text).unwrap(), keys);
    }

    #[test]
    fn keys_for_something_else_are_left_out() {
        let mut others = Vec::new();
        for (name, value) in [
            ("alg", json!("RS512")),
            ("alg", json!("none")),
            ("alg", json!("HS256")),
            ("use", json!("enc")),
            ("kty", json!("oct")),
            ("kty", json!("OKP")),
        ] {
            let mut key = rsa("x");
            key[name] = value;
            others.push(key);
        }
        let mut curve = ec("x");
        curve["crv"] = json!("P-384");
        others.push(curve);
        assert_eq!(set(&others), Err(JwksError::Nothing));
        others.push(rsa("good"));
        assert_eq!(set(&others).unwrap().keys().len(), 1);
        assert_eq!(set(&[]), Err(JwksError::Nothing));
        // Without `alg` the kind of key says it.
        let mut plain = rsa("a");
        plain.as_object_mut().unwrap().remove("alg");
        plain.as_object_mut().unwrap().remove("use");
        plain["x5c"] = json!(["MIIB"]);
        let plain = set(&[plain]).unwrap();
        assert_eq!(plain.keys()[0].algorithm(), Algorithm::RS256);
    }

    #[test]
    fn weak_broken_and_ambiguous_keys_are_refused() {
        let refused = |name: &str, value: Value, of: fn(&str) -> Value| {
            let mut key = of("k");
            key[name] = value;
            set(&[key]).unwrap_err().to_string()
        };
        for (bits, ok) in [(1024, false), (2047, false), (2048, true), (8192, true)] {
            let mut key = rsa("k");
            key["n"] = json!(modulus(bits));
            assert_eq!(set(&[key]).is_ok(), ok, "{bits}");
        }
        assert!(refused("n", json!(modulus(1024)), rsa).contains("1024 bits"));
        for (name, value) in [
            ("n", json!(modulus(8200))),
            ("n", json!("AAAA")),
            ("n", json!("")),
            ("n", json!("a b")),
            ("n", json!(null)),
            ("e", json!("")),
            ("e", json!("AQ")),
            ("e", json!("AA")),
            ("e", json!("AAEAAQ")),
            ("e", json!("_____w")),
            ("e", json!("AQAA")),
            ("kid", json!("")),
            ("kid", json!("k".repeat(257))),
            ("kid", json!("a\nb")),
            ("kid", json!(null)),
        ] {
            let shown = value.to_string();
            if name == "e" && shown == "\"_____w\"" {
                continue; // 32 bits, odd: taken.
            }
            assert!(
                refused(name, value, rsa).contains("cannot be used"),
                "{name} {shown}"
            );
        }
        for (name, value) in [
            ("x", json!(URL_SAFE_NO_PAD.encode([7; 31]))),
            ("y", json!(URL_SAFE_NO_PAD.encode([7; 33]))),
            ("y", json!("AA=")),
            ("x", json!(null)),
        ] {
            assert!(
                refused(name, value, ec).contains("cannot be used"),
                "{name}"
            );
        }
        assert!(
            set(&[rsa("k"), ec("k")])
                .unwrap_err()
                .to_string()
                .contains("two keys")
        );
        let many: Vec<Value> = (0..17).map(|i| rsa(&format!("k{i}"))).collect();
        assert_eq!(set(&many), Err(JwksError::TooMany(17)));
        for text in ["", "{}", "[]", "{\"keys\": {}}", "{\"keys\": [1]}"] {
            assert!(
                matches!(Jwks::parse(text), Err(JwksError::Syntax(_))),
                "{text}"
            );
        }
        assert!(Jwks::parse(&" ".repeat(300_000)).is_err());
    }
}
