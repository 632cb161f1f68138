//! A node of a cluster in Kubernetes enrols: its service account token says which it is, the cluster's credential that
//! the cluster is a member. Shell; `proven.rs` decides.
//!
//! As with a join, the key is on disk before the broker hears of it, and `member.json` is written last: it may die at any
//! point and be repeated.

use std::path::Path;
use std::time::SystemTime;

use subsea_api::enrolment::EnrolRequest;
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::{ServiceAccountToken, Token};

use super::error::EnrolError;
use super::proven::{Wanted, is_renewable, same_authority, with_urls};
use super::{Joined, keep};
use crate::broker_client::{BrokerClient, ClientError, csr_pem};
use crate::membership::certificate;
use crate::membership::clock::wall;
use crate::state::{Lock, Membership, StateDir};

/// Enrols this node and keeps the result in the state directory, which it makes when there is none. A node that is
/// enrolled already, with a certificate that is in force or can be renewed, asks nobody.
///
/// # Errors
/// [`EnrolError`]; it can be repeated. [`EnrolError::OtherNode`] when the directory belongs to another node, cluster or
/// fleet.
pub async fn by_service_account(
    enrolment: &EnrolmentFile,
    credential: &Token,
    token: &ServiceAccountToken,
    state_dir: &Path,
) -> Result<Joined, EnrolError> {
    let wanted = Wanted::of(enrolment, token)?;
    // The broker's bundle is read before anything is made on disk.
    let client = BrokerClient::anonymous(&enrolment.broker, None)?;
    let state = StateDir::create(state_dir)?;
    let _lock = state.lock()?;
    let Some(earlier) = state.membership()? else {
        return ask(&client, enrolment, credential, token, &wanted, &state).await;
    };
    wanted.check_same(&earlier, state.path())?;
    if !is_usable(&state, &earlier)? {
        return ask(&client, enrolment, credential, token, &wanted, &state).await;
    }
    if same_authority(&earlier.broker, &enrolment.broker) {
        return already(&state, earlier, enrolment);
    }
    // The fleet's broker was made anew, or the Secret is older than what we know.
    match ask(&client, enrolment, credential, token, &wanted, &state).await {
        Err(EnrolError::Client(
            error @ (ClientError::Unreachable { .. }
            | ClientError::WrongCa { .. }
            | ClientError::Tls { .. }),
        )) => {
            tracing::warn!(%error, "the enrolment names another authority of the broker than this node knows, and cannot be used: going on with what this node knows");
            Ok(enrolled(earlier, true))
        }
        other => other,
    }
}

/// Enrols this node anew although it looks enrolled: for when the broker says that it is no member (any more), or its
/// certificate has lapsed. Whoever calls owns the state directory.
///
/// # Errors
/// As [`by_service_account`].
pub async fn by_service_account_again(
    enrolment: &EnrolmentFile,
    credential: &Token,
    token: &ServiceAccountToken,
    state: &StateDir,
    _owned: &Lock,
) -> Result<Joined, EnrolError> {
    let wanted = Wanted::of(enrolment, token)?;
    if let Some(earlier) = state.membership()? {
        wanted.check_same(&earlier, state.path())?;
    }
    let client = BrokerClient::anonymous(&enrolment.broker, None)?;
    ask(&client, enrolment, credential, token, &wanted, state).await
}

async fn ask(
    client: &BrokerClient,
    enrolment: &EnrolmentFile,
    credential: &Token,
    token: &ServiceAccountToken,
    wanted: &Wanted,
    state: &StateDir,
) -> Result<Joined, EnrolError> {
    let key = state.tls_key_or_create()?;
    let request = EnrolRequest {
        fleet: enrolment.fleet.clone(),
        cluster: enrolment.cluster.clone(),
        credential: credential.clone(),
        service_account_token: token.clone(),
        csr_pem: csr_pem(&key)?,
    };
    let answer = client.enrol(&request).await?;
    if answer.role != wanted.role {
        return Err(ClientError::Protocol(format!(
            "the broker gave the role `{}`, and `{}` was asked for",
            answer.role, wanted.role
        ))
        .into());
    }
    // Also checks that the certificate is for our key, before it is kept.
    BrokerClient::with_identity(&answer.broker, &answer.certificate_pem, &key, None)?;
    let asked = (&wanted.fleet, &wanted.cluster, &wanted.node);
    let membership = keep(state, asked, None, answer)?;
    Ok(enrolled(membership, false))
}

/// Whether the directory's certificate ended so long ago that the broker does not renew it any more. One that cannot be
/// read has not.
pub(crate) fn is_lapsed(state: &StateDir) -> bool {
    let pem = state.certificate().ok().flatten();
    let validity = pem.and_then(|pem| certificate::read(&pem).ok());
    validity.is_some_and(|validity| !is_renewable(validity, wall(SystemTime::now())))
}

/// Whether the directory holds a certificate for its key, in force or renewable.
fn is_usable(state: &StateDir, earlier: &Membership) -> Result<bool, EnrolError> {
    let (Some(key), Some(pem)) = (state.tls_key()?, state.certificate()?) else {
        return Ok(false);
    };
    let in_force = certificate::read(&pem)
        .is_ok_and(|validity| is_renewable(validity, wall(SystemTime::now())));
    Ok(in_force && BrokerClient::with_identity(&earlier.broker, &pem, &key, None).is_ok())
}

/// Keeps what is new in the Secret of the broker's addresses.
fn already(
    state: &StateDir,
    mut membership: Membership,
    enrolment: &EnrolmentFile,
) -> Result<Joined, EnrolError> {
    if let Some(broker) = with_urls(&membership.broker, &enrolment.broker) {
        membership.broker = broker;
        state.write_membership(&membership)?;
    }
    Ok(enrolled(membership, true))
}

fn enrolled(membership: Membership, already: bool) -> Joined {
    Joined {
        membership,
        already,
        warnings: Vec::new(),
    }
}
