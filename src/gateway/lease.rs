//! Renews this gateway's lease at the broker. Shell.
//!
//! Nothing here depends on the lease: the broker tells others of it that we are expired, and they keep us as long as
//! our tunnels answer.

use std::time::Duration;

use subsea_api::Code;
use subsea_api::member::Lease;

use super::registration;
use super::shared::{Shared, chain};
use crate::broker_client::ClientError;
use crate::membership::backoff;
use crate::membership::clock::random;

/// The first renewal after the broker came back is at most so late: not all of a fleet at once, but soon, since the
/// lease may be over.
const SPREAD: u64 = 1_000;
/// The shortest and the longest pause after a renewal that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// Renews until the task is dropped.
pub(super) async fn run(shared: &Shared) {
    let mut online = shared.link.online.subscribe();
    loop {
        if online.wait_for(|online| *online).await.is_err() {
            return;
        }
        let spread = Duration::from_millis(random() % SPREAD);
        let away = async {
            // The sender lives as long as we do.
            let _ = online.wait_for(|online| !*online).await;
        };
        tokio::select! {
            () = away => {}
            () = async { tokio::time::sleep(spread).await; while_online(shared).await } => {}
        }
    }
}

/// Renews for as long as it is polled.
async fn while_online(shared: &Shared) {
    let member = &shared.link.membership;
    let mut failures = 0_u32;
    let mut view = shared.link.view.subscribe();
    loop {
        // There is no lease without a registration, which starts one.
        let registered = view
            .wait_for(|view| view.registered(&member.cluster, &member.node).is_some())
            .await
            .is_ok();
        if !registered {
            return;
        }
        let pause = match renew(shared).await {
            Ok(lease) => {
                failures = 0;
                shared.link.problem("lease", None);
                registration::renew_after(lease.lasts(), random())
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                shared.link.broker_refused(&error);
                // What stands against our membership is shown already, and the registrar sees to a record that is gone.
                let shown = [
                    Code::NotFound,
                    Code::NotMember,
                    Code::MemberRevoked,
                    Code::CertificateExpired,
                ];
                if error.code().is_some_and(|code| !shown.contains(&code)) {
                    let what = format!("the lease could not be renewed: {}", chain(&error));
                    shared.link.problem("lease", Some(what));
                }
                backoff::delay(failures, RETRY.0, RETRY.1, random())
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(shared: &Shared) -> Result<Lease, ClientError> {
    let member = &shared.link.membership;
    shared
        .link
        .client()?
        .renew_lease(&member.cluster, &member.node)
        .await
}
