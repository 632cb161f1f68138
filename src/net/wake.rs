//! Wakes threads that wait in `poll`, by an eventfd. Shell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A flag that a `poll` can wait for.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A lowered flag.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Raises the flag: every `poll` on it returns, until [`Self::lower`].
    pub fn raise(&self) {
        // The only failure is a counter near 2^64 (EAGAIN): then the flag is up already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Lowers the flag; true when it was up.
    pub fn lower(&self) -> bool {
        rustix::io::read(&self.0, &mut [0_u8; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` can be read (or has failed) or `timeout` is over; tells which. None of them after
/// a signal or a timeout.
///
/// # Errors
/// What `poll` says; not an interruption.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    wait(fds, PollFlags::IN, timeout)
}

/// Waits until `fd` can be written, at most `timeout`; false when it cannot.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    wait([fd], PollFlags::OUT, Some(timeout)).is_ok_and(|[ready]| ready)
}

fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    flags: PollFlags,
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, flags));
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_flag_wakes_until_it_is_lowered() {
        let (a, b) = (Wake::new().unwrap(), Wake::new().unwrap());
        let look = || wait_readable([a.as_fd(), b.as_fd()], Some(Duration::ZERO)).unwrap();
        assert_eq!(look(), [false, false]);
        b.raise();
        b.raise();
        assert_eq!(look(), [false, true]);
        assert!(b.lower());
        assert!(!b.lower());
        assert_eq!(look(), [false, false]);
        assert!(wait_writable(a.as_fd(), Duration::ZERO));
    }
}
