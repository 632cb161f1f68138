//! Renews our certificate before it ends, and after when the broker was away. Shell.

use std::sync::Arc;
use std::time::Duration;

use subsea_api::member::RenewRequest;

use super::certificate;
use super::clock::random;
use super::{Link, chain};
use crate::broker_client::{ClientError, csr_pem};

/// The longest sleep: the clock of the wall may be set meanwhile.
const STEP: Duration = Duration::from_mins(1);
/// Renewals that somebody asks for are no closer than this.
const PAUSE: Duration = Duration::from_secs(1);

/// Renews until the task is dropped.
pub(crate) async fn run(link: Arc<Link>) {
    let jitter = random();
    let mut failures = 0_u32;
    let mut online = link.online.subscribe();
    loop {
        let now = link.clock.now().wall;
        let pem = link.certificate.borrow().clone();
        let due = certificate::read(&pem).map_or(now, |validity| validity.renew_at(jitter));
        if due > now {
            let asked = tokio::select! {
                () = tokio::time::sleep(due.since(now).min(STEP)) => false,
                () = link.renew.notified() => true,
            };
            if !asked {
                continue;
            }
        }
        match renew(&link).await {
            Ok(()) => {
                failures = 0;
                link.problem("certificate", None);
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let what = format!("the certificate could not be renewed: {}", chain(&error));
                link.problem("certificate", Some(what));
                let pause = certificate::retry_after(failures, random());
                online.mark_unchanged();
                tokio::time::sleep(PAUSE.min(pause)).await;
                tokio::select! {
                    () = tokio::time::sleep(pause.saturating_sub(PAUSE)) => {}
                    // The broker is back.
                    () = link.renew.notified() => {}
                    Ok(()) = online.changed() => {}
                }
            }
        }
    }
}

async fn renew(link: &Link) -> Result<(), ClientError> {
    let csr_pem = csr_pem(link.tls_key())?;
    let answer = link.client()?.renew(&RenewRequest { csr_pem }).await?;
    if certificate::read(&answer.certificate_pem).is_err() {
        return Err(ClientError::Protocol(
            "the broker sent no certificate".to_owned(),
        ));
    }
    if let Err(error) = link.state.write_certificate(&answer.certificate_pem) {
        // In use all the same; after a restart the old one renews again.
        link.problem("certificate-file", Some(chain(&error)));
    } else {
        link.problem("certificate-file", None);
    }
    link.certificate.send_replace(answer.certificate_pem.into());
    tracing::info!("certificate renewed");
    Ok(())
}
