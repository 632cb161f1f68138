//! What the answers on a path say about it: round trips and losses. PURE.

use std::collections::VecDeque;
use std::time::Duration;

/// So many probes, the last ones, are what minimum, maximum and loss are of.
pub const WINDOW: usize = 100;
/// The least that a round trip is taken to vary (RFC 6298, G): what timers and a busy host add.
const GRANULARITY: Duration = Duration::from_millis(20);

/// Round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    /// The last one.
    pub last: Duration,
    /// Smoothed as TCP does it (RFC 6298).
    pub smoothed: Duration,
    /// The shortest of the last [`WINDOW`] probes.
    pub min: Duration,
    /// The longest of them.
    pub max: Duration,
    /// The smoothed deviation (RFC 6298, RTTVAR).
    pub deviation: Duration,
}

/// Probes that got no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// So many.
    pub lost: u32,
    /// Of so many, at most [`WINDOW`]; probes that may still be answered are left out.
    pub of: u32,
}

impl Loss {
    /// In percent; 0 before the first probe was decided.
    pub fn percent(self) -> f64 {
        if self.of == 0 {
            return 0.0;
        }
        100.0 * f64::from(self.lost) / f64::from(self.of)
    }
}

/// Takes note of what became of each probe.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    /// Oldest first; `None` is lost.
    window: VecDeque<Option<Duration>>,
    smooth: Option<Smooth>,
    /// It is of late answers: the first that is not begins anew.
    provisional: bool,
    /// There was an answer.
    connected: bool,
}

#[derive(Debug, Clone, Copy)]
struct Smooth {
    last: Duration,
    smoothed: Duration,
    deviation: Duration,
}

impl Smooth {
    /// Of a first round trip (RFC 6298, 2.2).
    fn first(last: Duration) -> Self {
        Self {
            last,
            smoothed: last,
            deviation: last / 2,
        }
    }
}

impl Stats {
    /// A probe was answered.
    pub(super) fn answered(&mut self, last: Duration) {
        self.connect();
        self.note(Some(last));
        if std::mem::take(&mut self.provisional) {
            self.smooth = None;
        }
        // RFC 6298 without its one-second floor: both ends answer at once.
        self.smooth = Some(match self.smooth {
            None => Smooth::first(last),
            Some(rtt) => Smooth {
                last,
                smoothed: rtt.smoothed * 7 / 8 + last / 8,
                deviation: rtt.deviation * 3 / 4 + rtt.smoothed.abs_diff(last) / 4,
            },
        });
    }

    /// A probe was answered that was sent before the path worked, or while it was out of order. How long that took says less of the
    /// path than of where the packet waited (for the tunnel's handshake, or for the end of an outage): for what timers go by, the
    /// shortest of them is the best that is known.
    pub(super) fn answered_late(&mut self, last: Duration) {
        self.connect();
        self.note(Some(last));
        if self.smooth.is_none_or(|rtt| last < rtt.smoothed) {
            self.smooth = Some(Smooth::first(last));
            self.provisional = true;
        }
    }

    /// There is an answer. What was sent before the first was not lost on a path: there was none yet.
    fn connect(&mut self) {
        if !std::mem::replace(&mut self.connected, true) {
            self.window.clear();
        }
    }

    /// The path is out of order: another road may be another length.
    pub(super) fn begin_anew(&mut self) {
        self.smooth = None;
    }

    /// A probe was lost.
    pub(super) fn lost(&mut self) {
        self.note(None);
    }

    fn note(&mut self, outcome: Option<Duration>) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(outcome);
    }

    /// After how long an answer is missing, as far as round trips tell; `None` before the first.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let rtt = self.smooth?;
        Some(rtt.smoothed + (4 * rtt.deviation).max(GRANULARITY))
    }

    /// The round trips; `None` before the first, or when none of the last probes was answered.
    pub(super) fn rtt(&self) -> Option<Rtt> {
        let smooth = self.smooth?;
        let answers = || self.window.iter().flatten().copied();
        Some(Rtt {
            last: smooth.last,
            smoothed: smooth.smoothed,
            min: answers().min()?,
            max: answers().max()?,
            deviation: smooth.deviation,
        })
    }

    /// The losses, with `missing` probes that are as good as lost.
    pub(super) fn loss(&self, missing: usize) -> Loss {
        let missing = missing.min(WINDOW);
        let kept = self.window.len().min(WINDOW - missing);
        let lost = self.window.iter().rev().take(kept);
        let lost = lost.filter(|outcome| outcome.is_none()).count();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Loss {
            lost: number(lost + missing),
            of: number(kept + missing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn round_trips_are_those_of_the_last_probes() {
        let mut stats = Stats::default();
        assert_eq!((stats.rtt(), stats.timeout()), (None, None));
        stats.answered(ms(500));
        assert_eq!(stats.timeout(), Some(ms(1_500)));
        for _ in 0..WINDOW {
            stats.answered(ms(20));
        }
        let rtt = stats.rtt().unwrap();
        assert_eq!((rtt.last, rtt.min, rtt.max), (ms(20), ms(20), ms(20)));
        assert!(rtt.deviation < ms(1) && rtt.smoothed < ms(21));
        let timeout = stats.timeout().unwrap();
        assert!(ms(40) <= timeout && timeout < ms(42), "{timeout:?}");
        for _ in 0..WINDOW {
            stats.lost();
        }
        assert_eq!(stats.rtt(), None);
    }

    #[test]
    fn what_was_sent_before_there_was_a_path_is_not_lost_on_it() {
        let mut stats = Stats::default();
        for _ in 0..10 {
            stats.lost();
        }
        assert_eq!(stats.loss(0), Loss { lost: 10, of: 10 });
        stats.answered(ms(3));
        stats.lost();
        assert_eq!(stats.loss(0), Loss { lost: 1, of: 2 });
    }

    #[test]
    fn losses_count_what_is_missing_now() {
        let mut stats = Stats::default();
        assert_eq!(stats.loss(0).percent().to_string(), "0");
        for at in 0..200 {
            if at % 20 == 0 {
                stats.lost();
            } else {
                stats.answered(ms(1));
            }
        }
        assert_eq!(stats.loss(0), Loss { lost: 5, of: 100 });
        assert_eq!(stats.loss(10), Loss { lost: 14, of: 100 });
        assert_eq!(stats.loss(1_000), Loss { lost: 100, of: 100 });
        assert_eq!(stats.loss(0).percent().to_string(), "5");
    }
}
