//! The two threads of a lane: one carries both ways, the other takes inbound over when that pays. Shell.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::balance::{Balance, WINDOW};
use super::inbound::{Inbound, Sockets};
use super::lane::Lane;
use super::meter::Meter;
use super::outbound::Outbound;
use super::shared::Shared;
use crate::net::wake::{Wake, wait_readable};

/// A pause after an error that would otherwise come again at once.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// What the threads of a lane share.
pub(super) struct Ways {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    /// Whoever holds it handles what comes from the underlay: so packets stay in order when the thread changes.
    inbound: Mutex<Inbound>,
    /// Whether the second thread has inbound.
    apart: AtomicBool,
    /// Raised when that changes.
    changed: Wake,
    /// Nanoseconds that the second thread worked, since they were last taken.
    worked: AtomicU64,
}

impl Ways {
    pub(super) fn new(shared: &Arc<Shared>, lane: &Arc<Lane>) -> std::io::Result<Self> {
        Ok(Self {
            shared: Arc::clone(shared),
            lane: Arc::clone(lane),
            inbound: Mutex::new(Inbound::new(Arc::clone(shared), Arc::clone(lane))),
            apart: AtomicBool::new(false),
            changed: Wake::new()?,
            worked: AtomicU64::new(0),
        })
    }

    fn inbound(&self) -> MutexGuard<'_, Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_apart(&self, apart: bool) {
        if self.apart.swap(apart, Ordering::Relaxed) != apart {
            tracing::debug!(lane = self.lane.number, apart, "threads of the tunnel");
            self.changed.raise();
        }
    }

    /// The second thread: sleeps until inbound is its own. Runs until the tunnel stops.
    pub(super) fn second(&self) {
        let (v4, v6) = self.lane.udp.sockets();
        let stop = self.shared.stop.as_fd();
        let mut meter = Meter::new(&self.lane.threads[1]);
        loop {
            let apart = self.apart.load(Ordering::Relaxed);
            let (v4, v6) = if apart {
                (v4, v6.unwrap_or(stop))
            } else {
                (stop, stop)
            };
            let Ok([stopped, changed, from_v4, from_v6]) =
                wait_readable([stop, self.changed.as_fd(), v4, v6], None)
            else {
                thread::sleep(PAUSE);
                continue;
            };
            if stopped {
                return;
            }
            if changed {
                self.changed.lower();
            }
            if apart && (from_v4 || from_v6) {
                let start = Instant::now();
                let sockets = Sockets {
                    v4: from_v4,
                    v6: from_v6,
                };
                self.inbound().drain(sockets);
                let worked = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.worked.fetch_add(worked, Ordering::Relaxed);
                meter.note(start, Duration::default);
            }
        }
    }

    /// The first thread: outbound, and inbound while it is not the other one's. Runs until the tunnel stops.
    pub(super) fn first(&self) {
        let shared = &*self.shared;
        let mut outbound = Outbound::new(Arc::clone(&self.shared), Arc::clone(&self.lane));
        let (v4, v6) = self.lane.udp.sockets();
        let stop = shared.stop.as_fd();
        let changed = shared.device_changed(self.lane.number);
        let mut load = Load::new();
        let mut meter = Meter::new(&self.lane.threads[0]);
        // The sockets that something came by in this window.
        let mut active = Sockets::NONE;
        loop {
            let device = shared.device();
            // A lost device would make poll return for ever: only a new one is waited for. So does a lane without a queue
            // of its own: two that read the same one would put the packets of a flow out of order.
            let lost = device.lost.load(Ordering::Relaxed);
            let queue = device.tun.own_queue(self.lane.number).filter(|_| !lost);
            let has_queue = queue.is_some();
            let tun = queue.unwrap_or(stop);
            let apart = load.balance.is_apart();
            let (v4, v6) = if apart {
                (stop, stop)
            } else {
                (v4, v6.unwrap_or(stop))
            };
            let Ok([stopped, is_changed, from_tun, from_v4, from_v6]) =
                wait_readable([stop, changed.as_fd(), tun, v4, v6], None)
            else {
                thread::sleep(PAUSE);
                continue;
            };
            if stopped {
                return;
            }
            if is_changed {
                changed.lower();
                continue;
            }
            let polled = Sockets {
                v4: from_v4,
                v6: from_v6,
            };
            active.add(polled);
            let mut sockets = polled;
            let mut outside = from_tun && has_queue;
            let mut at = Instant::now();
            // Both in turn, as long as there is something. What one way does makes work for the other, as a large packet
            // makes an acknowledgement: to look costs less than to sleep and be woken.
            while outside || (!apart && sockets.any()) {
                let mut worked = false;
                if outside {
                    (outside, worked) = outbound.step(&device);
                    load.outbound += lap(&mut at);
                }
                if !apart {
                    if worked {
                        sockets = active;
                    }
                    let (more, worked) = self.inbound().step(sockets);
                    sockets = more;
                    outside |= worked && has_queue;
                    load.inbound += lap(&mut at);
                }
                if load.is_due(at) {
                    break;
                }
            }
            outbound.flush();
            meter.note(at, || self.lane.udp.waited());
            let others = Duration::from_nanos(self.worked.swap(0, Ordering::Relaxed));
            load.inbound += others;
            if load.is_due(at) {
                self.set_apart(load.settle(at));
                active = Sockets::NONE;
            }
        }
    }
}

/// The load of the present window.
struct Load {
    balance: Balance,
    since: Instant,
    outbound: Duration,
    inbound: Duration,
}

impl Load {
    fn new() -> Self {
        Self {
            balance: Balance::default(),
            since: Instant::now(),
            outbound: Duration::ZERO,
            inbound: Duration::ZERO,
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }

    fn settle(&mut self, now: Instant) -> bool {
        let window = now.saturating_duration_since(self.since);
        let apart = self.balance.note(window, self.outbound, self.inbound);
        (self.since, self.outbound, self.inbound) = (now, Duration::ZERO, Duration::ZERO);
        apart
    }
}

/// The time since `at`, which becomes now.
fn lap(at: &mut Instant) -> Duration {
    let before = std::mem::replace(at, Instant::now());
    at.saturating_duration_since(before)
}
