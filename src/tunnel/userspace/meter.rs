//! How busy the threads of a lane are, by their own account: a thread's CPU clock is its own to read. Shell.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How often a thread that works notes what it did; one that waits for packets notes nothing.
const EVERY: Duration = Duration::from_millis(250);

/// What a thread noted last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    at: Instant,
    /// In all, at work or waiting for room in its socket.
    busy: Duration,
}

/// Where a thread notes it.
#[derive(Debug, Default)]
pub(super) struct Gauge(Mutex<Option<Note>>);

impl Gauge {
    /// The share of its time, in per cent, that the thread was busy since the note `before`, which becomes the latest.
    /// A thread that noted nothing since had nothing to do.
    pub(super) fn share(&self, before: &mut Option<Note>) -> u32 {
        let Some(now) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) else {
            return 0;
        };
        let Some(before) = before.replace(now) else {
            return 0;
        };
        let time = now.at.saturating_duration_since(before.at).as_micros();
        let busy = now.busy.saturating_sub(before.busy).as_micros();
        let share = (busy * 100).checked_div(time).unwrap_or_default();
        u32::try_from(share).unwrap_or(u32::MAX)
    }
}

/// A thread's own end of its gauge.
pub(super) struct Meter<'a> {
    gauge: &'a Gauge,
    next: Option<Instant>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(gauge: &'a Gauge) -> Self {
        Self { gauge, next: None }
    }

    /// Notes what the calling thread did, if that is due. `waited` is how long its socket had it wait so far.
    pub(super) fn note(&mut self, now: Instant, waited: impl FnOnce() -> Duration) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + EVERY);
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        // Waiting costs no CPU, so that the two do not count the same time twice.
        let cpu = Duration::try_from(cpu).unwrap_or_default();
        let busy = cpu + waited();
        *self.gauge.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Note { at: now, busy });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_waiting_count_and_sleep_does_not() {
        let gauge = Gauge::default();
        let mut before = None;
        assert_eq!(gauge.share(&mut before), 0);
        let mut meter = Meter::new(&gauge);
        let start = Instant::now();
        meter.note(start, Duration::default);
        assert_eq!(gauge.share(&mut before), 0, "the first note");
        meter.note(start + EVERY / 2, || Duration::from_secs(9));
        assert_eq!(gauge.share(&mut before), 0, "too soon for another");
        std::thread::sleep(Duration::from_millis(20));
        meter.note(start + 4 * EVERY, Duration::default);
        assert!(gauge.share(&mut before) < 10, "asleep");
        // Half of the time for the socket.
        meter.note(start + 8 * EVERY, || 2 * EVERY);
        let share = gauge.share(&mut before);
        assert!((50..60).contains(&share), "{share}");
        let busy = Instant::now();
        let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let from = cpu();
        while cpu() < from + EVERY / 5 {
            assert!(busy.elapsed() < Duration::from_mins(1), "no CPU to be had");
        }
        meter.note(start + 9 * EVERY, || 2 * EVERY);
        let share = gauge.share(&mut before);
        assert!((20..40).contains(&share), "{share}");
    }
}
