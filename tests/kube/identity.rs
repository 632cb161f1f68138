//! Service accounts: what their tokens say, who can check them, and what they may do.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::bed::{self, BROKER_AUDIENCE, Plane};

/// Header and claims, unchecked.
fn decode(token: &str) -> (Value, Value) {
    let parts: Vec<Value> = token
        .split('.')
        .take(2)
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
        .collect();
    (parts[0].clone(), parts[1].clone())
}

fn raw(plane: &Plane, path: &str) -> Value {
    serde_json::from_str(&plane.kubectl(&["get", "--raw", path]).ok()).unwrap()
}

fn jwks(plane: &Plane) -> Vec<Value> {
    let answer = raw(plane, "/openid/v1/jwks");
    answer["keys"].as_array().unwrap().clone()
}

#[test]
fn a_pods_token_says_on_which_node_it_is() {
    let bed = bed::shared();
    for (plane, algorithm, kind) in [(&bed.east, "RS256", "RSA"), (&bed.west, "ES256", "EC")] {
        let namespace = plane.namespace("tokens");
        let node = format!("{namespace}-node");
        plane.fake_node(&node, &["10.11.9.0/24"], "192.0.2.9", &[]);
        plane.service_account(&namespace, "subsea-gateway");
        plane.pod_on(&node, &namespace, "gateway", "subsea-gateway");
        let token = plane.token_of_pod(
            &namespace,
            "subsea-gateway",
            "gateway",
            Some(BROKER_AUDIENCE),
        );
        let (header, claims) = decode(&token);
        assert_eq!(header["alg"], algorithm);
        assert_eq!(claims["iss"], Plane::issuer());
        assert_eq!(claims["aud"], json!([BROKER_AUDIENCE]));
        let subject = format!("system:serviceaccount:{namespace}:subsea-gateway");
        assert_eq!(claims["sub"], json!(subject));
        let bound = &claims["kubernetes.io"];
        assert_eq!(bound["node"]["name"], json!(node), "{claims}");
        assert_eq!(bound["pod"]["name"], "gateway", "{claims}");
        let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(lifetime, 3600);
        // The key that it names is published, and so is the issuer.
        let keys = jwks(plane);
        let key = keys.iter().find(|key| key["kid"] == header["kid"]);
        assert_eq!(key.unwrap()["kty"], kind, "{keys:?}");
        let discovery = raw(plane, "/.well-known/openid-configuration");
        assert_eq!(discovery["issuer"], Plane::issuer());
    }
    assert_ne!(jwks(&bed.east), jwks(&bed.west));
}

#[test]
fn a_token_without_a_pod_names_no_node() {
    let bed = bed::shared();
    let namespace = bed.east.namespace("unbound");
    bed.east.service_account(&namespace, "subsea-operator");
    let token = bed
        .east
        .token(&namespace, "subsea-operator", Some(BROKER_AUDIENCE));
    let (_, claims) = decode(&token);
    assert_eq!(claims["kubernetes.io"]["node"], Value::Null, "{claims}");
    // It is for the broker: the API server takes it from nobody.
    let config = bed.east.kubeconfig_for(&token, bed.east.address());
    let error = bed.east.kubectl_as(&config, &["get", "pods"], "").fails();
    assert!(error.contains("Unauthorized"), "{error}");
}

#[test]
fn a_service_account_may_do_what_rbac_says() {
    let bed = bed::shared();
    let plane = &bed.east;
    let namespace = plane.namespace("rbac");
    plane.service_account(&namespace, "subsea-agent");
    let config = plane.kubeconfig_of(&namespace, "subsea-agent");
    let error = plane
        .kubectl_as(&config, &["-n", &namespace, "get", "secrets"], "")
        .fails();
    assert!(error.contains("is forbidden"), "{error}");
    assert!(error.contains("subsea-agent"), "{error}");
    let role = [
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=secrets",
    ];
    plane
        .kubectl(&[&["-n", &namespace], role.as_slice()].concat())
        .ok();
    let account = format!("--serviceaccount={namespace}:subsea-agent");
    let binding = ["create", "rolebinding", "reader", "--role=reader", &account];
    plane
        .kubectl(&[&["-n", &namespace], binding.as_slice()].concat())
        .ok();
    bed::until("the API server knows the binding", bed::LONG, || {
        let ran = plane.kubectl_as(&config, &["-n", &namespace, "get", "secrets"], "");
        ran.code == Some(0)
    });
    // Nothing more, and nowhere else.
    for refused in [
        ["-n", &namespace, "create", "secret", "generic", "s"].as_slice(),
        &["-n", "kube-system", "get", "secrets"],
        &["get", "nodes"],
    ] {
        let error = plane.kubectl_as(&config, refused, "").fails();
        assert!(error.contains("is forbidden"), "{refused:?}: {error}");
    }
    // The published keys are for every service account.
    let keys = ["get", "--raw", "/openid/v1/jwks"];
    plane.kubectl_as(&config, &keys, "").ok();
}

#[test]
fn keys_of_service_accounts_rotate() {
    let mut bed = bed::exclusive();
    let namespace = bed.west.namespace("rotation");
    bed.west.service_account(&namespace, "subsea-gateway");
    let old = bed.west.token(&namespace, "subsea-gateway", None);
    let before = jwks(&bed.west);
    bed.west.rotate_service_account_key();
    let after = jwks(&bed.west);
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    let new = bed.west.token(&namespace, "subsea-gateway", None);
    assert_ne!(decode(&old).0["kid"], decode(&new).0["kid"]);
    for token in [old, new] {
        let config = bed.west.kubeconfig_for(&token, bed.west.address());
        let whoami = ["auth", "whoami"];
        let said = bed.west.kubectl_as(&config, &whoami, "").ok();
        assert!(said.contains(":subsea-gateway"), "{said}");
    }
}
