//! The only unsafe room: system calls that no safe crate wraps. Each block holds one operation.
#![expect(
    unsafe_code,
    reason = "ioctl, recvmmsg and sendmmsg have no safe wrapper among our crates"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::net::batch::CAPACITY;

/// `struct ifreq` with the `ifr_flags` arm of its union (linux/if.h): 40 bytes on 64-bit Linux.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

/// Attaches `fd` (an open `/dev/net/tun`) to the TUN device `name`, made if there is none; packets without header.
///
/// # Errors
/// EBUSY when another process has it, EINVAL when it is another kind of device or `name` is too long, EPERM
/// without `CAP_NET_ADMIN`.
pub fn tun_attach(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = IfReq {
        name: [0; libc::IFNAMSIZ],
        flags,
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
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; `request` has its size and layout (checked above
    // at compile time), is initialised and outlives the call; `fd` is open while it is borrowed.
    let code = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, ptr::from_mut(&mut request)) };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether the TUN device that `fd` is attached to outlives `fd`.
///
/// # Errors
/// EBADFD when `fd` is not attached.
pub fn tun_set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; `fd` is open while it is borrowed.
    let code = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persistent),
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A socket address as the kernel writes it: `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RawAddr {
    bytes: [u8; 28],
    len: u32,
}

impl RawAddr {
    /// Room for either family.
    pub const EMPTY: Self = Self {
        bytes: [0; 28],
        len: 28,
    };

    /// The kernel's form of `addr`.
    pub fn new(addr: SocketAddr) -> Self {
        let mut raw = Self::EMPTY;
        let mut put =
            |at: usize, field: &[u8]| raw.bytes[at..at + field.len()].copy_from_slice(field);
        put(2, &addr.port().to_be_bytes());
        let (family, len) = match addr {
            SocketAddr::V4(v4) => {
                put(4, &v4.ip().octets());
                (libc::AF_INET, 16)
            }
            SocketAddr::V6(v6) => {
                put(4, &v6.flowinfo().to_ne_bytes());
                put(8, &v6.ip().octets());
                put(24, &v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, 28)
            }
        };
        // Both families are small numbers; the field has 16 bits (sys/socket.h).
        put(
            0,
            &(u16::try_from(family).unwrap_or_default()).to_ne_bytes(),
        );
        raw.len = len;
        raw
    }

    /// Reads it; `None` for another family or a short address.
    pub fn addr(&self) -> Option<SocketAddr> {
        let field = |at: usize| self.bytes.get(at..at + 4)?.try_into().ok();
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        match (
            i32::from(u16::from_ne_bytes([self.bytes[0], self.bytes[1]])),
            self.len,
        ) {
            (libc::AF_INET, 16..) => {
                let octets: [u8; 4] = field(4)?;
                Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
            }
            (libc::AF_INET6, 28..) => {
                let octets: [u8; 16] = self.bytes.get(8..24)?.try_into().ok()?;
                let flow = u32::from_ne_bytes(field(4)?);
                let scope = u32::from_ne_bytes(field(24)?);
                Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// One received datagram of [`receive_many`].
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its length, cut to the buffer's.
    pub len: usize,
    /// Its sender.
    pub from: RawAddr,
}

impl Received {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        len: 0,
        from: RawAddr::EMPTY,
    };
}

/// Receives up to [`CAPACITY`] datagrams at once, one a buffer; gives how many.
///
/// # Errors
/// What `recvmmsg` says, `WouldBlock` when a non-blocking socket has none.
pub fn receive_many(
    socket: BorrowedFd<'_>,
    buffers: &mut [IoSliceMut<'_>],
    received: &mut [Received; CAPACITY],
) -> io::Result<usize> {
    let mut headers = empty_headers();
    let mut count: libc::c_uint = 0;
    for ((header, buffer), entry) in headers.iter_mut().zip(buffers).zip(received.iter_mut()) {
        entry.from = RawAddr::EMPTY;
        header.msg_hdr.msg_name = ptr::from_mut(&mut entry.from.bytes).cast();
        header.msg_hdr.msg_namelen = entry.from.len;
        // `IoSliceMut` is guaranteed to have the layout of `iovec`.
        header.msg_hdr.msg_iov = ptr::from_mut(buffer).cast();
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers point to one address of `msg_namelen` bytes and one `iovec` each, all
    // borrowed mutably by this call, so they live through it and nothing else touches them; the timeout may be null.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            0,
            ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for (header, entry) in headers.iter().zip(received.iter_mut()).take(got) {
        entry.len = header.msg_len as usize;
        entry.from.len = header.msg_hdr.msg_namelen;
    }
    Ok(got)
}

/// Sends up to [`CAPACITY`] datagrams at once, each to its address; gives how many were sent before the first
/// that was refused.
///
/// # Errors
/// What `sendmmsg` says of the first datagram.
pub fn send_many(
    socket: BorrowedFd<'_>,
    datagrams: &[(RawAddr, IoSlice<'_>)],
) -> io::Result<usize> {
    let mut headers = empty_headers();
    let mut count: libc::c_uint = 0;
    for (header, (to, bytes)) in headers.iter_mut().zip(datagrams) {
        header.msg_hdr.msg_name = ptr::from_ref(&to.bytes).cast_mut().cast();
        header.msg_hdr.msg_namelen = to.len;
        // `IoSlice` is guaranteed to have the layout of `iovec`.
        header.msg_hdr.msg_iov = ptr::from_ref(bytes).cast_mut().cast();
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers point to one address of `msg_namelen` bytes and one `iovec` each, borrowed
    // by this call, so they live through it; sendmmsg only reads through these pointers and writes `msg_len`.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn empty_headers() -> [libc::mmsghdr; CAPACITY] {
    // SAFETY: `mmsghdr` is a C struct of integers and raw pointers; all zero is a valid value of each.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in [
            "192.0.2.1:51820",
            "[2001:db8::7]:1",
            "0.0.0.0:0",
            "[fe80::1%3]:65535",
        ] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::new(addr).addr(), Some(addr), "{text}");
        }
        assert_eq!(RawAddr::EMPTY.addr(), None);
        let short = RawAddr {
            len: 8,
            ..RawAddr::new("192.0.2.1:5".parse().unwrap())
        };
        assert_eq!(short.addr(), None);
    }

    #[test]
    fn many_datagrams_go_out_and_come_in_at_once() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (
                UdpSocket::bind(host).unwrap(),
                UdpSocket::bind(host).unwrap(),
            );
            b.set_nonblocking(true).unwrap();
            let to = RawAddr::new(b.local_addr().unwrap());
            let payloads: Vec<Vec<u8>> = (1..=CAPACITY)
                .map(|n| vec![u8::try_from(n).unwrap(); n])
                .collect();
            let datagrams: Vec<_> = payloads.iter().map(|p| (to, IoSlice::new(p))).collect();
            assert_eq!(send_many(a.as_fd(), &datagrams).unwrap(), CAPACITY);

            let mut room = vec![[0_u8; 100]; CAPACITY];
            let mut slices: Vec<_> = room.iter_mut().map(|r| IoSliceMut::new(r)).collect();
            let mut received = [Received::EMPTY; CAPACITY];
            assert_eq!(
                receive_many(b.as_fd(), &mut slices, &mut received).unwrap(),
                CAPACITY
            );
            for (entry, payload) in received.iter().zip(&payloads) {
                assert_eq!(entry.len, payload.len());
                assert_eq!(entry.from.addr(), Some(a.local_addr().unwrap()));
            }
            let none = receive_many(b.as_fd(), &mut slices, &mut received).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
            drop(slices);
            for (bytes, payload) in room.iter().zip(&payloads) {
                assert_eq!(&bytes[..payload.len()], payload);
            }
        }
    }

    #[test]
    fn a_refused_datagram_gives_the_kernels_error() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wrong_family = (RawAddr::new("[::1]:9".parse().unwrap()), IoSlice::new(b"x"));
        assert!(send_many(a.as_fd(), &[wrong_family]).is_err());
    }

    #[test]
    fn tun_calls_refuse_what_is_no_tun() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tun_attach(a.as_fd(), "subsea-none").is_err());
        assert!(tun_attach(a.as_fd(), "longer-than-15-b").is_err());
        assert!(tun_set_persistent(a.as_fd(), true).is_err());
    }
}
