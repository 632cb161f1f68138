//! Clusters whose nodes enrol by their service accounts: admitted with a credential and keys, and withdrawn. PURE.

use subsea_api::enrolment::{AdmitRequest, ServiceAccounts, WithdrawRequest};
use subsea_api::jwks::Jwk;
use subsea_api::member::PreflightAdmission;
use subsea_api::service_account::Account;
use subsea_api::snapshot::Gone;
use subsea_api::{
    Allocation, ClusterId, Code, FleetName, Jwks, Problem, Role, ServiceAccountToken, UnixMillis,
};

use super::blocks::take_blocks;
use super::leave::gone;
use super::token::{check_token, used};
use super::{Admission, Decision, Effect, Note, State, TokenUse};
use crate::auth::TokenHash;
use crate::auth::service_account::{Proven, Refused, verify};

/// Admits a cluster, or changes blocks, credential and keys of one that was admitted so, and burns the token. Who changes a
/// cluster shows that it is the same: by the credential or by a key on record.
///
/// # Errors
/// Every refusal changes nothing: the token's own (`token-*`, `fleet-mismatch`), `cidr-conflict`, `cluster-exists`,
/// `key-taken`, `pool-exhausted`, `bad-request`, `service-account-refused`.
pub fn admit(
    state: &State,
    request: &AdmitRequest,
    now: UnixMillis,
) -> Result<Decision<Vec<Allocation>>, Problem> {
    let (id, credential) = (&request.cluster, TokenHash::of(&request.credential));
    let key = credential.fingerprint();
    let token = check_token(state, &request.fleet, id, &request.token, Some(&key), now)?;
    if token.role != Role::Member {
        return Err(Problem::new(
            Code::TokenMismatch,
            format!(
                "the token {} is of role {}, which admits no cluster",
                request.token.id(),
                token.role
            ),
        )
        .hint("create one of role member: `subsea-broker token create --cluster ID`"));
    }
    let (old, admission) = (state.clusters.get(id), state.admissions.get(id));
    if let Some(before) = &token.used {
        // The answer got lost; the same one again, unless something else has happened since.
        let same = admission.is_some_and(|a| a.credential.matches(&credential));
        return match old {
            Some(cluster) if same && before.node.is_none() => {
                Ok(Decision::unchanged(cluster.allocations.clone()))
            }
            Some(_) | None => Err(used(&request.token.id())),
        };
    }
    if old.is_some() && admission.is_none() {
        return Err(joined_otherwise(id));
    }
    if credential.matches(&token.hash) {
        return Err(
            Problem::new(Code::BadRequest, "the credential is the token itself")
                .hint("make a credential of its own"),
        );
    }
    let accounts = &request.service_accounts;
    check_at_home(id, accounts, &request.service_account_token, now)?;
    if let Some(known) = admission {
        let shown = &request.service_account_token;
        check_same(id, known, &credential, shown, now)?;
    }
    check_keys(state, id, &accounts.keys)?;
    let blocks = take_blocks(state, id, &request.cidrs, now)?;
    let mut effects = blocks.effects;
    effects.push(Effect::Admission(
        id.clone(),
        Some(Box::new(Admission {
            credential,
            service_accounts: accounts.clone(),
            at: now,
        })),
    ));
    let mut burnt = token.clone();
    burnt.used = Some(TokenUse {
        node: None,
        key,
        at: now,
    });
    effects.push(Effect::Token(request.token.id(), Some(burnt)));
    let action = if old.is_some() {
        "cluster.change"
    } else {
        "cluster.admit"
    };
    let detail = format!(
        "credential {}, namespace {}, issuer {}, keys {}; {}",
        request.credential.id(),
        accounts.namespace,
        accounts.issuer,
        names(&accounts.keys),
        blocks.text
    );
    let note = Note::new(action, id.as_str(), detail);
    Ok(Decision::changed(blocks.allocations, effects, note))
}

/// An admitted cluster leaves, by a token of its operator's account. One that is no member has left.
///
/// # Errors
/// `fleet-mismatch`, `service-account-refused`.
pub fn withdraw(
    state: &State,
    request: &WithdrawRequest,
    now: UnixMillis,
) -> Result<Decision<()>, Problem> {
    check_fleet(state, &request.fleet)?;
    let id = &request.cluster;
    if !state.clusters.contains_key(id) {
        return Ok(Decision::unchanged(()));
    }
    let admission = state
        .admissions
        .get(id)
        .ok_or_else(|| refused(id, Refused::NotAdmitted))?;
    check_operator(id, admission, &request.service_account_token, now)?;
    Ok(gone(state, id, Gone::Left, now))
}

/// Whether a token is of the cluster's operator account.
///
/// # Errors
/// `service-account-refused`.
pub fn check_operator(
    id: &ClusterId,
    admission: &Admission,
    token: &ServiceAccountToken,
    now: UnixMillis,
) -> Result<(), Problem> {
    match verify(token, &admission.service_accounts, now) {
        Ok(Proven {
            account: Account::Operator,
            ..
        }) => Ok(()),
        Ok(_) => Err(refused(id, Refused::Account)),
        Err(why) => Err(refused(id, why)),
    }
}

/// Whether who asks can have tokens that are signed by the keys that are to be the cluster's. Else somebody could register the
/// public keys of another cluster first, which would then be refused for good.
fn check_at_home(
    id: &ClusterId,
    accounts: &ServiceAccounts,
    token: &ServiceAccountToken,
    now: UnixMillis,
) -> Result<(), Problem> {
    let proven = verify(token, accounts, now).map_err(|why| refused(id, why))?;
    match proven.account {
        Account::Operator | Account::Admission => Ok(()),
        // Whoever has taken a node over has these.
        Account::Gateway | Account::Agent => Err(refused(id, Refused::Account)),
    }
}

/// Whether who asks is the cluster that has this id already: it knows the credential on record, or its API server still signs with
/// a key on record. A join token alone does not do: ids are mistyped and used twice, and the cluster that has one would lose its
/// blocks to the other.
fn check_same(
    id: &ClusterId,
    known: &Admission,
    credential: &TokenHash,
    token: &ServiceAccountToken,
    now: UnixMillis,
) -> Result<(), Problem> {
    if known.credential.matches(credential) {
        return Ok(());
    }
    match verify(token, &known.service_accounts, now).map(|proven| proven.account) {
        Ok(Account::Operator | Account::Admission) => Ok(()),
        Ok(Account::Gateway | Account::Agent) | Err(_) => Err(exists(id)),
    }
}

/// What an admission would be refused for, as far as it can be said before there is a token of the cluster's API server.
///
/// # Errors
/// `cluster-exists`, `key-taken`.
pub(super) fn foresee(
    state: &State,
    id: &ClusterId,
    asks: &PreflightAdmission,
) -> Result<(), Problem> {
    match (state.clusters.get(id), state.admissions.get(id)) {
        (Some(_), None) => return Err(joined_otherwise(id)),
        (_, Some(known)) => {
            let credential = asks.credential.as_ref().map(TokenHash::of);
            let accounts = &asks.service_accounts;
            let has_credential = credential.is_some_and(|c| known.credential.matches(&c));
            let is_there = accounts.namespace == known.service_accounts.namespace
                && accounts.issuer == known.service_accounts.issuer;
            let is_known =
                is_there && shared(&known.service_accounts.keys, &accounts.keys).is_some();
            if !has_credential && !is_known {
                return Err(exists(id));
            }
        }
        (None, None) => {}
    }
    check_keys(state, id, &asks.service_accounts.keys)
}

fn joined_otherwise(id: &ClusterId) -> Problem {
    Problem::new(
        Code::ClusterExists,
        format!("cluster {id} is a member already, and did not join by its Kubernetes API"),
    )
    .hint(format!(
        "let it leave first, by `subsea leave` from the state directory that joined it or `subsea-broker cluster forget {id}`; or choose another id than {id}"
    ))
}

fn exists(id: &ClusterId) -> Problem {
    Problem::new(
        Code::ClusterExists,
        format!(
            "another cluster is a member as {id} already: who asks has neither its credential nor one of its signing keys in its namespace"
        ),
    )
    .hint(format!(
        "choose another id for a new cluster. Only when the cluster {id} of before is gone for good: `subsea-broker cluster forget {id}`"
    ))
}

/// Replaces the keys that a cluster's tokens are signed with, at the wish of one of its gateways.
///
/// # Errors
/// `not-found` for a cluster whose nodes do not enrol so; `key-taken`; `not-member`, `member-revoked`.
pub fn set_service_account_keys(
    state: &State,
    id: &ClusterId,
    keys: &Jwks,
) -> Result<Decision<()>, Problem> {
    state.member(id)?;
    let admission = state.admissions.get(id).ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            format!("the nodes of cluster {id} do not enrol by service accounts"),
        )
        .hint("it joined with a join file for each node: there are no keys to replace")
    })?;
    if admission.service_accounts.keys == *keys {
        return Ok(Decision::unchanged(()));
    }
    check_keys(state, id, keys)?;
    let mut changed = admission.clone();
    changed.service_accounts.keys = keys.clone();
    let before = names(&admission.service_accounts.keys);
    let note = Note::new(
        "cluster.keys",
        id.as_str(),
        format!("{}, before {before}", names(keys)),
    );
    let effect = Effect::Admission(id.clone(), Some(Box::new(changed)));
    Ok(Decision::changed((), vec![effect], note))
}

/// A token does not say of which cluster it is: its key must.
fn check_keys(state: &State, id: &ClusterId, keys: &Jwks) -> Result<(), Problem> {
    for (other, admission) in state.admissions.iter().filter(|(other, _)| *other != id) {
        if let Some(key) = shared(&admission.service_accounts.keys, keys) {
            return Err(Problem::new(
                Code::KeyTaken,
                format!(
                    "the service account key {} of cluster {id} is also cluster {other}'s: nobody could tell their nodes apart",
                    key.kid()
                ),
            )
            .hint("is it the same cluster under two ids, or a copy of its control plane? Give the copy a key of its own (`--service-account-key-file`)"));
        }
    }
    Ok(())
}

/// The first of `keys` that is also in `known`, whatever its name.
fn shared<'k>(known: &Jwks, keys: &'k Jwks) -> Option<&'k Jwk> {
    let known = known.keys();
    let is_known = |key: &&Jwk| known.iter().any(|k| k.numbers() == key.numbers());
    keys.keys().iter().find(is_known)
}

pub(super) fn check_fleet(state: &State, fleet: &FleetName) -> Result<(), Problem> {
    let own = &state.identity.fleet;
    if fleet == own {
        return Ok(());
    }
    Err(Problem::new(
        Code::FleetMismatch,
        format!("the request is for fleet {fleet}, this broker serves fleet {own}"),
    )
    .hint("was the cluster joined to another fleet?"))
}

/// The refusal of a token that does not prove what it is shown for.
pub(super) fn refused(id: &ClusterId, why: Refused) -> Problem {
    let mut problem = Problem::new(
        Code::ServiceAccountRefused,
        format!("the service account token was refused for cluster {id}: {why}"),
    )
    .hint(why.hint());
    problem.details = Some(serde_json::json!({ "reason": why.as_str() }));
    problem
}

/// The names of keys, for the audit log.
fn names(keys: &Jwks) -> String {
    let names: Vec<String> = keys
        .keys()
        .iter()
        .map(|key| key.kid().chars().take(16).collect())
        .collect();
    names.join(" ")
}
