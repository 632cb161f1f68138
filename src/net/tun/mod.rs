//! The persistent TUN device, moved in batches. Shell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};

use crate::net::batch::Batch;
use crate::net::holder::{self, Holder};
use crate::net::sys;
use crate::net::udp::{BUSY_FOR, BUSY_RETRY, Refusal};

#[cfg(test)]
pub(crate) mod tests;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel would not take the name, or read it as a pattern.
    #[error("`{0}` is no device name: use 1 to 15 letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// TUN is not there.
    #[error(
        "could not open {CLONE_DEVICE}: {0}; load the `tun` kernel module, and in a container pass the device in"
    )]
    Missing(#[source] io::Error),
    /// Another process is attached to it.
    #[error(
        "TUN device `{name}` is in use by {holder}; stop it, or choose another name with `--device`"
    )]
    Busy {
        /// The device.
        name: String,
        /// Who has it.
        holder: Holder,
    },
    /// There is a device of this name that is no plain TUN.
    #[error(
        "device `{0}` exists and is not a plain TUN device; remove it, or choose another name with `--device`"
    )]
    OtherKind(String),
    /// Not allowed.
    #[error(
        "could not create TUN device `{0}`: not permitted; the CAP_NET_ADMIN capability is needed"
    )]
    Permission(String),
    /// Anything else.
    #[error("could not create TUN device `{name}`: {source}")]
    Create {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A TUN device that outlives the process, so that routes to it never lead elsewhere in between.
#[derive(Debug)]
pub struct Tun {
    name: String,
    fd: OwnedFd,
}

impl Tun {
    /// Makes device `name`, or takes over the one that an earlier process left. Addresses, MTU and state stay as
    /// they are. A busy device is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`TunError`]; a busy device is named with its holder.
    pub fn open(name: &str) -> Result<Self, TunError> {
        check_name(name)?;
        let start = Instant::now();
        let fd = rustix::fs::open(
            CLONE_DEVICE,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| TunError::Missing(errno.into()))?;
        loop {
            match sys::tun_attach(fd.as_fd(), name) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    if start.elapsed() >= BUSY_FOR {
                        return Err(TunError::Busy {
                            name: name.to_owned(),
                            holder: holder::of_tun(name),
                        });
                    }
                }
                Err(error) => return Err(refused(name, error)),
            }
            thread::sleep(BUSY_RETRY);
        }
        let tun = Self {
            name: name.to_owned(),
            fd,
        };
        tun.set_persistent(true)
            .map_err(|source| TunError::Create {
                name: name.to_owned(),
                source,
            })?;
        Ok(tun)
    }

    /// A device that somebody else opened: anything of which one `read` gives and one `write` takes one packet.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_fd(name: &str, fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            name: name.to_owned(),
            fd,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device stays when this value is dropped; it does until this is called.
    ///
    /// # Errors
    /// When the device is gone already.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        sys::tun_set_persistent(self.fd.as_fd(), persistent)
    }

    /// Appends the packets that wait to `batch`, without waiting; gives how many.
    ///
    /// # Errors
    /// What the kernel says, see [`is_lost`]; nothing to read is no error but 0.
    pub fn recv_batch(&self, batch: &mut Batch<()>) -> io::Result<usize> {
        let mut got = 0;
        while let Some(slot) = batch.spare() {
            match rustix::io::read(&self.fd, slot) {
                // Never of a TUN device; of another descriptor it is the end.
                Ok(0) => {
                    return if got > 0 {
                        Ok(got)
                    } else {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    };
                }
                Ok(len) => {
                    batch.commit(len, ());
                    got += 1;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                // What was read before is not thrown away; the error comes again at the next call.
                Err(_) if got > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(got)
    }

    /// Writes all of `batch` in order; what the kernel refused is given back by its position.
    pub fn send_batch<T>(&self, batch: &Batch<T>) -> Vec<Refusal> {
        let mut refused = Vec::new();
        for (position, (_, packet)) in batch.iter().enumerate() {
            loop {
                match rustix::io::write(&self.fd, packet) {
                    Ok(_) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => {
                        refused.push(Refusal {
                            position,
                            error: errno.into(),
                        });
                        break;
                    }
                }
            }
        }
        refused
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether `error` of a read or write says that the device is gone for good. A device that is only down is not:
/// its reads find nothing and its writes give EIO.
pub fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(
            error.raw_os_error(),
            // EFAULT is what a reader gets that was inside the call when the device went (drivers/net/tun.c).
            Some(
                libc::EBADFD
                    | libc::ENODEV
                    | libc::ENXIO
                    | libc::EFAULT
                    | libc::EPIPE
                    | libc::ECONNRESET
                    | libc::ECONNREFUSED
                    | libc::ENOTCONN
            )
        )
}

fn check_name(name: &str) -> Result<(), TunError> {
    // `%` would make the kernel number the device, `/` and `:` break other tools.
    let fits = (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(TunError::Name(name.chars().take(80).collect()))
    }
}

fn refused(name: &str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EINVAL) => TunError::OtherKind(name),
        Some(libc::EPERM | libc::EACCES) => TunError::Permission(name),
        _ => TunError::Create { name, source },
    }
}
