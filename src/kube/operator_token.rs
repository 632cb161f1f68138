//! A token of the operator's account, by which the broker is asked to admit a cluster, and told that it leaves. Shell.

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use subsea_api::ServiceAccountToken;
use subsea_api::service_account::{AUDIENCE, Account};

use super::error::KubeError;

/// How long it lives, in seconds: the shortest that there is.
const LIFE: i64 = 600;

/// Asks the API server for one.
///
/// # Errors
/// [`KubeError`]; [`KubeError::Missing`] without the account.
pub(super) async fn operator_token(
    client: &Client,
    namespace: &str,
) -> Result<ServiceAccountToken, KubeError> {
    const VERB: &str = "make a token of";
    let account = Account::Operator.as_str();
    let what = format!("ServiceAccount {namespace}/{account}");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        metadata: ObjectMeta::default(),
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(LIFE),
            bound_object_ref: None,
        },
        status: None,
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|e| KubeError::of(VERB, &what, e))?;
    let token = answer.status.map(|status| status.token).unwrap_or_default();
    token.parse().map_err(|_| KubeError::Refused {
        // It had said yes.
        code: 201,
        verb: VERB,
        what,
        message: "the API server gave no usable token".to_owned(),
    })
}
