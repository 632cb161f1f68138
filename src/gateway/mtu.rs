//! The largest packet that a path takes, found by padded echo. PURE.
//!
//! The sizes here are of inner packets, IP header included: what the routes into the tunnel may have as their MTU. The
//! outer packet is 60 bytes larger over IPv4 and 80 over IPv6 (`path_mtu`).
//!
//! A size is good when an echo padded to it came back padded. It is bad when three were lost in a row, each while a small
//! echo that was sent after it came back: where small ones are lost, too, the path is at fault and not the size.
//!
//! - **Search.** First the ceiling alone, the MTU of the tunnel device, since it mostly fits. If that has no answer, twelve
//!   sizes at once between the largest good and the smallest bad one, which makes the rest thirteen times smaller:
//!   three rounds at most, where one by one it would take ten. A round ends with the answer to its largest size or after
//!   three tries.
//! - **Black hole.** While a path carries traffic, an echo padded to the known size goes out with every second small one.
//!   If it is lost, a search begins whose first try has the known size in it, too. If that is lost again, what the
//!   try found is in force at once: 0.7 s + 2 tries after the path has changed. The exact size follows within 9 tries.
//! - **A try** is over when a small echo that was sent after it has come back 30 ms ago, at the latest after the timeout.
//! - **Again** every 10 minutes, and when the path is another one ([`PathMtu::moved`], [`PathMtu::set_ceiling`]).

use std::time::Duration;

/// Sizes that are tried at once.
const VOLLEY: u32 = 12;
/// So often is a size tried before it is bad.
const TRIES: u32 = 3;
/// Between checks of a path that carries traffic and is probed at full speed; with the next small probe after it, so that
/// every second one has a padded one beside it.
pub const CHECK: Duration = Duration::from_millis(400);
/// A padded echo is lost when a small one that was sent after it came back so long ago.
const OVERTAKEN: Duration = Duration::from_millis(30);
/// Between searches.
const AGAIN: Duration = Duration::from_mins(10);
/// What every path must take: below it IPv6 does not work at all.
const LEAST_V6: u32 = 1280;
/// What every IPv4 host must be able to receive.
const LEAST_V4: u32 = 576;

/// A padded echo to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padded {
    /// Its number, which the reply repeats.
    pub sequence: u64,
    /// When it is sent.
    pub sent: Duration,
    /// The size of the inner packet that it is to make, in bytes.
    pub size: u32,
}

/// How the path is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// Small echo passes.
    pub works: bool,
    /// How often the known size is to be checked: [`CHECK`] on a path that carries traffic, or longer where the budget is
    /// short; `None` on an idle one.
    pub check: Option<Duration>,
    /// After how long a reply is missing.
    pub timeout: Duration,
    /// When the newest small probe was answered, and when it was sent.
    pub answered: Option<(Duration, Duration)>,
}

impl Sight {
    /// When a try is over that was sent then: small ones that were sent after it come back after it, too.
    fn ends(&self, tried: Duration) -> Duration {
        let overtaken = self.answered.filter(|(_, sent)| *sent >= tried);
        let overtaken = overtaken.map(|(at, _)| at + OVERTAKEN);
        let end = tried + self.timeout;
        overtaken.map_or(end, |at| at.min(end))
    }
}

/// When to poll again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Then; what is sent needs a small probe beside it.
    At(Duration),
    /// With the first small probe that is sent then or later.
    WithProbe(Duration),
}

/// Why the size is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was not searched for yet.
    Unknown,
    /// A search found it.
    Searched,
    /// Packets of the size before were lost, and a search found this.
    BlackHole,
}

/// What [`PathMtu`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The largest inner packet that passes both ways; `None` before the first search.
    pub size: Option<u32>,
    /// Since when.
    pub since: Duration,
    /// Why.
    pub reason: Reason,
    /// Whether a search is under way.
    pub searching: bool,
}

/// The search on one path.
#[derive(Debug, Clone)]
pub struct PathMtu {
    v4: bool,
    ceiling: u32,
    size: Option<u32>,
    since: Duration,
    reason: Reason,
    next_sequence: u64,
    /// When the next search begins.
    next_search: Duration,
    /// When the last check ended.
    checked: Duration,
    work: Option<Work>,
}

/// What is being done.
#[derive(Debug, Clone)]
struct Work {
    purpose: Purpose,
    /// The largest size that was answered, or is taken for good.
    good: u32,
    /// The smallest bad size.
    bad: u32,
    /// The sizes of this round that are still open, smallest first.
    open: Vec<Padded>,
    /// The tries of this round that were lost; those that say nothing are not counted.
    lost: u32,
    /// When the last try was sent; `None` before the first.
    tried: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Whether the known size still passes, and whether to search for a larger one then.
    Check { then_search: bool },
    /// Whether the ceiling passes, before a search.
    Ceiling,
    /// Between good and bad.
    Search,
    /// The same, after packets were lost.
    BlackHole,
}

impl PathMtu {
    /// A path of which nothing is known. `v4`: the echo is IPv4. `ceiling`: the MTU of the tunnel device. `sequence`:
    /// where its probes start to count, random.
    pub fn new(now: Duration, v4: bool, ceiling: u32, sequence: u64) -> Self {
        Self {
            v4,
            ceiling: ceiling.max(least(v4)),
            size: None,
            since: now,
            reason: Reason::Unknown,
            next_sequence: sequence,
            next_search: now,
            checked: now,
            work: None,
        }
    }

    /// The MTU of the tunnel device is another one.
    pub fn set_ceiling(&mut self, ceiling: u32, now: Duration) {
        let ceiling = ceiling.max(least(self.v4));
        if self.ceiling != ceiling {
            self.ceiling = ceiling;
            if self.size.is_some_and(|size| size > ceiling) {
                self.learn(ceiling, now);
            }
            self.moved(now);
        }
    }

    /// The path is another one: the peer is elsewhere, or the underlay has changed.
    pub fn moved(&mut self, now: Duration) {
        self.work = None;
        self.next_search = now;
    }

    /// Judges, and gives the padded probes to send now; a small one must go out with them. To be called at
    /// [`Self::due`], and when `sight` changes.
    pub fn poll(&mut self, now: Duration, sight: &Sight) -> Vec<Padded> {
        if !sight.works {
            // What is on its way will say nothing.
            if let Some(work) = &mut self.work {
                work.tried = None;
            }
            return Vec::new();
        }
        if self.work.is_none() {
            self.begin(now, sight);
        }
        self.judge(now, sight);
        let Some(work) = &mut self.work else {
            return Vec::new();
        };
        if work.tried.is_some() {
            return Vec::new();
        }
        work.tried = Some(now);
        for padded in &mut work.open {
            padded.sequence = self.next_sequence;
            padded.sent = now;
            self.next_sequence = self.next_sequence.wrapping_add(1);
        }
        work.open.clone()
    }

    /// When to poll again.
    pub fn due(&self, sight: &Sight) -> Option<Due> {
        if !sight.works {
            return None;
        }
        let due = match self.work.as_ref().map(|work| work.tried) {
            Some(Some(tried)) => Due::At(sight.ends(tried)),
            Some(None) => Due::At(Duration::ZERO),
            None => Due::WithProbe(match self.next_check(sight) {
                Some(check) => check.min(self.next_search),
                None => self.next_search,
            }),
        };
        Some(due)
    }

    /// A padded reply came: the number of the probe, when that was sent, the size of the inner packet.
    pub fn answered(&mut self, reply: Padded, now: Duration, sight: &Sight) {
        let Some(work) = &mut self.work else { return };
        // Also of an earlier try: what got there once gets there.
        let at = work.open.iter().position(|open| {
            open.size == reply.size
                && open.sequence >= reply.sequence
                && open.sent >= reply.sent
                && reply.sent + sight.timeout * (TRIES + 2) > now
        });
        if let Some(at) = at {
            work.open.drain(..=at);
            work.good = work.good.max(reply.size);
            self.judge(now, sight);
        }
    }

    /// What is known.
    pub fn report(&self) -> Report {
        Report {
            size: self.size,
            since: self.since,
            reason: self.reason,
            searching: self.work.as_ref().is_some_and(|work| match work.purpose {
                Purpose::Check { .. } => false,
                Purpose::Ceiling | Purpose::Search | Purpose::BlackHole => true,
            }),
        }
    }

    fn next_check(&self, sight: &Sight) -> Option<Duration> {
        Some(self.checked + sight.check?)
    }

    fn begin(&mut self, now: Duration, sight: &Sight) {
        let search = now >= self.next_search;
        let check = self.next_check(sight).is_some_and(|at| now >= at);
        match self.size {
            None if search => self.search(Purpose::Ceiling, least(self.v4), self.ceiling + 1),
            Some(size) if search || check => {
                let purpose = Purpose::Check {
                    then_search: search,
                };
                self.search(purpose, least(self.v4), size + 1);
            }
            _ => {}
        }
    }

    fn search(&mut self, purpose: Purpose, good: u32, bad: u32) {
        let mut work = Work {
            purpose,
            good,
            bad,
            open: Vec::new(),
            lost: 0,
            tried: None,
        };
        work.open_round();
        self.work = Some(work);
    }

    fn judge(&mut self, now: Duration, sight: &Sight) {
        while let Some(work) = &mut self.work {
            if !work.open.is_empty() {
                let Some(tried) = work.tried else { return };
                if now < sight.ends(tried) {
                    return;
                }
                work.tried = None;
                if sight.answered.is_some_and(|(_, sent)| sent >= tried) {
                    work.lost += 1;
                }
            }
            let (good, bad, lost) = (work.good, work.bad, work.lost);
            let passed = work.open.is_empty();
            match work.purpose {
                Purpose::Check { then_search } => {
                    if passed {
                        self.checked = now;
                        self.work = None;
                        if then_search {
                            self.next_search = now + AGAIN;
                            if good < self.ceiling {
                                self.search(Purpose::Ceiling, good, self.ceiling + 1);
                            }
                        }
                    } else if lost > 0 {
                        // The volley tries the known size again, too.
                        self.search(Purpose::BlackHole, least(self.v4), bad);
                    } else {
                        return;
                    }
                }
                Purpose::Ceiling if passed => self.end(good, Reason::Searched, now),
                // One loss is enough: the volley tries it again.
                Purpose::Ceiling if lost > 0 => self.search(Purpose::Search, good, bad),
                Purpose::Ceiling => return,
                Purpose::Search | Purpose::BlackHole => {
                    let hole = work.purpose == Purpose::BlackHole;
                    let mut ends = passed;
                    if !passed && lost >= TRIES {
                        work.bad = work.open.first().map_or(bad, |open| open.size);
                        ends = true;
                    }
                    let (bad, purpose) = (work.bad, work.purpose);
                    if hole && lost > 0 && self.size.is_some_and(|size| good < size) {
                        // The known size was lost twice. Better too small for a moment than lost.
                        self.reason = Reason::BlackHole;
                        self.learn(good, now);
                    }
                    if !ends {
                        return;
                    }
                    if bad - good <= 1 {
                        let reason = if hole {
                            Reason::BlackHole
                        } else {
                            Reason::Searched
                        };
                        self.end(good, reason, now);
                    } else {
                        self.search(purpose, good, bad);
                    }
                }
            }
        }
    }

    fn end(&mut self, size: u32, reason: Reason, now: Duration) {
        if self.size != Some(size) || self.reason == Reason::Unknown {
            self.reason = reason;
        }
        self.learn(size, now);
        self.work = None;
        self.next_search = now + AGAIN;
        self.checked = now;
    }

    fn learn(&mut self, size: u32, now: Duration) {
        if self.size != Some(size) {
            self.size = Some(size);
            self.since = now;
        }
    }
}

impl Work {
    /// Fills the round with sizes between good and bad, the largest always among them.
    fn open_round(&mut self) {
        let between = self.bad.saturating_sub(self.good + 1);
        let number = match self.purpose {
            Purpose::Check { .. } | Purpose::Ceiling => between.min(1),
            Purpose::Search | Purpose::BlackHole => between.min(VOLLEY),
        };
        let sizes = (1..=number).map(|at| self.good + between * at / number);
        self.open = sizes
            .map(|size| Padded {
                sequence: 0,
                sent: Duration::ZERO,
                size,
            })
            .collect();
    }
}

/// The smallest size that is searched for.
pub fn least(v4: bool) -> u32 {
    if v4 { LEAST_V4 } else { LEAST_V6 }
}

#[cfg(test)]
#[path = "mtu_tests.rs"]
mod tests;
