//! Asks targets in our own cluster whether they are there, and says of this gateway when they are not. Shell around
//! [`super::inward`].

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::echo::Flags;
use super::inward::{INTERVAL, Inward};
use super::pinger::{Pinger, Probe, Targets};
use super::shared::say_inward;
use crate::membership::clock::Clock;
use crate::task::Task;

/// Looks at the answers for each question.
const LOOKS: u32 = 5;

/// The inward probe; ends when dropped.
pub(super) struct InwardPinger {
    _task: Option<Task>,
}

impl InwardPinger {
    /// Asks `targets`, and keeps [`Flags::inward_dead`] of `own` as it is. Without targets it does nothing.
    pub(super) fn start(clock: Clock, targets: &[IpAddr], own: watch::Sender<Flags>) -> Self {
        let work = || Task::spawn("inward", run(clock, targets.to_vec(), own));
        Self {
            _task: (!targets.is_empty()).then(work),
        }
    }
}

async fn run(clock: Clock, targets: Vec<IpAddr>, own: watch::Sender<Flags>) {
    let pinger = Pinger::start(clock, INTERVAL);
    let probe = |addr| Probe { addr, device: None };
    pinger.aim(Targets {
        probes: targets.into_iter().map(probe).collect(),
        ..Targets::default()
    });
    let mut judge = Inward::default();
    let mut last = None;
    let mut tick = tokio::time::interval(INTERVAL / LOOKS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for look in (0..LOOKS).cycle() {
        tick.tick().await;
        let now: Duration = clock.now().mono;
        if look == 0 {
            judge.asked(now);
        }
        let answer = pinger.last_answer();
        if let (true, Some(at)) = (answer != last, answer) {
            last = answer;
            judge.answered(at);
        }
        let dead = judge.is_dead(now);
        say_inward(&own, dead, "the inward probe");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the right to open raw sockets, as the gateway does. Nobody has an address of TEST-NET-2.
    #[tokio::test]
    async fn a_target_that_answers_keeps_the_gateway_in_use() {
        let clock = Clock::start();
        let start = |targets: &[&str]| {
            let own = watch::Sender::new(Flags::default());
            let targets: Vec<IpAddr> = targets.iter().map(|addr| addr.parse().unwrap()).collect();
            (InwardPinger::start(clock, &targets, own.clone()), own)
        };
        let (_good, here) = start(&["127.0.0.1", "198.51.100.1"]);
        let (_bad, gone) = start(&["198.51.100.1"]);
        let (_none, unasked) = start(&[]);
        let mut dead = gone.subscribe();
        let cut = dead.wait_for(|flags| flags.inward_dead);
        tokio::time::timeout(Duration::from_secs(5), cut)
            .await
            .unwrap()
            .unwrap();
        assert!(!here.borrow().inward_dead && !unasked.borrow().inward_dead);
    }
}
