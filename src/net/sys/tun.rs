//! The ioctls of TUN devices (`linux/if_tun.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// `struct ifreq` with the `ifr_flags` arm of its union (linux/if.h): 40 bytes on 64-bit Linux.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

impl IfReq {
    fn of(name: &str) -> io::Result<Self> {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            flags: 0,
            rest: [0; 22],
        };
        // One byte stays zero: the kernel reads a C string.
        let Some(room) = request
            .name
            .get_mut(..name.len())
            .filter(|_| name.len() < libc::IFNAMSIZ)
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        room.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// How packets come and go on a descriptor of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// A `virtio_net_hdr` stands before each packet.
    pub vnet: bool,
    /// Further descriptors can be attached, each a queue. Must be the same for the whole life of a device.
    pub multi_queue: bool,
}

/// Attaches `fd` (an open `/dev/net/tun`) to the TUN device `name`, made if there is none.
///
/// # Errors
/// EBUSY when another process has it, EINVAL when it is another kind of device, `multi_queue` is not what it was
/// made with, or `name` is too long; EPERM without `CAP_NET_ADMIN`.
pub fn attach(fd: BorrowedFd<'_>, name: &str, framing: Framing) -> io::Result<()> {
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if framing.vnet {
        flags |= libc::IFF_VNET_HDR;
    }
    if framing.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = IfReq::of(name)?;
    request.flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; `request` has its size and layout (checked above
    // at compile time), is initialised and outlives the call; `fd` is open while it is borrowed.
    let code = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, ptr::from_mut(&mut request)) };
    checked(code)
}

/// Whether the TUN device that `fd` is attached to outlives `fd`.
///
/// # Errors
/// EBADFD when `fd` is not attached.
pub fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; `fd` is open while it is borrowed.
    let code = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persistent),
        )
    };
    checked(code)
}

/// Not in the libc crate (linux/sockios.h).
const SIOCSIFTXQLEN: libc::c_ulong = 0x8943;

/// Sets how many packets device `name` holds for its reader, by any socket.
///
/// # Errors
/// ENODEV when there is no such device, EPERM without `CAP_NET_ADMIN`.
pub fn set_queue_len(socket: BorrowedFd<'_>, name: &str, packets: u16) -> io::Result<()> {
    let mut request = IfReq::of(name)?;
    // `ifr_qlen`, an int, has the place of the flags and of the two bytes after them.
    let [a, b, c, d] = i32::from(packets).to_ne_bytes();
    request.flags = u16::from_ne_bytes([a, b]);
    request.rest[..2].copy_from_slice(&[c, d]);
    // SAFETY: SIOCSIFTXQLEN reads one `struct ifreq`; `request` has its size and layout (checked above at compile
    // time), is initialised and outlives the call; `socket` is open while it is borrowed.
    let code = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            SIOCSIFTXQLEN as _,
            ptr::from_mut(&mut request),
        )
    };
    checked(code)
}

/// What the reader of a device takes off the kernel's hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// TCP segmentation of both families, and with it checksums.
    pub tso: bool,
    /// UDP segmentation of both families (Linux 6.2).
    pub uso: bool,
}

/// Sets it, for the device that `fd` is attached to.
///
/// # Errors
/// EINVAL when the kernel does not know one of them.
pub fn set_offload(fd: BorrowedFd<'_>, offload: Offload) -> io::Result<()> {
    let mut bits = 0;
    if offload.tso || offload.uso {
        bits |= libc::TUN_F_CSUM;
    }
    if offload.tso {
        bits |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    }
    if offload.uso {
        bits |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value; `fd` is open while it is borrowed.
    let code = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(bits),
        )
    };
    checked(code)
}

fn checked(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_tun_is_refused() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let plain = Framing {
            vnet: false,
            multi_queue: false,
        };
        assert!(attach(a.as_fd(), "subsea-none", plain).is_err());
        assert!(attach(a.as_fd(), "longer-than-15-b", plain).is_err());
        assert!(set_persistent(a.as_fd(), true).is_err());
        assert!(set_queue_len(a.as_fd(), "subsea-none", 1_000).is_err());
        assert!(set_offload(a.as_fd(), Offload::default()).is_err());
    }
}
