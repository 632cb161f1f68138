//! Whether a path works: the state machine of the echo on one path. PURE; times are since the process began.
//!
//! A path is connected only by a reply to our own probe that says that the peer hears us. A probe without a reply
//! makes the path suspect, which quickens the probes: four with 50 ms between them, and five with 15 ms. When none of
//! these ten is answered it is dead, within [`Health::bound`]: 0.7 s, or longer by twice the round trip where that is
//! long. One answer is enough to make it connected again. So a few losses do not flap it: of a path that loses a tenth
//! of all round trips (5 % each way) ten in a row are lost once in a century.
//!
//! [`Report::usable`] says whether it should carry traffic; see [`super::health_hold`] for when it may again.

use std::collections::VecDeque;
use std::time::Duration;

use super::echo::{Echo, Flags, Kind, LEN, Own};
use super::health_hold::{Hold, Sight};
pub use super::health_report::{Reason, Report, State};
use super::health_stats::Stats;
use super::health_timing::Timing;

/// Enough for what is sent until the first is stale.
const MAX_WAITING: usize = 192;
/// So many losses in a row, and something heard meanwhile, make a path that was never connected one-way.
const ONE_WAY: usize = 5;
/// Before the first round trip: a handshake of the tunnel may have to come first.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long this process may stand still before its paths count as untested.
const STALL: Duration = Duration::from_secs(1);

/// At most one hint is heeded in this time.
const HINTS: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Probe {
    sequence: u64,
    sent: Duration,
}

/// The echo on one path.
#[derive(Debug, Clone)]
pub struct Health {
    timing: Timing,
    state: State,
    since: Duration,
    reason: Reason,
    hold: Hold,
    /// Between probes, while nothing is wrong.
    pace: Duration,
    next_sequence: u64,
    next_probe: Duration,
    /// Probes that followed up on a missing reply.
    follow_ups: u32,
    /// Sent and not answered, oldest first; none that was sent before an answered one.
    waiting: VecDeque<Probe>,
    stats: Stats,
    /// When the last answer to a probe came, and when that probe was sent.
    answered: Option<(Duration, Duration)>,
    /// So many answers came with no loss between them.
    in_a_row: u32,
    /// When it last began to work, for the first time or after it had failed.
    works_since: Option<Duration>,
    /// Only what was sent since then counts for it.
    hinted: Option<Duration>,
    /// When a hint was last heeded.
    last_hint: Option<Duration>,
    last_heard: Option<Duration>,
    /// What the peer last said about hearing us, and when.
    peer_heard: Option<(Duration, Option<Duration>)>,
    /// What the peer says of itself.
    peer: Option<Own>,
    /// When it was last looked at.
    judged: Duration,
    /// When it is to be looked at again at the latest.
    promised: Duration,
    /// When we last noticed that we had stood still.
    resumed: Option<Duration>,
}

impl Health {
    /// A path that begins at `now`. `sequence` is where its probes start to count: random, so that an answer
    /// to an earlier process is not taken for one to this.
    pub fn new(timing: Timing, now: Duration, sequence: u64) -> Self {
        Self {
            timing,
            state: State::Connecting,
            since: now,
            reason: Reason::New,
            hold: Hold::new(timing.hold_down),
            pace: timing.interval,
            next_sequence: sequence,
            next_probe: now,
            follow_ups: 0,
            waiting: VecDeque::new(),
            stats: Stats::default(),
            answered: None,
            in_a_row: 0,
            works_since: None,
            hinted: None,
            last_hint: None,
            last_heard: None,
            peer_heard: None,
            peer: None,
            judged: now,
            promised: now,
            resumed: None,
        }
    }

    /// Judges the path, and gives the probe to send if one is due and `may_send`. To be called at [`Self::due`].
    pub fn poll(&mut self, now: Duration, own: Own, may_send: bool) -> Option<Echo> {
        if self.look_back(now) {
            // Their answers were lost in the socket, or wait there: that is no fault of the path.
            self.waiting.clear();
        }
        self.judge(now);
        let probe = (may_send && now >= self.probe_due()).then(|| self.probe(now, own));
        self.promised = self.due();
        probe
    }

    /// When to poll again: a probe is due, a reply becomes missing, or a hold-down ends.
    pub fn due(&self) -> Duration {
        let timeout = self.timeout();
        let missing = self
            .waiting
            .iter()
            .map(|probe| probe.sent + timeout)
            .find(|at| *at > self.judged);
        let mut due = self.probe_due();
        for at in [missing, self.hold.until()].into_iter().flatten() {
            due = due.min(at);
        }
        due
    }

    /// Takes a packet from the peer, and gives the reply to send if it was a probe. A padded reply is not for this: it
    /// says what a small one does not.
    pub fn receive(&mut self, echo: &Echo, now: Duration, own: Own) -> Option<Echo> {
        self.look_back(now);
        let reply = match echo.kind {
            Kind::Probe => Some(Echo {
                kind: Kind::Reply,
                own,
                heard: Some(Duration::ZERO),
                ..*echo
            }),
            Kind::Reply => {
                let at = self.waiting.iter().position(|probe| {
                    probe.sequence == echo.sequence && micros(probe.sent) == echo.sent
                });
                // Otherwise a copy, too late, or an answer to somebody else.
                let at = at.filter(|_| !echo.is_padded())?;
                let probe = self.waiting.drain(..=at).next_back()?;
                for _ in 0..at {
                    self.stats.lost();
                }
                let took = now.saturating_sub(probe.sent);
                // The first answers hold the tunnel's handshake, and those after an outage the outage.
                if !self.state.works() || self.works_since.is_some_and(|at| probe.sent < at) {
                    self.stats.answered_late(took);
                } else {
                    self.stats.answered(took);
                }
                self.answered = Some((now, probe.sent));
                self.in_a_row = if at == 0 { self.in_a_row + 1 } else { 1 };
                None
            }
        };
        self.last_heard = Some(now);
        self.peer_heard = Some((now, echo.heard));
        self.peer = Some(echo.own);
        self.judge(now);
        self.promised = self.due();
        reply
    }

    /// Has the path looked at closely at once, for example because nothing came by it where something should have.
    pub fn hint(&mut self, now: Duration) {
        // Anybody can say so: not more often than is needed.
        let again = self
            .last_hint
            .is_none_or(|at| now.saturating_sub(at) >= HINTS);
        if self.state == State::Connected && again {
            self.last_hint = Some(now);
            self.hinted = Some(now);
            self.suspect(now, Reason::Hinted);
        }
    }

    /// How long ago the peer was last heard.
    pub fn heard_ago(&self, now: Duration) -> Option<Duration> {
        self.last_heard.map(|at| now.saturating_sub(at))
    }

    /// Makes the next probe due at once, for example because what we say of ourselves has changed.
    pub fn nudge(&mut self, now: Duration) {
        self.next_probe = self.next_probe.min(now);
    }

    /// Changes how often the path is probed while nothing is wrong.
    pub fn pace(&mut self, interval: Duration, now: Duration) {
        if interval < self.pace {
            self.next_probe = self.next_probe.min(now + interval);
        }
        self.pace = interval;
    }

    /// How much longer the time between two probes is than the path would have it.
    pub fn slowness(&self) -> f64 {
        self.pace.as_secs_f64() / self.timing.interval.as_secs_f64().max(1e-3)
    }

    /// How the path is. An answer that is too old counts for nothing, even if nobody polled since.
    pub fn report(&self, now: Duration) -> Report {
        let fresh = self.is_fresh(now);
        let (state, since, reason) = if self.state.works() && !fresh {
            (State::Dead, now, Reason::Untested)
        } else {
            (self.state, self.since, self.reason)
        };
        let peer = self.peer.unwrap_or_default();
        Report {
            state,
            since,
            reason,
            usable: self.hold.is_usable() && state.works(),
            held_until: self.hold.until(),
            rtt: self.stats.rtt().filter(|_| state.works()),
            loss: self.stats.loss(self.lost(now)),
            interval: self.pace,
            bound: self.bound(),
            last_heard: self.last_heard,
            peer_hears_us: self.peer_hears_us(now),
            flags: peer.flags,
            revision: self.peer.map(|peer| peer.revision),
            reached: self.peer.map(|peer| peer.reached),
        }
    }

    /// How it is, without the figures.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it should carry traffic, as of the last look.
    pub fn is_usable(&self) -> bool {
        self.hold.is_usable()
    }

    /// Whether its gateway wants to be used, as far as it said.
    pub fn flags(&self) -> Flags {
        self.peer.unwrap_or_default().flags
    }

    /// Since when it has been in its state.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// When the newest answered probe was answered, and when it was sent.
    pub fn answered(&self) -> Option<(Duration, Duration)> {
        self.answered
    }

    /// After how long a reply is missing: `max(100 ms, srtt + 4 rttvar)`, where four deviations are at least 20 ms.
    pub fn timeout(&self) -> Duration {
        let Timing {
            least_timeout,
            most_timeout,
            ..
        } = self.timing;
        self.stats.timeout().map_or(FIRST_TIMEOUT, |timeout| {
            timeout.clamp(least_timeout, most_timeout)
        })
    }

    /// The longest time from the last answer to the end of `connected` and `suspect`, when nothing is answered any more
    /// and [`Health::poll`] is called in time; see [`Timing::bound`].
    pub fn bound(&self) -> Duration {
        self.timing.bound(self.pace, self.timeout())
    }

    /// Whether nobody looked at the path when it was time to.
    fn look_back(&mut self, now: Duration) -> bool {
        let stood_still = now.saturating_sub(self.promised) > STALL;
        if stood_still {
            self.resumed = Some(now);
            self.suspect(now, Reason::Untested);
        }
        stood_still
    }

    fn probe(&mut self, now: Duration, own: Own) -> Echo {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        if self.state == State::Suspect {
            self.follow_ups = self.follow_ups.saturating_add(1);
        }
        // Up to a tenth early, so that the probes of many paths do not come to keep step.
        let interval = self.interval();
        let scatter = u32::try_from(sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56);
        self.next_probe = now + interval.saturating_sub(interval / 10 * scatter.unwrap_or(0) / 256);
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
            self.stats.lost();
        }
        self.waiting.push_back(Probe {
            sequence,
            sent: now,
        });
        Echo {
            kind: Kind::Probe,
            own,
            sequence,
            sent: micros(now),
            heard: self.last_heard.map(|at| now.saturating_sub(at)),
            length: super::echo::length(u32::try_from(LEN).unwrap_or(0)),
        }
    }

    fn interval(&self) -> Duration {
        // It answers again: it is to be known soon whether it goes on to.
        let on_trial = match self.state {
            State::Connecting => false,
            State::Connected | State::Suspect => self.hold.until().is_some(),
            State::OneWay | State::Dead => self.in_a_row > 0,
        };
        if on_trial {
            self.pace.min(self.timing.interval)
        } else {
            self.pace
        }
    }

    fn probe_due(&self) -> Duration {
        if self.state != State::Suspect {
            return self.next_probe;
        }
        // Counted from the suspicion, so that what comes late does not add up; but never all that is late at once.
        let quick = self.since + self.timing.follows_after(self.follow_ups);
        let last = self.waiting.back().map(|probe| probe.sent);
        let apart = last
            .filter(|_| self.follow_ups > 0)
            .map(|last| last + self.timing.confirm_interval / 2);
        let quick = apart.map_or(quick, |apart| quick.max(apart));
        self.next_probe.min(quick)
    }

    fn judge(&mut self, now: Duration) {
        self.judged = now;
        let stale = self.stale_after();
        let is_stale = |probe: &Probe| now.saturating_sub(probe.sent) > stale;
        while self.waiting.front().is_some_and(is_stale) {
            self.waiting.pop_front();
            self.stats.lost();
        }
        let lost = self.lost(now);
        if lost > 0 {
            self.in_a_row = 0;
        }
        match self.state {
            State::Connected | State::Suspect if !self.is_fresh(now) => {
                self.turn(now, State::Dead, Reason::Untested);
            }
            State::Connected | State::Suspect if lost >= self.fatal() => self.fail(now),
            State::Connected if lost > 0 => self.suspect(now, Reason::Missing),
            State::Suspect if lost == 0 && self.is_cleared() => {
                self.turn(now, State::Connected, Reason::Recovered);
            }
            State::Connected | State::Suspect => {}
            State::Connecting | State::OneWay | State::Dead => {
                let failed_before = self.has_failed();
                let enough = if failed_before {
                    self.timing.answers
                } else {
                    1
                };
                if self.is_fresh(now) && self.in_a_row >= enough && self.peer_hears_us(now) {
                    let reason = if failed_before {
                        Reason::Returned
                    } else {
                        Reason::Answered
                    };
                    self.turn(now, State::Connected, reason);
                } else {
                    self.fail(now);
                }
            }
        }
        let flags = self.flags();
        let declined = flags.draining || flags.inward_dead;
        let sight = match self.state {
            State::Connected | State::Suspect if declined => Sight::Declined,
            State::Connected => Sight::Good,
            State::Suspect => Sight::Doubtful,
            State::Connecting | State::OneWay | State::Dead => Sight::Failed,
        };
        self.hold.update(now, sight);
    }

    /// Whether it is out of order, and not merely new.
    fn has_failed(&self) -> bool {
        match self.state {
            State::Dead => true,
            State::OneWay => self.answered.is_some(),
            State::Connecting | State::Connected | State::Suspect => false,
        }
    }

    /// Turns to whichever of the states without a two-way echo it is.
    fn fail(&mut self, now: Duration) {
        let lost = self.lost(now);
        let silent = || Reason::Silent(u32::try_from(lost).unwrap_or(u32::MAX));
        let heard = self.is_heard(now);
        match self.state {
            _ if heard && lost >= ONE_WAY => self.turn(now, State::OneWay, Reason::NotHeard),
            State::Connected | State::Suspect => self.turn(now, State::Dead, silent()),
            State::OneWay if heard || self.in_a_row > 0 => {}
            State::OneWay if self.answered.is_some() => self.turn(now, State::Dead, silent()),
            State::OneWay => self.turn(now, State::Connecting, Reason::New),
            State::Connecting | State::Dead => {}
        }
    }

    fn suspect(&mut self, now: Duration, reason: Reason) {
        if self.state.works() {
            self.follow_ups = 0;
            self.turn(now, State::Suspect, reason);
        }
    }

    fn turn(&mut self, now: Duration, state: State, reason: Reason) {
        if state != self.state {
            let (failed, worked) = (self.has_failed(), self.state.works());
            self.since = now;
            self.reason = reason;
            self.state = state;
            match state {
                State::Connected => {
                    if !worked {
                        self.works_since = Some(now);
                    }
                    self.hinted = None;
                }
                State::Dead | State::OneWay if !failed => self.stats.begin_anew(),
                State::Connecting | State::Suspect | State::OneWay | State::Dead => {}
            }
        }
    }

    /// Whether a suspicion is refuted: by the answer to a probe that was sent after it came up, if it came from outside.
    fn is_cleared(&self) -> bool {
        let since = self.hinted.max(self.resumed);
        since.is_none_or(|since| self.answered.is_some_and(|(_, sent)| sent >= since))
    }

    /// Whether the peer speaks although our probes are lost: what came before the first loss does not count.
    fn is_heard(&self, now: Duration) -> bool {
        let lost_since = self
            .waiting
            .front()
            .map_or(now, |probe| probe.sent + self.timeout());
        self.last_heard
            .is_some_and(|at| at > lost_since && now.saturating_sub(at) <= self.fresh_for())
    }

    fn is_fresh(&self, now: Duration) -> bool {
        let last = self.answered.map(|(at, _)| at);
        last.max(last.and(self.resumed))
            .is_some_and(|at| now.saturating_sub(at) <= self.fresh_for())
    }

    /// How long anything says something, whatever else is known: a path may have been idle until a moment ago.
    fn fresh_for(&self) -> Duration {
        let interval = self.pace.max(self.timing.idle_interval);
        self.timing.bound(interval, self.timeout()) + STALL
    }

    /// How many probes in a row have gone without an answer for too long.
    fn lost(&self, now: Duration) -> usize {
        let timeout = self.timeout();
        self.waiting
            .iter()
            .filter(|probe| now.saturating_sub(probe.sent) >= timeout)
            .count()
    }

    /// So many losses in a row; a hint stands for the first one.
    fn fatal(&self) -> usize {
        let fatal = self.timing.fatal() - u32::from(self.hinted.is_some());
        usize::try_from(fatal).unwrap_or(usize::MAX)
    }

    fn peer_hears_us(&self, now: Duration) -> bool {
        self.peer_heard.is_some_and(|(at, age)| {
            age.is_some_and(|age| now.saturating_sub(at) + age <= self.fresh_for())
        })
    }

    /// An answer to a probe that is so old would say nothing about now.
    fn stale_after(&self) -> Duration {
        (2 * self.timing.most_timeout).max(6 * self.pace)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
