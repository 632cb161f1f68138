//! Whether a path works: the state machine of the echo on one path. PURE; times are since the process began.
//!
//! A path is connected only by a reply to our own probe that says that the peer hears us. A probe without a
//! reply makes the path suspect and quickens the probes; four more losses in a row make it dead. So a few
//! losses do not flap it, and a dead path is found within [`Health::bound`].

use std::collections::VecDeque;
use std::time::Duration;

use super::echo::{Echo, Flags, Kind};

/// Between probes.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// Between probes while a reply is missing.
pub const SUSPECT_INTERVAL: Duration = Duration::from_millis(50);
/// So many probes in a row without a reply make a path dead.
pub const LOSSES: usize = 5;
/// A path that was never connected is probed with this interval after a minute, to spare the peer.
pub const PATIENT_INTERVAL: Duration = Duration::from_secs(1);

const EAGER: Duration = Duration::from_mins(1);
/// Enough for a probe every 50 ms until the first is stale.
const MAX_WAITING: usize = 128;
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(3);
/// What the polls of one detection may come late together.
const SLACK: Duration = Duration::from_millis(150);
/// How long this process may stand still before its paths count as untested.
const STALL: Duration = Duration::from_secs(1);

/// How a path is, as far as echo tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// No two-way echo yet.
    Connecting,
    /// A fresh two-way echo.
    Connected,
    /// We hear it, it does not hear us.
    OneWay,
    /// It was connected, and echo stopped.
    Down,
}

/// What [`Health`] shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// How the path is.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// The last round trip, while connected.
    pub rtt: Option<Duration>,
    /// When anything came from the peer.
    pub last_heard: Option<Duration>,
    /// Whether the peer says that it hears us.
    pub peer_hears_us: bool,
    /// What the peer says of itself.
    pub flags: Flags,
    /// The revision that the peer acts on.
    pub revision: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    sequence: u64,
    sent: Duration,
}

/// The echo on one path.
#[derive(Debug, Clone)]
pub struct Health {
    state: State,
    since: Duration,
    born: Duration,
    next_sequence: u64,
    next_probe: Duration,
    /// Sent and not answered, oldest first; none that was sent before an answered one.
    waiting: VecDeque<Probe>,
    /// When the last answer to a probe came.
    answered: Option<Duration>,
    last_heard: Option<Duration>,
    /// What the peer last said about hearing us, and when.
    peer_heard: Option<(Duration, Option<Duration>)>,
    rtt: Option<Rtt>,
    flags: Flags,
    revision: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Rtt {
    last: Duration,
    smooth: Duration,
    variance: Duration,
}

impl Health {
    /// A path that begins at `now`. `sequence` is where its probes start to count: random, so that an answer
    /// to an earlier process is not taken for one to this.
    pub fn new(now: Duration, sequence: u64) -> Self {
        Self {
            state: State::Connecting,
            since: now,
            born: now,
            next_sequence: sequence,
            next_probe: now,
            waiting: VecDeque::new(),
            answered: None,
            last_heard: None,
            peer_heard: None,
            rtt: None,
            flags: Flags::default(),
            revision: None,
        }
    }

    /// Judges the path, and gives the probe to send when one is due. To be called every 25 ms.
    pub fn poll(&mut self, now: Duration, own: Flags, revision: u64) -> Option<Echo> {
        while self
            .waiting
            .front()
            .is_some_and(|probe| is_stale(probe, now))
        {
            self.waiting.pop_front();
        }
        self.judge(now);
        let last = self
            .waiting
            .back()
            .map_or(Duration::ZERO, |probe| probe.sent);
        let hurry = self.state == State::Connected && self.lost(now) > 0;
        let due = if hurry {
            self.next_probe.min(last + SUSPECT_INTERVAL)
        } else {
            self.next_probe
        };
        if now < due {
            return None;
        }
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.next_probe = now + self.interval(now);
        if self.waiting.len() == MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Probe {
            sequence,
            sent: now,
        });
        Some(Echo {
            kind: Kind::Probe,
            flags: own,
            sequence,
            sent: micros(now),
            heard: self.last_heard.map(|at| now.saturating_sub(at)),
            revision,
        })
    }

    /// Takes a packet from the peer, and gives the reply to send if it was a probe.
    pub fn receive(
        &mut self,
        echo: &Echo,
        now: Duration,
        own: Flags,
        revision: u64,
    ) -> Option<Echo> {
        let reply = match echo.kind {
            Kind::Probe => Some(Echo {
                kind: Kind::Reply,
                flags: own,
                sequence: echo.sequence,
                sent: echo.sent,
                heard: Some(Duration::ZERO),
                revision,
            }),
            Kind::Reply => {
                let at = self.waiting.iter().position(|probe| {
                    probe.sequence == echo.sequence && micros(probe.sent) == echo.sent
                });
                // Otherwise a copy, too late, or an answer to somebody else.
                let probe = at.and_then(|at| self.waiting.drain(..=at).next_back())?;
                if is_stale(&probe, now) {
                    return None;
                }
                self.answered = Some(now);
                self.measure(now.saturating_sub(probe.sent));
                None
            }
        };
        self.last_heard = Some(now);
        self.peer_heard = Some((now, echo.heard));
        self.flags = echo.flags;
        self.revision = Some(echo.revision);
        self.judge(now);
        reply
    }

    /// How the path is. An answer that is too old counts for nothing, even if nobody polled since.
    pub fn report(&self, now: Duration) -> Report {
        let fresh = self.is_fresh(now);
        let (state, since) = match self.state {
            State::Connected if !fresh => (State::Down, now),
            State::Connecting | State::Connected | State::OneWay | State::Down => {
                (self.state, self.since)
            }
        };
        Report {
            state,
            since,
            rtt: self
                .rtt
                .filter(|_| state == State::Connected)
                .map(|rtt| rtt.last),
            last_heard: self.last_heard,
            peer_hears_us: self.peer_hears_us(now),
            flags: self.flags,
            revision: self.revision,
        }
    }

    /// The longest time from the last answer to the end of `connected`, when nothing is answered any more and
    /// [`Health::poll`] is called in time.
    pub fn bound(&self) -> Duration {
        let quick = SUSPECT_INTERVAL * u32::try_from(LOSSES - 1).unwrap_or(u32::MAX);
        INTERVAL + quick + 2 * self.timeout() + SLACK
    }

    fn judge(&mut self, now: Duration) {
        let state = match self.state {
            State::Connected if self.is_dead(now) || !self.is_fresh(now) => self.unconnected(now),
            State::Connected => State::Connected,
            State::Connecting | State::OneWay | State::Down => {
                if self.is_fresh(now) && !self.is_dead(now) && self.peer_hears_us(now) {
                    State::Connected
                } else {
                    self.unconnected(now)
                }
            }
        };
        if state != self.state {
            self.state = state;
            self.since = now;
        }
    }

    /// Which of the states without a two-way echo it is.
    fn unconnected(&self, now: Duration) -> State {
        if self.is_dead(now) && self.is_heard(now) {
            State::OneWay
        } else if self.answered.is_some() {
            State::Down
        } else {
            State::Connecting
        }
    }

    /// Whether the peer speaks although our probes are lost: what came before the first loss does not count.
    fn is_heard(&self, now: Duration) -> bool {
        let lost_since = self
            .waiting
            .front()
            .map_or(now, |probe| probe.sent + self.timeout());
        self.last_heard
            .is_some_and(|at| at > lost_since && now.saturating_sub(at) <= self.bound() + STALL)
    }

    fn is_fresh(&self, now: Duration) -> bool {
        self.answered
            .is_some_and(|at| now.saturating_sub(at) <= self.bound() + STALL)
    }

    fn is_dead(&self, now: Duration) -> bool {
        self.lost(now) >= LOSSES
    }

    /// How many probes in a row have gone without an answer for too long.
    fn lost(&self, now: Duration) -> usize {
        let timeout = self.timeout();
        self.waiting
            .iter()
            .filter(|probe| now.saturating_sub(probe.sent) >= timeout)
            .count()
    }

    fn peer_hears_us(&self, now: Duration) -> bool {
        self.peer_heard.is_some_and(|(at, age)| {
            age.is_some_and(|age| now.saturating_sub(at) + age <= self.bound())
        })
    }

    fn interval(&self, now: Duration) -> Duration {
        let waits_long = now.saturating_sub(self.born) > EAGER;
        match self.state {
            State::Connecting if waits_long => PATIENT_INTERVAL,
            State::Connecting | State::Connected | State::OneWay | State::Down => INTERVAL,
        }
    }

    /// RFC 6298 without its one-second floor: both ends answer at once.
    fn measure(&mut self, last: Duration) {
        self.rtt = Some(match self.rtt {
            None => Rtt {
                last,
                smooth: last,
                variance: last / 2,
            },
            Some(rtt) => {
                let variance = rtt.variance * 3 / 4 + rtt.smooth.abs_diff(last) / 4;
                Rtt {
                    last,
                    smooth: rtt.smooth * 7 / 8 + last / 8,
                    variance,
                }
            }
        });
    }

    fn timeout(&self) -> Duration {
        self.rtt.map_or(Duration::from_secs(1), |rtt| {
            (rtt.smooth + 4 * rtt.variance).clamp(MIN_TIMEOUT, MAX_TIMEOUT)
        })
    }
}

/// Whether an answer to the probe would say nothing about now.
fn is_stale(probe: &Probe, now: Duration) -> bool {
    now.saturating_sub(probe.sent) > 2 * MAX_TIMEOUT
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
