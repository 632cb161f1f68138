//! The thread that time passes on. Shell.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::outbox::Outbox;
use super::shared::Shared;
use crate::net::wake::wait_readable;

/// How often peers are looked at; each decides by itself when it is due.
const STEP: Duration = Duration::from_millis(50);

/// Runs until `shared.stop` is raised.
pub(super) fn run(shared: &Shared) {
    let mut out = Outbox::new(&shared.udp);
    let mut second = Instant::now();
    loop {
        match wait_readable([shared.stop.as_fd()], Some(STEP)) {
            Ok([true]) => return,
            Ok([false]) => {}
            Err(_) => std::thread::sleep(STEP),
        }
        let now = Instant::now();
        if now.duration_since(second) >= Duration::from_secs(1) {
            second = now;
            shared.sources.reset();
        }
        // It looks at the time by itself.
        shared.gate.reset_count();
        for entry in &shared.table().entries {
            entry
                .peer
                .lock()
                .tick(&entry.peer, now, shared.chance(), &mut out);
        }
        out.flush();
    }
}
