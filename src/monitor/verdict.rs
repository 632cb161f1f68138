//! Whether a daemon is alive, and whether it is ready. PURE.
//!
//! Ready says that this node is served: the daemon has an identity and has been over the kernel once. Whether the broker or
//! other clusters are there is no part of it: a restart of this daemon would not bring them back.

use std::time::Duration;

use subsea_api::UnixMillis;

use super::Silent;
use crate::agent::status::Status as AgentStatus;
use crate::gateway::status::{KernelStatus, Status as GatewayStatus};

/// What is said of a daemon that does not answer.
pub const SILENT: &str = "the daemon does not say within 2 s how it is";

/// How far a daemon is that does not run yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stage {
    /// It is being started, for the first time or with other settings.
    #[default]
    Starting,
    /// It has no identity yet, and waits for what it needs.
    Waiting(String),
}

/// `Ok`, or why not.
pub type Verdict = Result<(), String>;

/// A status by which a daemon is judged and measured.
pub trait Report: super::families::Measured + serde::Serialize + Send + Sync + 'static {
    /// How the kernel of its node is.
    fn kernel(&self) -> &KernelStatus;
}

impl Report for GatewayStatus {
    fn kernel(&self) -> &KernelStatus {
        &self.kernel
    }
}

impl Report for AgentStatus {
    fn kernel(&self) -> &KernelStatus {
        &self.kernel
    }
}

/// A daemon goes over the kernel every 30 s; one that has not for so long hangs.
pub const STUCK: Duration = Duration::from_mins(5);

/// When the daemon's last pass over the kernel was seen first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse(Option<(Option<UnixMillis>, Duration)>);

impl Pulse {
    /// Whether it is alive, by what it answered. One that does not run yet is: a new start would not bring what it waits for.
    /// `now` is counted by a clock that nobody sets.
    pub fn health<S: Report>(
        &mut self,
        asked: Result<&Option<S>, &Silent>,
        now: Duration,
    ) -> Verdict {
        let Some(status) = asked.map_err(|Silent| SILENT.to_owned())? else {
            self.0 = None;
            return Ok(());
        };
        let pass = status.kernel().last_reconcile;
        let since = match self.0 {
            Some((seen, since)) if seen == pass => since,
            Some(_) | None => now,
        };
        self.0 = Some((pass, since));
        if now.saturating_sub(since) < STUCK {
            return Ok(());
        }
        let silent = now.saturating_sub(since).as_secs();
        Err(format!(
            "the daemon hangs: it has not gone over the kernel for {silent} s"
        ))
    }
}

/// Whether it does its work on its own node.
pub fn readiness<S: Report>(stage: &Stage, asked: Result<&Option<S>, &Silent>) -> Verdict {
    let status = asked.map_err(|Silent| SILENT.to_owned())?;
    let Some(status) = status else {
        return Err(match stage {
            Stage::Starting => "the daemon is starting".to_owned(),
            Stage::Waiting(what) => format!("the daemon has no identity yet: {what}"),
        });
    };
    let kernel = status.kernel();
    match kernel.last_reconcile {
        Some(_) => Ok(()),
        None => Err("the kernel was not gone over yet".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> GatewayStatus {
        crate::gateway::status::tests::example()
    }

    #[test]
    fn ready_is_local() {
        let stage = Stage::default();
        let mut gateway = status();
        gateway.kernel.last_reconcile = None;
        let verdict = readiness(&stage, Ok(&Some(gateway.clone())));
        assert!(verdict.unwrap_err().contains("kernel"));
        // Neither the broker, which is away, nor a path that is one-way, nor a rest of work matters.
        gateway.kernel.last_reconcile = Some(UnixMillis(1));
        gateway.kernel.converged = false;
        assert_eq!(readiness(&stage, Ok(&Some(gateway))), Ok(()));
    }

    #[test]
    fn what_does_not_run_yet_is_alive_and_says_what_it_waits_for() {
        let none: Option<GatewayStatus> = None;
        let mut pulse = Pulse::default();
        for minute in 0..60 {
            let now = Duration::from_mins(minute);
            assert_eq!(pulse.health(Ok(&none), now), Ok(()));
        }
        let waiting = Stage::Waiting("the Secret is not there".to_owned());
        let why = readiness(&waiting, Ok(&none)).unwrap_err();
        assert_eq!(
            why,
            "the daemon has no identity yet: the Secret is not there"
        );
        assert!(readiness(&Stage::Starting, Ok(&none)).is_err());
    }

    #[test]
    fn what_does_not_answer_is_neither() {
        let silent: Result<&Option<GatewayStatus>, _> = Err(&Silent);
        let dead = Pulse::default().health(silent, Duration::ZERO);
        assert_eq!(dead, Err(SILENT.to_owned()));
        assert_eq!(readiness(&Stage::Starting, silent), Err(SILENT.to_owned()));
    }

    #[test]
    fn what_goes_over_the_kernel_no_more_hangs() {
        let mut pulse = Pulse::default();
        let mut after = |pass: Option<u64>, seconds| {
            let mut gateway = status();
            gateway.kernel.last_reconcile = pass.map(UnixMillis);
            pulse.health(Ok(&Some(gateway)), Duration::from_secs(seconds))
        };
        assert_eq!(after(None, 0), Ok(()));
        assert_eq!(after(Some(7), 299), Ok(()));
        assert_eq!(after(Some(7), 598), Ok(()));
        // The clock of the wall may be set: another time is all that counts.
        assert_eq!(after(Some(3), 599), Ok(()));
        assert!(after(Some(3), 899).unwrap_err().contains("300 s"));
        assert_eq!(after(Some(4), 900), Ok(()));
    }
}
