//! How often each path is probed, so that all probes of a gateway stay within its budget. PURE.
//!
//! A gateway sends at most 2,000 probes in any second ([`Bucket`]): 1,800 a second, and 200 more at once. The plan keeps
//! the regular ones within 1,800. What follows up on a missing reply, nine probes, takes what is left: of 22 paths that
//! fail in the same moment in any case, of 60 when the plan uses a third. When more fail, most likely by our own fault,
//! the last ones are found later.
//!
//! Of [`plan`]: every path gets a probe every 2 s; what is left goes to the paths that carry traffic, up to one every
//! 250 ms and two padded ones a second; what is left then to those that are being waited for. With `n` paths, `h` of
//! which carried traffic in the last minute, those have their 250 ms, and the bound of 0.7 s holds for them, as long as
//! `h * (4 + 2) + (n - h) / 2 <= 1,636`, a probe coming up to a tenth early. That is, with two gateways in each cluster:
//!
//! | paths that carry traffic | largest fleet | paths of each gateway |
//! |---|---|---|
//! | all | 137 clusters | 272 |
//! | a half | 252 clusters | 503 |
//! | a tenth | 779 clusters | 1,557 |
//!
//! Of 500 clusters 206 of the 998 paths of a gateway may carry traffic. Beyond that all of them are probed more slowly, and
//! the bound grows by as much: with all 998 of them to 1.36 s. Idle paths keep their 2 s up to 3,272 paths.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::health_timing::Timing;
use super::mesh::PathId;

/// Most probes in any second.
pub const BUDGET: u32 = 2_000;
/// Of them at once, after a pause.
const AT_ONCE: u32 = 200;
/// A probe comes up to a tenth early: so many are planned, so that 1,800 are sent.
const PLANNED: f64 = 1_800.0 / 1.1;
/// Padded probes that go out in a second on a path that is probed at full speed (`mtu`): every second one is padded.
const CHECKS: f64 = 2.0;
/// A path that carried nothing for so long is idle.
const IDLE_AFTER: Duration = Duration::from_mins(1);
/// Bytes that the counters of echo and of the tunnel may differ by in a minute though nothing else was carried: they are
/// not read in the same moment, and the kernel counts keepalives and handshakes.
const SLACK: u64 = 512;

/// How many paths there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// They carry traffic.
    pub hot: u32,
    /// They do not work, since less than a minute: somebody waits for them.
    pub awaited: u32,
    /// The others.
    pub idle: u32,
}

/// Between two probes of a path of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paces {
    /// Of one that carries traffic.
    pub hot: Duration,
    /// Of one that is waited for.
    pub awaited: Duration,
    /// Of the others.
    pub idle: Duration,
}

/// Shares the budget out.
pub fn plan(counts: Counts, timing: &Timing) -> Paces {
    let [hot, awaited, idle] = [counts.hot, counts.awaited, counts.idle].map(f64::from);
    // With each probe of a path that carries traffic goes its part of a padded one.
    let with_checks = 1.0 + CHECKS * timing.interval.as_secs_f64();
    let all = hot * with_checks + awaited + idle;
    let slow = rate(timing.idle_interval);
    if all * slow >= PLANNED {
        let interval = Duration::from_secs_f64(all / PLANNED);
        return Paces {
            hot: interval,
            awaited: interval,
            idle: interval,
        };
    }
    let more = rate(timing.interval) - slow;
    let mut left = PLANNED - all * slow;
    let mut share = |probes: f64| {
        if probes * more <= left {
            left -= probes * more;
            return timing.interval;
        }
        let each = left / probes;
        left = 0.0;
        Duration::from_secs_f64(1.0 / (slow + each))
    };
    Paces {
        hot: share(hot * with_checks),
        awaited: share(awaited),
        idle: timing.idle_interval,
    }
}

/// The most paths of which so many in a hundred may carry traffic with [`Timing::interval`] between their probes.
pub fn largest(hot_percent: u32, timing: &Timing) -> u32 {
    let fits = |paths: &u32| {
        let hot = (*paths * hot_percent).div_ceil(100);
        let counts = Counts {
            hot,
            awaited: 0,
            idle: paths - hot,
        };
        let paces = plan(counts, timing);
        paces.hot == timing.interval && paces.idle == timing.idle_interval
    };
    (1..100_000).take_while(fits).last().unwrap_or(0)
}

fn rate(interval: Duration) -> f64 {
    1.0 / interval.as_secs_f64().max(1e-3)
}

/// Lets no more probes through than the budget has.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// In millionths of a probe, which is what comes in a microsecond for each probe a second.
    tokens: u64,
    filled: Duration,
}

const TOKEN: u64 = 1_000_000;

impl Bucket {
    /// A full one.
    pub fn new(now: Duration) -> Self {
        Self {
            tokens: TOKEN * u64::from(AT_ONCE),
            filled: now,
        }
    }

    /// Takes one probe's worth; false when there is none.
    pub fn take(&mut self, now: Duration) -> bool {
        self.refill(now);
        let has = self.tokens >= TOKEN;
        if has {
            self.tokens -= TOKEN;
        }
        has
    }

    /// Puts in what came since it was last looked at.
    pub fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled).as_micros();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX).min(TOKEN);
        self.filled = self.filled.max(now);
        let rate = u64::from(BUDGET - AT_ONCE);
        self.tokens = (self.tokens + passed * rate).min(TOKEN * u64::from(AT_ONCE));
    }

    /// How much is left, in probes.
    pub fn left(&self) -> u32 {
        u32::try_from(self.tokens / TOKEN).unwrap_or(u32::MAX)
    }

    /// When there is the next one, if there is none now.
    pub fn next(&self) -> Duration {
        let missing = TOKEN.saturating_sub(self.tokens);
        self.filled + Duration::from_micros(missing.div_ceil((BUDGET - AT_ONCE).into()))
    }
}

/// Finds from counters which paths carry traffic.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    paths: BTreeMap<PathId, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// All bytes and those of echo, as they were at `at`.
    all: u64,
    echo: u64,
    at: Duration,
    carried: Option<Duration>,
}

impl Traffic {
    /// Takes the bytes that each path carried in all, both ways, and how many of them were echo, both as the tunnel
    /// counts. Paths that are left out are forgotten.
    pub fn observe(&mut self, now: Duration, paths: impl IntoIterator<Item = (PathId, u64, u64)>) {
        let mut before = std::mem::take(&mut self.paths);
        for (id, all, echo) in paths {
            let mut seen = before.remove(&id).unwrap_or(Seen {
                all,
                echo,
                at: now,
                carried: None,
            });
            // Differences: the counters of a tunnel that was made anew begin at zero, those of echo do not.
            let more = all.checked_sub(seen.all);
            let echoed = echo.saturating_sub(seen.echo);
            let carries = more.is_some_and(|more| more > echoed.saturating_add(SLACK));
            if carries {
                seen.carried = Some(now);
            }
            // Echo may be counted first, and what is not worth mentioning adds up.
            if carries || more.is_none() || now.saturating_sub(seen.at) >= IDLE_AFTER {
                (seen.all, seen.echo, seen.at) = (all, echo, now);
            }
            self.paths.insert(id, seen);
        }
    }

    /// Those that carried something in the last minute.
    pub fn hot(&self, now: Duration) -> BTreeSet<PathId> {
        self.within(IDLE_AFTER, now)
    }

    /// Those that carried something within `time` before `now`.
    pub fn within(&self, time: Duration, now: Duration) -> BTreeSet<PathId> {
        let lately = |at: Duration| now.saturating_sub(at) < time;
        let hot = self.paths.iter();
        hot.filter(|(_, seen)| seen.carried.is_some_and(lately))
            .map(|(id, _)| id.clone())
            .collect()
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
