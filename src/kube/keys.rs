//! Tells the broker by which keys the service accounts of this cluster sign, whenever these change: after a rotation, nodes
//! could not enrol otherwise. Shell.

use std::time::Duration;

use kube::Client;
use subsea_api::enrolment::ServiceAccountKeys;
use subsea_api::jwks::Jwks;

use super::connect::connect;
use super::fault::Fault;
use crate::broker_client::BrokerClient;
use crate::control::around::Notebook;
use crate::membership::clock::random;
use crate::membership::{backoff, chain, standing};
use crate::state::StateDir;

/// Where an API server publishes them.
const PATH: &str = "/openid/v1/jwks";
/// How often they are looked at.
const LOOK: Duration = Duration::from_mins(1);
/// The shortest and the longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(10));
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Follows the keys until the task is dropped. `mark` is that of our own packets.
pub async fn follow(state: StateDir, mark: u32, notes: Notebook) {
    let mut failures = 0_u32;
    // What the broker was told by this process: a new process tells it once.
    let mut told = None;
    loop {
        let step = tokio::time::timeout(PATIENCE, step(&state, mark, told.as_ref()));
        let result = step
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let pause = match result {
            Ok(keys) => {
                failures = 0;
                notes.problem("service-account-keys", None);
                told = Some(keys);
                LOOK
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                // Nodes that are members do not need it; a broker that is away is shown already.
                if failures >= 3 {
                    let what = format!(
                        "the broker could not be told by which keys this cluster's service accounts sign: {error}"
                    );
                    notes.problem("service-account-keys", Some(what));
                }
                backoff::delay(failures, RETRY.0, RETRY.1, random())
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Reads the keys, and tells the broker when they are not those that it was told.
async fn step(state: &StateDir, mark: u32, told: Option<&Jwks>) -> Result<Jwks, String> {
    let client = connect(None).await.map_err(|error| chain(&error))?;
    let keys = read(&client).await?;
    if told != Some(&keys) {
        let broker = broker(state, mark)?;
        let request = ServiceAccountKeys { keys: keys.clone() };
        let put = broker.put_service_accounts(&request).await;
        put.map_err(|error| chain(&error))?;
        tracing::info!("the broker knows the keys of this cluster's service accounts");
    }
    Ok(keys)
}

async fn read(client: &Client) -> Result<Jwks, String> {
    let request = hyper::Request::get(PATH).body(Vec::new());
    let request = request.map_err(|error| chain(&error))?;
    let text = client.request_text(request).await;
    let text = text.map_err(|error| Fault::of(&error, false).describe(&format!("get {PATH}")))?;
    Jwks::parse(&text).map_err(|error| chain(&error))
}

/// A client with what the state directory has now: the certificate is renewed there.
pub(super) fn broker(state: &StateDir, mark: u32) -> Result<BrokerClient, String> {
    let failed = |error: crate::state::StateError| chain(&error);
    let missing = || "this node is no member yet".to_owned();
    let membership = state.membership().map_err(failed)?.ok_or_else(missing)?;
    let certificate = state.certificate().map_err(failed)?.ok_or_else(missing)?;
    let key = state.tls_key().map_err(failed)?.ok_or_else(missing)?;
    let snapshot = state.snapshot().ok().flatten();
    let last = snapshot.as_ref().map(|snapshot| &snapshot.broker);
    let info = standing::broker(last, &membership.broker);
    let client = BrokerClient::with_identity(&info, &certificate, &key, Some(mark));
    client.map_err(|error| chain(&error))
}
