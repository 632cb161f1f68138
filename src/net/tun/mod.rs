//! The persistent TUN device, with the offloads that the kernel has. Shell.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, Socket, Type};

use crate::net::holder::{self, Holder};
use crate::net::offload::{Offloads, Switch};
use crate::net::sys::tun::{self, Framing, Offload};
use crate::net::udp::{BUSY_FOR, BUSY_RETRY};

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

/// How a device is to be opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunSettings {
    /// What the kernel may be asked to do.
    pub offloads: Offloads,
    /// Whether further queues may be added later.
    pub multi_queue: bool,
}

/// Packets that a device holds for its reader.
const QUEUE_LEN: u16 = 2_000;

/// Most queues of a device.
pub const QUEUES: usize = 8;

/// A TUN device that outlives the process, so that routes to it never lead elsewhere in between.
///
/// It has one queue at first. Packets of a flow come by one queue, by that on which the flow's packets were
/// written last.
#[derive(Debug)]
pub struct Tun {
    name: String,
    settings: TunSettings,
    framing: Framing,
    queues: [OnceLock<OwnedFd>; QUEUES],
    /// Large TCP packets may be read.
    pub tso: Switch,
    /// Large UDP packets may be read and written.
    pub uso: Switch,
    /// Large packets may be written; some kernels say that they take them and do not.
    pub gro: Switch,
}

impl Tun {
    /// Makes device `name`, or takes over the one that an earlier process left. Addresses, MTU and state stay as
    /// they are. A busy device is tried for 2 s, so this blocks.
    ///
    /// # Errors
    /// [`TunError`]; a busy device is named with its holder.
    pub fn open(name: &str, settings: TunSettings) -> Result<Self, TunError> {
        check_name(name)?;
        let start = Instant::now();
        let (fd, framing) = loop {
            match attach(name, settings)? {
                Some(attached) => break attached,
                None if start.elapsed() >= BUSY_FOR => {
                    return Err(TunError::Busy {
                        name: name.to_owned(),
                        holder: holder::of_tun(name),
                    });
                }
                None => thread::sleep(BUSY_RETRY),
            }
        };
        let create = |source| TunError::Create {
            name: name.to_owned(),
            source,
        };
        tun::set_persistent(fd.as_fd(), true).map_err(create)?;
        let tun = Self::with(name, fd, framing, settings);
        tun.negotiate();
        if let Err(error) = tun.lengthen() {
            tracing::debug!(device = name, %error, "the device's queue stays as it is");
        }
        Ok(tun)
    }

    /// The device of the same name once more, after this one was deleted.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reopen(&self) -> Result<Self, TunError> {
        Self::open(&self.name, self.settings)
    }

    /// Gives the device room for more than the kernel's 500 packets. The reader is fair to flows and the device is not,
    /// so it must not overflow while the reader waits for a core; the reader empties it, so it adds no delay.
    fn lengthen(&self) -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM.cloexec(), None)?;
        tun::set_queue_len(socket.as_fd(), &self.name, QUEUE_LEN)
    }

    /// A device that somebody else opened: anything of which one `read` gives and one `write` takes one packet.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_fd(name: &str, fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let plain = Framing {
            vnet: false,
            multi_queue: false,
        };
        let settings = TunSettings {
            offloads: Offloads::OFF,
            multi_queue: false,
        };
        Ok(Self::with(name, fd, plain, settings))
    }

    /// The like with several queues, each a descriptor.
    #[cfg(test)]
    pub(crate) fn from_fds(name: &str, fds: impl IntoIterator<Item = OwnedFd>) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let first = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
        let tun = Self::from_fd(name, first)?;
        for (queue, fd) in tun.queues.iter().skip(1).zip(fds) {
            set_nonblocking(&fd)?;
            let _ = queue.set(fd);
        }
        Ok(tun)
    }

    fn with(name: &str, fd: OwnedFd, framing: Framing, settings: TunSettings) -> Self {
        let offloads = settings.offloads;
        let queues: [OnceLock<OwnedFd>; QUEUES] = Default::default();
        // The first is free, so this cannot fail.
        let _ = queues[0].set(fd);
        Self {
            name: name.to_owned(),
            settings,
            framing,
            queues,
            tso: Switch::allowed(offloads.tun_tso),
            uso: Switch::allowed(offloads.tun_uso),
            gro: Switch::allowed(offloads.tun_tso || offloads.tun_uso),
        }
    }

    /// Asks the kernel for what is allowed, the most first. A device keeps what an earlier process asked for: it is
    /// also told what is not wanted.
    fn negotiate(&self) {
        let fd = self.queue(0);
        let wanted = |tso, uso| Offload {
            tso: tso && self.tso.is_on(),
            uso: uso && self.uso.is_on(),
        };
        if !self.framing.vnet {
            let _ = tun::set_offload(fd, Offload::default());
            for switch in [&self.tso, &self.uso, &self.gro] {
                switch.turn_off("the device takes no virtio_net_hdr");
            }
            return;
        }
        if let Err(error) = tun::set_offload(fd, wanted(true, true)) {
            self.uso
                .turn_off(format_args!("the kernel refused it: {error}"));
            if let Err(error) = tun::set_offload(fd, wanted(true, false)) {
                self.tso
                    .turn_off(format_args!("the kernel refused it: {error}"));
                let _ = tun::set_offload(fd, Offload::default());
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.iter().take_while(|q| q.get().is_some()).count()
    }

    /// Whether it has more queues than `number`, or could have.
    pub fn takes_queues(&self, number: usize) -> bool {
        self.queues() > number || (self.framing.multi_queue && number < QUEUES)
    }

    /// Adds a queue.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] when the device was made with one queue only or has [`QUEUES`]; what the kernel
    /// says.
    pub fn add_queue(&self) -> io::Result<()> {
        let free = self.queues.iter().find(|queue| queue.get().is_none());
        let (Some(free), true) = (free, self.framing.multi_queue) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let fd = open_clone_device().map_err(io::Error::from)?;
        tun::attach(fd.as_fd(), &self.name, self.framing)?;
        free.set(fd)
            .map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// The descriptor of a queue, to wait for.
    pub fn own_queue(&self, number: usize) -> Option<BorrowedFd<'_>> {
        let fd = self.queues.get(number).and_then(OnceLock::get);
        fd.map(AsFd::as_fd)
    }

    /// The descriptor of a queue; of one that is not there, that of the first.
    pub fn queue(&self, number: usize) -> BorrowedFd<'_> {
        let fd = self.queues.get(number).and_then(OnceLock::get);
        // The first one is set from the beginning.
        fd.or_else(|| self.queues[0].get())
            .map_or_else(|| unreachable!("a device has a queue"), AsFd::as_fd)
    }

    /// Whether the device stays when this value is dropped; it does until this is called.
    ///
    /// # Errors
    /// When the device is gone already.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        tun::set_persistent(self.queue(0), persistent)
    }

    /// Reads one packet with its `virtio_net_hdr` (zero where the device has none) into the buffers, one after the
    /// other, without waiting. Gives the length of both, or `None` when nothing waits.
    ///
    /// # Errors
    /// What the kernel says, see [`is_lost`].
    pub fn read(&self, queue: usize, buffers: [&mut [u8]; 2]) -> io::Result<Option<usize>> {
        let [first, second] = buffers;
        let (header, rest) = first.split_at_mut(VNET);
        let read = |buffers: &mut [IoSliceMut<'_>]| loop {
            match rustix::io::readv(self.queue(queue), buffers) {
                // Never of a TUN device; of another descriptor it is the end.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => return Ok(Some(len)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        if self.framing.vnet {
            let mut buffers = [header, rest, second].map(IoSliceMut::new);
            return read(&mut buffers);
        }
        header.fill(0);
        let mut buffers = [rest, second].map(IoSliceMut::new);
        Ok(read(&mut buffers)?.map(|len| len + VNET))
    }

    /// Writes one packet, behind its `virtio_net_hdr`.
    ///
    /// # Errors
    /// What the kernel says, see [`is_lost`].
    pub fn write(&self, queue: usize, packet: &[u8]) -> io::Result<()> {
        let skip = if self.framing.vnet { 0 } else { VNET };
        loop {
            match rustix::io::write(self.queue(queue), packet.get(skip..).unwrap_or_default()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The length of `struct virtio_net_hdr`.
pub const VNET: usize = 10;

fn set_nonblocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

fn open_clone_device() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(CLONE_DEVICE, flags, Mode::empty())
}

/// One try; `None` when somebody has the device.
fn attach(name: &str, settings: TunSettings) -> Result<Option<(OwnedFd, Framing)>, TunError> {
    let vnet = settings.offloads.tun_tso || settings.offloads.tun_uso;
    // A device keeps the kind that it was made with: the wanted one is tried first, then the other.
    for multi_queue in [settings.multi_queue, !settings.multi_queue] {
        let fd = open_clone_device().map_err(|errno| TunError::Missing(errno.into()))?;
        let framing = Framing { vnet, multi_queue };
        // Of a device with several queues the kernel gives everybody one: packets of ours would be lost to them.
        if multi_queue && matches!(holder::of_tun(name), Holder::Process { .. }) {
            return Ok(None);
        }
        match tun::attach(fd.as_fd(), name, framing) {
            Ok(()) => return Ok(Some((fd, framing))),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(error)
                if error.raw_os_error() == Some(libc::EINVAL)
                    && multi_queue == settings.multi_queue => {}
            Err(error) => return Err(refused(name, error)),
        }
    }
    Err(TunError::OtherKind(name.to_owned()))
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
