//! The thread that adds lanes: up to the number that the operator gave, or when those that there are get full. Shell.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::meter::Note;
use super::stripes::{Look, Plan, Watch};
use super::{Driver, TunnelError};
use crate::key::PrivateKey;
use crate::net::udp::UdpSettings;
use crate::net::wake::wait_readable;

/// How often the lanes are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a lane that could not be had the next try is made.
const AGAIN: Duration = Duration::from_secs(10);

/// Where further lanes come from. All of it is called from a thread that may be blocked.
pub trait LaneSource: Send {
    /// Port and key of a lane.
    ///
    /// # Errors
    /// Why there are none.
    fn listener(&self, number: u16) -> Result<(UdpSettings, PrivateKey), String>;

    /// With how many stripes another gateway works, at most.
    fn offered(&self) -> u16;

    /// Takes note of why there are fewer lanes than there should be, or that it is so no more.
    fn lacks(&self, what: Option<String>);
}

/// Who adds lanes.
pub(super) struct Growth {
    driver: Arc<Driver>,
    plan: Plan,
    watch: Watch,
    source: Box<dyn LaneSource>,
    /// What the threads of each lane had noted at the last look.
    notes: Vec<[Option<Note>; 2]>,
    /// Lanes that are due.
    wanted: usize,
    retry: Option<Instant>,
}

impl Growth {
    pub(super) fn new(driver: Arc<Driver>, plan: Plan, source: Box<dyn LaneSource>) -> Self {
        let wanted = match plan {
            Plan::Fixed(count) => count,
            Plan::Auto { .. } => 1,
        };
        Self {
            driver,
            plan,
            watch: Watch::new(plan.most()),
            source,
            notes: Vec::new(),
            wanted: wanted.into(),
            retry: None,
        }
    }

    /// Opens what is due, then goes on in a thread while anything is left to do.
    pub(super) fn start(mut self) -> std::io::Result<Option<JoinHandle<()>>> {
        self.open();
        if self.is_done() {
            return Ok(None);
        }
        let thread = thread::Builder::new().name("subsea-stripes".to_owned());
        thread.spawn(move || self.run()).map(Some)
    }

    fn is_done(&self) -> bool {
        match self.plan {
            Plan::Fixed(_) => self.driver.lanes() >= self.wanted,
            Plan::Auto { .. } => self.plan.most() <= 1,
        }
    }

    fn run(mut self) {
        let start = Instant::now();
        loop {
            match wait_readable([self.driver.shared.stop.as_fd()], Some(LOOK)) {
                Ok([true]) => return,
                Ok([false]) => {}
                Err(_) => thread::sleep(LOOK),
            }
            if let Plan::Auto { .. } = self.plan {
                self.look(start.elapsed());
            }
            if self.retry.is_none_or(|at| at <= Instant::now()) {
                self.open();
            }
            if self.is_done() {
                return;
            }
        }
    }

    /// Sees how busy the lanes are.
    pub(super) fn look(&mut self, now: Duration) {
        let lanes = self.driver.shared.lanes();
        self.notes.resize(lanes.len(), [None; 2]);
        let loads = lanes.iter().zip(&mut self.notes);
        let loads: Vec<u32> = loads
            .map(|(lane, notes)| {
                let shares = lane.threads.iter().zip(notes);
                let shares = shares.map(|(gauge, note)| gauge.share(note));
                shares.max().unwrap_or_default()
            })
            .collect();
        let look = Look {
            now,
            lanes: &loads,
            offered: self.source.offered(),
        };
        if self.watch.wants_more(look) && self.driver.lanes() >= self.wanted {
            tracing::info!(?loads, "the tunnel is full: one stripe more");
            self.wanted = lanes.len() + 1;
        }
    }

    /// Adds what is due. Lanes come in the order of their numbers: one that cannot be had holds up those after it.
    pub(super) fn open(&mut self) {
        self.retry = None;
        while self.driver.lanes() < self.wanted {
            if self.driver.shared.is_stopped() {
                return;
            }
            if let Err(error) = self.driver.add_lane(&*self.source) {
                self.source.lacks(Some(self.lack(&error)));
                self.retry = Some(Instant::now() + AGAIN);
                return;
            }
        }
        self.source.lacks(None);
    }

    fn lack(&self, error: &TunnelError) -> String {
        let (count, wanted) = (self.driver.lanes(), self.wanted);
        format!("{count} of {wanted} stripes: {error}")
    }
}
