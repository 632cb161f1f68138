//! One-time tokens: made, checked, listed and revoked. PURE.

use std::time::Duration;

use subsea_api::admin::{TokenCreate, TokenInfo, TokenState};
use subsea_api::{ClusterId, Code, FleetName, Problem, Role, Token, UnixMillis};

use super::{Decision, Effect, Note, State, TokenRecord, revoked_problem};
use crate::auth::{Fingerprint, TokenHash};

/// The longest life of a token.
const MAX_TTL: u64 = 604_800;
/// The most tokens that are kept, used and expired ones included.
const MAX_TOKENS: usize = 100_000;

const NEW_TOKEN: &str = "create a new one with `subsea-broker token create`";

/// A token as its maker learns of it.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// When it expires.
    pub expires: UnixMillis,
}

/// Keeps the hash of a new token.
///
/// # Errors
/// `bad-request` for a role or life that no token has; `member-revoked` for a revoked cluster.
pub fn create_token(
    state: &State,
    request: &TokenCreate,
    token: &Token,
    now: UnixMillis,
) -> Result<Decision<NewToken>, Problem> {
    if request.role == Role::Admin {
        return Err(
            Problem::new(Code::BadRequest, "no token gives the role admin")
                .hint("write a new admin file with the broker's local verb"),
        );
    }
    if !(1..=MAX_TTL).contains(&request.ttl_seconds) {
        return Err(Problem::new(
            Code::BadRequest,
            format!("a token cannot live {} s", request.ttl_seconds),
        )
        .hint("choose 1 s to 7 days"));
    }
    if state.revoked.contains_key(&request.cluster) {
        return Err(revoked_problem(&request.cluster));
    }
    if state.tokens.len() >= MAX_TOKENS || state.tokens.contains_key(&token.id()) {
        return Err(
            Problem::new(Code::Overloaded, "there is no room for a further token")
                .hint("try again"),
        );
    }
    let expires = now.plus(Duration::from_secs(request.ttl_seconds));
    let record = TokenRecord {
        hash: TokenHash::of(token),
        cluster: request.cluster.clone(),
        role: request.role,
        created: now,
        expires,
        used: None,
        revoked: false,
    };
    Ok(Decision::changed(
        NewToken { expires },
        vec![Effect::Token(token.id(), Some(record))],
        Note::new(
            "token.create",
            token.id(),
            format!(
                "cluster {}, role {}, {} s",
                request.cluster, request.role, request.ttl_seconds
            ),
        ),
    ))
}

/// All tokens, by id.
pub fn tokens(state: &State, now: UnixMillis) -> Vec<TokenInfo> {
    state
        .tokens
        .iter()
        .map(|(id, t)| TokenInfo {
            id: id.clone(),
            cluster: t.cluster.clone(),
            role: t.role,
            state: t.state(now),
            created: t.created,
            expires: t.expires,
        })
        .collect()
}

/// Makes a token useless.
///
/// # Errors
/// `not-found`, or `in-use` when it was used already.
pub fn revoke_token(state: &State, id: &str, now: UnixMillis) -> Result<Decision<()>, Problem> {
    let record = state.tokens.get(id).ok_or_else(|| {
        Problem::new(Code::NotFound, "there is no such token")
            .hint("`subsea-broker token list` shows the ids")
    })?;
    match record.state(now) {
        TokenState::Revoked => Ok(Decision::unchanged(())),
        TokenState::Used => Err(Problem::new(
            Code::InUse,
            format!("token {id} was used by cluster {}", record.cluster),
        )
        .hint(format!(
            "to shut that cluster out: `subsea-broker cluster revoke {}`",
            record.cluster
        ))),
        TokenState::Unused | TokenState::Expired => {
            let mut record = record.clone();
            record.revoked = true;
            let detail = format!("cluster {}, role {}", record.cluster, record.role);
            Ok(Decision::changed(
                (),
                vec![Effect::Token(id.to_owned(), Some(record))],
                Note::new("token.revoke", id, detail),
            ))
        }
    }
}

/// Finds the token that a request shows and checks everything but what it is used for. A used one passes
/// for the key that used it: its owner asks again because an answer got lost.
pub(super) fn check_token<'a>(
    state: &'a State,
    fleet: &FleetName,
    cluster: &ClusterId,
    token: &Token,
    key: Option<&Fingerprint>,
    now: UnixMillis,
) -> Result<&'a TokenRecord, Problem> {
    let own = &state.identity.fleet;
    if fleet != own {
        return Err(Problem::new(
            Code::FleetMismatch,
            format!("the join file is for fleet {fleet}, this broker serves fleet {own}"),
        )
        .hint("use a join file that this broker made"));
    }
    let record = state
        .tokens
        .get(&token.id())
        .filter(|record| record.hash.matches(&TokenHash::of(token)))
        .ok_or_else(|| {
            Problem::new(
                Code::TokenUnknown,
                format!("this broker knows no token {}", token.id()),
            )
            .hint(format!(
                "it never made it, or forgot it 30 days after its time: {NEW_TOKEN}"
            ))
        })?;
    match record.state(now) {
        TokenState::Revoked => {
            return Err(Problem::new(
                Code::TokenRevoked,
                format!("an operator revoked the token {}", token.id()),
            )
            .hint(NEW_TOKEN));
        }
        TokenState::Used => {
            if key.is_none() || record.used.as_ref().map(|u| &u.key) != key {
                return Err(used(&token.id()));
            }
        }
        TokenState::Expired => {
            return Err(Problem::new(
                Code::TokenExpired,
                format!("the token {} has expired", token.id()),
            )
            .hint(NEW_TOKEN));
        }
        TokenState::Unused => {}
    }
    if record.cluster != *cluster {
        return Err(Problem::new(
            Code::TokenMismatch,
            format!(
                "the token {} is for cluster {}, not for {cluster}",
                token.id(),
                record.cluster
            ),
        )
        .hint(format!(
            "use `--cluster {}`, or {NEW_TOKEN}",
            record.cluster
        )));
    }
    if state.revoked.contains_key(cluster) {
        return Err(revoked_problem(cluster));
    }
    Ok(record)
}

/// The refusal of a token that another key used.
pub(super) fn used(id: &str) -> Problem {
    Problem::new(Code::TokenUsed, format!("the token {id} was already used"))
        .hint(format!("a token works once: {NEW_TOKEN}"))
}
