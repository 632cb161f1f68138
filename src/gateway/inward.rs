//! Whether this gateway still reaches its own cluster, by the answers of targets in it. PURE.
//!
//! A gateway is cut off when all targets together were silent for 1 s, although each was asked at least four times
//! meanwhile. It is back when at least one of them has answered for 2 s without such a gap of 1 s. Without targets
//! nothing is judged: the gateway counts as good.

use std::time::Duration;

/// Between two questions to a target.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// All silent for so long, and the gateway is cut off.
const SILENCE: Duration = Duration::from_secs(1);
/// Asked so often meanwhile.
const QUESTIONS: u32 = 4;
/// So long must answers come before it is back.
const RECOVERY: Duration = Duration::from_secs(2);

/// The judge.
#[derive(Debug, Clone, Default)]
pub struct Inward {
    dead: bool,
    /// When the last answer came, of whichever target; at first, when the first question was asked.
    last: Option<Duration>,
    /// Rounds of questions since then.
    asked: u32,
    /// Since when answers have come without a gap, while it is cut off.
    since: Option<Duration>,
}

impl Inward {
    /// All targets were asked.
    pub fn asked(&mut self, now: Duration) {
        self.last.get_or_insert(now);
        self.asked = self.asked.saturating_add(1);
    }

    /// A target has answered.
    pub fn answered(&mut self, now: Duration) {
        let gap = self
            .last
            .is_none_or(|last| now.saturating_sub(last) > SILENCE);
        if gap || self.since.is_none() {
            self.since = Some(now);
        }
        self.last = Some(now);
        self.asked = 0;
    }

    /// Whether the gateway is cut off; to be asked every [`INTERVAL`].
    pub fn is_dead(&mut self, now: Duration) -> bool {
        let silent = self
            .last
            .is_some_and(|last| now.saturating_sub(last) >= SILENCE)
            && self.asked >= QUESTIONS;
        if silent {
            self.dead = true;
            self.since = None;
        } else if self.dead
            && let (Some(since), Some(last)) = (self.since, self.last)
            && last.saturating_sub(since) >= RECOVERY
        {
            self.dead = false;
        }
        self.dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Asks from `from` on; answers come 10 ms later where `answers` says so. Gives when the verdict changed.
    fn live(inward: &mut Inward, until: u64, answers: impl Fn(u64) -> bool) -> Vec<(u64, bool)> {
        let mut changes = Vec::new();
        let mut before = inward.dead;
        for at in (0..until).step_by(10) {
            if at % 250 == 0 {
                inward.asked(ms(at));
            }
            if at % 250 == 10 && answers(at) {
                inward.answered(ms(at));
            }
            let dead = inward.is_dead(ms(at));
            if dead != before {
                changes.push((at, dead));
                before = dead;
            }
        }
        changes
    }

    #[test]
    fn without_questions_nothing_is_judged() {
        assert!(!Inward::default().is_dead(ms(1_000_000)));
    }

    #[test]
    fn silence_cuts_off_and_answers_bring_back() {
        let changes = live(&mut Inward::default(), 20_000, |at| {
            !(5_000..10_000).contains(&at)
        });
        assert_eq!(changes, [(5_760, true), (12_010, false)]);
    }

    #[test]
    fn who_never_had_an_answer_is_cut_off_after_a_second() {
        let changes = live(&mut Inward::default(), 20_000, |_| false);
        assert_eq!(changes, [(1_000, true)]);
    }

    #[test]
    fn a_few_losses_do_nothing_and_a_few_answers_are_not_enough() {
        assert!(live(&mut Inward::default(), 20_000, |at| at / 250 % 4 == 0).is_empty());
        let changes = live(&mut Inward::default(), 20_000, |at| {
            at < 2_000 || at / 250 % 5 == 0 && at < 12_000
        });
        assert_eq!(changes.len(), 1, "{changes:?}");
    }

    #[test]
    fn a_process_that_stood_still_asks_before_it_judges() {
        let mut inward = Inward::default();
        inward.asked(ms(0));
        inward.answered(ms(10));
        assert!(!inward.is_dead(ms(60_000)));
        inward.asked(ms(60_000));
        assert!(!inward.is_dead(ms(60_010)));
    }
}
