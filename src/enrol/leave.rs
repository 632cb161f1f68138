//! Leaving: the gateway ends, the broker forgets us, the kernel is as before us, the secrets are gone. Shell.

use std::path::Path;
use std::time::Duration;

use subsea_api::member::RenewRequest;
use subsea_api::snapshot::WatchEvent;
use subsea_api::{ClusterId, Code, Problem, Role};

use super::error::EnrolError;
use crate::agent;
use crate::broker_client::{BrokerClient, ClientError, csr_pem};
use crate::control::{self, Answer, ControlError, Verb};
use crate::gateway::options::LastRun;
use crate::gateway::spread::road_tables;
use crate::host;
use crate::state::{self, LOCK, Lock, Membership, StateDir, StateError};

/// How long a gateway that was told to stop may take.
const STOP: Duration = Duration::from_secs(15);
/// How long the broker may take to say who is in the cluster.
const LOOK: Duration = Duration::from_secs(5);

/// How to leave.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaveOptions {
    /// Do not ask the broker.
    pub local: bool,
    /// Go on when the broker refuses.
    pub force: bool,
}

/// What leaving did.
#[derive(Debug, Default)]
pub struct Left {
    /// Who this node was; none when only remains were swept.
    pub cluster: Option<ClusterId>,
    /// What was done, in order.
    pub done: Vec<String>,
    /// What could not be done.
    pub failed: Vec<String>,
}

/// Leaves the fleet. `say` is told what takes time or ends something.
///
/// # Errors
/// [`EnrolError`] when nothing was torn down but, at most, the gateway process; what fails after that is
/// collected in [`Left::failed`], and a repeat takes it up.
pub async fn leave(
    state_dir: &Path,
    options: LeaveOptions,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Left, EnrolError> {
    let state = StateDir::open(state_dir)?;
    let membership = match state.membership() {
        Ok(membership) => membership,
        // Without it we do not know who we are, but what is ours in the kernel can go.
        Err(StateError::Corrupt { .. }) if options.force => None,
        Err(error) => return Err(error.into()),
    };
    if membership.is_none() && !state::files().any(|n| n != LOCK && state.has(n)) {
        return Err(EnrolError::NotJoined {
            path: state_dir.to_owned(),
        });
    }
    let mut left = Left {
        cluster: membership.as_ref().map(|m| m.cluster.clone()),
        ..Left::default()
    };
    let client = match &membership {
        Some(membership) if !options.local => {
            client(&state, membership, options.force, say).await?
        }
        Some(_) | None => None,
    };
    let lock = own(&state, say, &mut left).await?;
    if let (Some(membership), Some(client)) = (&membership, client) {
        let told = tell(&state, membership, client, options.force).await;
        match told {
            Ok(what) => left.done.push(what),
            Err(error) if options.force => {
                say(&format!("the broker was not told: {}", describe(&error)));
            }
            Err(source) => return Err(EnrolError::NotLeft { source }),
        }
    }
    clean_kernel(&state, &mut left).await;
    clean_directory(&state, lock, &mut left);
    Ok(left)
}

/// A client that reaches the broker: so that nothing is stopped for a leave that cannot be done.
async fn client(
    state: &StateDir,
    membership: &Membership,
    force: bool,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Option<BrokerClient>, EnrolError> {
    let key = state.tls_key()?.unwrap_or_default();
    let certificate = state.certificate()?.unwrap_or_default();
    let client = match BrokerClient::with_identity(&membership.broker, &certificate, &key, None) {
        Ok(client) => match client.reach().await {
            Ok(()) if !force => may_leave(&client, membership).await.map(|()| client),
            done => done.map(|()| client),
        },
        Err(error) => Err(error),
    };
    match client {
        Ok(client) => Ok(Some(client)),
        Err(error) if force => {
            say(&format!("the broker is not told: {}", describe(&error)));
            Ok(None)
        }
        Err(source) => Err(EnrolError::NotLeft { source }),
    }
}

/// Refuses what the broker would refuse after the gateway was stopped: to take a cluster out that has other gateways.
/// Where the broker does not say, it has the last word all the same.
async fn may_leave(client: &BrokerClient, membership: &Membership) -> Result<(), ClientError> {
    if membership.role != Role::Member {
        return Ok(());
    }
    let first = async { client.watch(None, 0).await?.next().await };
    let Ok(Ok(Some(WatchEvent::Snapshot { snapshot }))) = tokio::time::timeout(LOOK, first).await
    else {
        return Ok(());
    };
    let Some(cluster) = snapshot.clusters.get(&membership.cluster) else {
        return Ok(());
    };
    let others = cluster.gateways.keys().filter(|n| **n != membership.node);
    let others: Vec<String> = others.map(ToString::to_string).collect();
    if others.is_empty() {
        return Ok(());
    }
    let message = format!(
        "cluster {} has other gateways: {}",
        membership.cluster,
        others.join(", ")
    );
    let hint = "let them leave first, or force the whole cluster out with `--force`";
    Err(ClientError::Problem(
        Problem::new(Code::InUse, message).hint(hint),
    ))
}

/// Owns the directory, after stopping the gateway that does.
async fn own(
    state: &StateDir,
    say: &mut (dyn FnMut(&str) + Send),
    left: &mut Left,
) -> Result<Lock, EnrolError> {
    let held = match state.lock() {
        Ok(lock) => return Ok(lock),
        Err(error @ StateError::Locked { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    // Said before it is done: whoever reads it may still interrupt.
    if let StateError::Locked { pid: Some(pid), .. } = &held {
        say(&format!("stopping the gateway (pid {pid})"));
    } else {
        say("stopping the gateway");
    }
    match control::request::<serde::de::IgnoredAny>(&state.socket_path(), Verb::Stop).await {
        // Not a gateway then: perhaps a join.
        Err(ControlError::NotRunning { .. }) => return Err(held.into()),
        // It may be busy or of another version; whether it ends is seen by the lock.
        Ok(Answer::Stopping { .. } | Answer::Status(_) | Answer::Noted | Answer::Error { .. })
        | Err(_) => {}
    }
    let start = tokio::time::Instant::now();
    loop {
        match state.lock() {
            Ok(lock) => {
                left.done.push("stopped the gateway".to_owned());
                return Ok(lock);
            }
            Err(error @ StateError::Locked { .. }) if start.elapsed() > STOP => {
                return Err(EnrolError::NotStopped {
                    why: error.to_string(),
                });
            }
            Err(StateError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells the broker; that it does not know us any more is as good.
async fn tell(
    state: &StateDir,
    membership: &Membership,
    client: BrokerClient,
    force: bool,
) -> Result<String, ClientError> {
    let mut result = remove(&client, membership, force).await;
    if result
        .as_ref()
        .is_err_and(|e| e.code() == Some(Code::CertificateExpired))
    {
        result = match renewed(state, membership, &client).await {
            Ok(client) => remove(&client, membership, force).await,
            Err(error) => Err(error),
        };
    }
    let known = |done: &str| match membership.role {
        Role::Member => format!("{done} cluster `{}`", membership.cluster),
        Role::Gateway | Role::Agent | Role::Dns | Role::Admin => {
            format!(
                "{done} `{}` of cluster `{}`",
                membership.node, membership.cluster
            )
        }
    };
    match result {
        Ok(()) => Ok(known("the broker removed")),
        Err(ClientError::Problem(problem))
            if matches!(
                problem.code,
                Code::NotMember | Code::MemberRevoked | Code::NotFound
            ) =>
        {
            Ok(known("the broker knew no more of"))
        }
        Err(error) => Err(error),
    }
}

async fn remove(
    client: &BrokerClient,
    membership: &Membership,
    force: bool,
) -> Result<(), ClientError> {
    match membership.role {
        Role::Member => client.leave(&membership.cluster, force).await,
        Role::Gateway => {
            client
                .remove_gateway(&membership.cluster, &membership.node)
                .await
        }
        Role::Agent => {
            client
                .remove_agent(&membership.cluster, &membership.node)
                .await
        }
        // They have no record of their own.
        Role::Dns | Role::Admin => Ok(()),
    }
}

/// The certificate expired while the broker, or this node, was away: renewal alone still takes it.
async fn renewed(
    state: &StateDir,
    membership: &Membership,
    client: &BrokerClient,
) -> Result<BrokerClient, ClientError> {
    let key = state
        .tls_key()
        .map_err(|e| ClientError::Identity(e.to_string()))?
        .unwrap_or_default();
    let answer = client
        .renew(&RenewRequest {
            csr_pem: csr_pem(&key)?,
        })
        .await?;
    BrokerClient::with_identity(&membership.broker, &answer.certificate_pem, &key, None)
}

/// Takes what is ours out of the kernel. A daemon that never ran here left nothing there.
async fn clean_kernel(state: &StateDir, left: &mut Left) {
    let gateway = state.read_json::<LastRun>(state::GATEWAY);
    let agent = state.read_json::<agent::LastRun>(state::AGENT);
    let mut settings = Vec::new();
    match gateway {
        Ok(last) => settings.extend(last.map(|last| host::Settings {
            device: Some(last.device),
            table: last.table,
            tables: road_tables(last.road_table),
            rule_pref: last.rule_pref,
            mark: last.mark,
            ..host::Settings::default()
        })),
        Err(error) => left.failed.push(describe(&error)),
    }
    match agent {
        Ok(last) => settings.extend(last.map(|last| last.settings())),
        Err(error) => left.failed.push(describe(&error)),
    }
    if settings.is_empty() {
        return;
    }
    // Without the values from before us, the rest can still go.
    let saved = state.read_json(state::SYSCTL).unwrap_or_else(|error| {
        left.failed.push(describe(&error));
        None
    });
    let saved = saved.unwrap_or_default();
    for settings in settings {
        let errors = host::cleanup(&settings, &saved).await;
        if errors.is_empty() {
            let device = settings.device.as_ref().or(settings.vxlan.as_ref());
            left.done.push(format!(
                "removed device `{}`, the routes and rules of table {}, and the nftables table",
                device.map_or("", String::as_str),
                settings.table
            ));
        }
        left.failed
            .extend(errors.iter().map(|error| describe(error)));
    }
}

/// Removes our files, the membership first. What the kernel's cleaning needs stays while that has failed.
fn clean_directory(state: &StateDir, lock: Lock, left: &mut Left) {
    let unclean = !left.failed.is_empty();
    let needed = |name: &str| [state::GATEWAY, state::AGENT, state::SYSCTL].contains(&name);
    for name in state::files().filter(|n| !(unclean && needed(n))) {
        if let Err(error) = state.remove(name) {
            left.failed.push(describe(&error));
        }
    }
    drop(lock);
    match state.remove_if_empty() {
        Ok(true) => left
            .done
            .push(format!("removed `{}`", state.path().display())),
        Ok(false) => left.done.push(format!(
            "removed our files from `{}`; others are left in it",
            state.path().display()
        )),
        Err(error) => left.failed.push(describe(&error)),
    }
}

/// An error with its causes on one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
