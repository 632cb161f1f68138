//! Control planes for tests: two that all tests of this program share, `east` and `west`.

mod keys;
mod kubelets;
mod launch;
mod objects;
mod plane;
mod ports;
mod process;
mod programs;
mod relay;
mod scratch;
mod servers;

use std::ops::{Deref, DerefMut};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

pub(crate) use objects::BROKER_AUDIENCE;
pub(crate) use plane::Plane;
pub(crate) use ports::free_port;
pub(crate) use relay::Relay;

pub(crate) use crate::command::{Ran, run};
pub(crate) use crate::wait::until;

/// Generous: for what has no bound of its own, on a slow machine under load.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// The planes that all tests share. They have the same issuer of service account tokens, as clusters of the same
/// installer have, and different keys: `east` signs with RSA, `west` with ECDSA.
pub(crate) struct Bed {
    /// Services in `10.91.0.0/20` and `fd00:2:1::/108`.
    pub(crate) east: Plane,
    /// Services in `10.92.0.0/20` and `fd00:2:2::/108`.
    pub(crate) west: Plane,
}

static BED: OnceLock<RwLock<Bed>> = OnceLock::new();

fn bed() -> &'static RwLock<Bed> {
    BED.get_or_init(|| {
        let (east, west) = std::thread::scope(|scope| {
            let west = scope.spawn(|| Plane::start("west", 2));
            (Plane::start("east", 1), west.join())
        });
        let west = west.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        RwLock::new(Bed { east, west })
    })
}

/// The shared planes, running. Other tests use them at the same time: each keeps to its own namespaces and names.
/// A test takes this once: a second time could wait for ever behind another's [`exclusive`].
pub(crate) fn shared() -> Shared {
    Shared(bed().read().unwrap_or_else(PoisonError::into_inner))
}

/// The shared planes for one test alone, which may stop and restart their servers. They run again afterwards.
pub(crate) fn exclusive() -> Exclusive {
    Exclusive(bed().write().unwrap_or_else(PoisonError::into_inner))
}

/// See [`shared`].
pub(crate) struct Shared(RwLockReadGuard<'static, Bed>);

/// See [`exclusive`].
pub(crate) struct Exclusive(RwLockWriteGuard<'static, Bed>);

impl Deref for Shared {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.0
    }
}

impl Deref for Exclusive {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.0
    }
}

impl DerefMut for Exclusive {
    fn deref_mut(&mut self) -> &mut Bed {
        &mut self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_logs();
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_logs();
        }
        let Bed { east, west } = &mut *self.0;
        for plane in [east, west] {
            // The test may be failing already: a panic here would end the whole program. The next test will say it.
            if let Err(reason) = plane.heal() {
                eprintln!("{} does not come back: {reason}", plane.name());
            }
        }
    }
}

impl Bed {
    fn print_logs(&self) {
        eprintln!("{}\n{}", self.east.log_tails(), self.west.log_tails());
    }
}
