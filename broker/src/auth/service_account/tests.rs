//! Which tokens prove something, and that hostile ones prove nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use ring::signature::{RSA_PKCS1_SHA512, RSA_PSS_SHA256};
use ring::{digest, hmac};
use serde_json::{Value, json};

use super::signer::{Signer, accounts, claims, unsigned};
use super::*;

const NOW: u64 = 1_800_000_000;

fn known(signers: &[&Signer]) -> ServiceAccounts {
    serde_json::from_value(accounts(signers)).unwrap()
}

fn check(token: &str, known: &ServiceAccounts) -> Result<Proven, Refused> {
    let token = token.parse().map_err(|_| Refused::Malformed)?;
    verify(&token, known, UnixMillis(NOW * 1000))
}

fn gateway() -> Value {
    claims("subsea-gateway", "node-1", NOW)
}

#[test]
fn tokens_of_both_algorithms_prove_account_and_node() {
    let (ec, rsa) = (Signer::ec("e"), Signer::rsa("r"));
    let known = known(&[&ec, &rsa]);
    for signer in [&ec, &rsa] {
        for (name, account) in [
            ("subsea-gateway", Account::Gateway),
            ("subsea-agent", Account::Agent),
            ("subsea-operator", Account::Operator),
            ("subsea-admission", Account::Admission),
        ] {
            let proven = check(&signer.token(&claims(name, "node-1", NOW)), &known).unwrap();
            assert_eq!(proven.account, account);
            assert_eq!(proven.node.unwrap().as_str(), "node-1");
        }
    }
}

#[test]
fn the_time_is_the_argument_with_a_minute_of_leeway() {
    let signer = Signer::ec("e");
    let known = known(&[&signer]);
    let token: ServiceAccountToken = signer.token(&gateway()).parse().unwrap();
    let at = |seconds: u64| verify(&token, &known, UnixMillis(seconds * 1000)).map(|_| ());
    assert_eq!(at(NOW - 61), Err(Refused::NotYet));
    assert_eq!(at(NOW - 60), Ok(()));
    assert_eq!(at(NOW + 3600 + 59), Ok(()));
    assert_eq!(at(NOW + 3600 + 60), Err(Refused::Expired));
    assert_eq!(at(u64::MAX / 1000), Err(Refused::Expired));
    let mut forever = gateway();
    forever["exp"] = json!(u64::MAX);
    forever["nbf"] = json!(0);
    assert!(check(&signer.token(&forever), &known).is_ok());
    forever.as_object_mut().unwrap().remove("exp");
    assert_eq!(
        check(&signer.token(&forever), &known),
        Err(Refused::Malformed),
        "a token without an end"
    );
}

#[test]
fn claims_are_held_against_what_was_kept() {
    let signer = Signer::ec("e");
    let known = known(&[&signer]);
    let with = |name: &str, value: Value| {
        let mut claims = gateway();
        claims[name] = value;
        check(&signer.token(&claims), &known)
    };
    assert_eq!(with("iss", json!("https://other")), Err(Refused::Issuer));
    for aud in [
        json!("subsea"),
        json!([]),
        json!(["https://kubernetes.default.svc"]),
        json!(["subsea-broker2", "xsubsea-broker"]),
    ] {
        assert_eq!(with("aud", aud), Err(Refused::Audience));
    }
    assert_eq!(with("aud", json!(null)), Err(Refused::Malformed));
    assert!(with("aud", json!("subsea-broker")).is_ok());
    assert!(with("aud", json!(["x", "subsea-broker"])).is_ok());
    for sub in [
        "system:serviceaccount:kube-system:subsea-gateway",
        "system:serviceaccount:subsea:default",
        "system:serviceaccount:subsea:subsea-gateway2",
        "subsea-gateway",
    ] {
        assert_eq!(with("sub", json!(sub)), Err(Refused::Account), "{sub}");
    }
    let unbound = with("kubernetes.io", json!({"namespace": "subsea"})).unwrap();
    assert_eq!(unbound.node, None);
}

#[test]
fn another_key_is_no_key() {
    let (ours, theirs, unknown) = (Signer::ec("k"), Signer::ec("k"), Signer::ec("other"));
    let known = known(&[&ours]);
    assert_eq!(
        check(&theirs.token(&gateway()), &known),
        Err(Refused::Signature),
        "the name of a key is not the key"
    );
    assert_eq!(
        check(&unknown.token(&gateway()), &known),
        Err(Refused::UnknownKey)
    );
    // Claims of one token under the signature of another.
    let (mine, other) = (
        ours.token(&gateway()),
        ours.token(&claims("subsea-agent", "node-2", NOW)),
    );
    let (head, _) = mine.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    assert_eq!(
        check(&format!("{head}.{signature}"), &known),
        Err(Refused::Signature)
    );
}

#[test]
fn the_algorithm_is_the_keys_whatever_the_header_says() {
    let (ec, rsa) = (Signer::ec("e"), Signer::rsa("r"));
    let known = known(&[&ec, &rsa]);
    let head = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    for alg in [
        "none", "None", "", "HS256", "RS512", "PS256", "rs256", "ES256",
    ] {
        let token = rsa.sign(&head(alg, "r"), &gateway());
        assert_eq!(check(&token, &known), Err(Refused::Algorithm), "{alg}");
    }
    for alg in ["none", "HS256", "RS256", "ES384", "EdDSA"] {
        let token = ec.sign(&head(alg, "e"), &gateway());
        assert_eq!(check(&token, &known), Err(Refused::Algorithm), "{alg}");
    }
    // Signed by another algorithm of the same key, and honest or not about it.
    for (how, alg) in [
        (
            &RSA_PKCS1_SHA512 as &'static dyn ring::signature::RsaEncoding,
            "RS512",
        ),
        (&RSA_PSS_SHA256, "PS256"),
    ] {
        let honest = rsa.sign_by(how, &head(alg, "r"), &gateway());
        assert_eq!(check(&honest, &known), Err(Refused::Algorithm), "{alg}");
        let lying = rsa.sign_by(how, &head("RS256", "r"), &gateway());
        assert_eq!(check(&lying, &known), Err(Refused::Signature), "{alg}");
    }
    // One key's name over the other's signature.
    let crossed = rsa.sign(&head("ES256", "e"), &gateway());
    assert_eq!(check(&crossed, &known), Err(Refused::Signature));
    let crossed = ec.sign(&head("RS256", "r"), &gateway());
    assert_eq!(check(&crossed, &known), Err(Refused::Signature));
}

#[test]
fn a_public_key_is_no_secret() {
    let (ec, rsa) = (Signer::ec("e"), Signer::rsa("r"));
    let known = known(&[&ec, &rsa]);
    for signer in [&ec, &rsa] {
        let jwk = signer.jwk();
        let raw = |name: &str| {
            let text = jwk[name].as_str().unwrap_or_default();
            URL_SAFE_NO_PAD.decode(text).unwrap()
        };
        let point = [&[4][..], &raw("x"), &raw("y")].concat();
        for secret in [
            raw("n"),
            point,
            jwk.to_string().into_bytes(),
            jwk["n"].to_string().into_bytes(),
            Vec::new(),
        ] {
            for alg in ["HS256", signer.alg()] {
                let message =
                    unsigned(&json!({"alg": alg, "kid": signer.jwk()["kid"]}), &gateway());
                let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
                let tag = hmac::sign(&key, message.as_bytes());
                let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
                assert!(
                    matches!(
                        check(&token, &known),
                        Err(Refused::Algorithm | Refused::Signature)
                    ),
                    "{alg}"
                );
            }
        }
    }
}

#[test]
fn signatures_that_are_none_are_refused() {
    let (ec, rsa) = (Signer::ec("e"), Signer::rsa("r"));
    let known = known(&[&ec, &rsa]);
    for signer in [&ec, &rsa] {
        let head = json!({"alg": signer.alg(), "kid": signer.jwk()["kid"]});
        let message = unsigned(&head, &gateway());
        let hash = digest::digest(&digest::SHA256, message.as_bytes());
        for signature in [
            vec![0; 64],
            vec![0; 256],
            vec![0xff; 64],
            vec![0xff; 256],
            vec![1],
            vec![0; 4096],
            hash.as_ref().to_vec(),
        ] {
            let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
            assert_eq!(check(&token, &known), Err(Refused::Signature));
        }
        assert_eq!(
            check(&format!("{message}."), &known),
            Err(Refused::Malformed)
        );
        assert_eq!(check(&message, &known), Err(Refused::Malformed));
    }
    // A point that is on no curve.
    let mut off = ec.jwk();
    off["y"] = json!(URL_SAFE_NO_PAD.encode([7; 32]));
    let mut known = accounts(&[]);
    known["keys"] = json!({"keys": [off]});
    let known: ServiceAccounts = serde_json::from_value(known).unwrap();
    assert_eq!(
        check(&ec.token(&gateway()), &known),
        Err(Refused::Signature)
    );
}

fn base64url() -> impl Strategy<Value = char> {
    prop::char::ranges(vec!['a'..='z', 'A'..='Z', '0'..='9', '-'..='-', '_'..='_'].into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_token_with_one_character_changed_proves_nothing(at in any::<prop::sample::Index>(), to in base64url()) {
        let signer = Signer::ec("e");
        let known = known(&[&signer]);
        let token = signer.token(&gateway());
        let mut changed: Vec<char> = token.chars().collect();
        let at = at.index(changed.len());
        prop_assume!(changed[at] != to);
        changed[at] = to;
        let changed: String = changed.into_iter().collect();
        prop_assert!(check(&changed, &known).is_err(), "{changed}");
    }

    #[test]
    fn whatever_comes_is_refused_without_a_panic(
        head in "\\PC{0,60}", body in "\\PC{0,200}", signature in prop::collection::vec(any::<u8>(), 0..300),
        alg in prop::sample::select(vec!["ES256", "RS256", "HS256", "none", "\u{0}"]), whole in "\\PC{0,80}",
    ) {
        let (ec, rsa) = (Signer::ec("e"), Signer::rsa("r"));
        let known = known(&[&ec, &rsa]);
        let signature = URL_SAFE_NO_PAD.encode(signature);
        for kid in ["e", "r", "x"] {
            let honest = json!({"alg": alg, "kid": kid}).to_string();
            for head in [head.as_str(), honest.as_str()] {
                let parts = [head, body.as_str()].map(|part| URL_SAFE_NO_PAD.encode(part));
                let token = format!("{}.{}.{signature}", parts[0], parts[1]);
                prop_assert!(check(&token, &known).is_err());
            }
        }
        prop_assert!(check(&whole, &known).is_err());
    }

    /// Signed as it should be, so that the claims are read.
    #[test]
    fn whatever_is_signed_is_read_without_a_panic(body in "\\PC{0,200}", field in "[a-z.]{1,16}", number in any::<i64>()) {
        let signer = Signer::ec("e");
        let known = known(&[&signer]);
        prop_assert!(check(&signer.token(&json!(body)), &known).is_err());
        let mut odd = gateway();
        odd[field.as_str()] = json!(number);
        odd["exp"] = json!(number);
        let checked = check(&signer.token(&odd), &known);
        let expected = u64::try_from(number).is_ok_and(|exp| exp.saturating_add(60) > NOW);
        prop_assert_eq!(checked.is_ok(), expected);
    }
}
