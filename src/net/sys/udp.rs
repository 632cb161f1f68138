//! Batches of datagrams, with segmentation and coalescing by the kernel (udp(7): `UDP_SEGMENT`, `UDP_GRO`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Most messages of one call.
pub const MESSAGES: usize = 32;

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

/// Room for one control message that holds a number: header, number and padding, aligned like `cmsghdr`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; 24]);

/// `cmsg_len`, `cmsg_level` and `cmsg_type` on 64-bit Linux.
const CONTROL_HEADER: usize = 16;
const _: () = assert!(size_of::<libc::cmsghdr>() == CONTROL_HEADER);

impl Control {
    const EMPTY: Self = Self([0; 24]);

    /// `UDP_SEGMENT`: into datagrams of how many bytes the kernel cuts what is sent.
    fn segment(size: u16) -> Self {
        let mut control = Self::EMPTY;
        let mut put = |at: usize, field: &[u8]| {
            control.0[at..at + field.len()].copy_from_slice(field);
        };
        put(0, &(CONTROL_HEADER + 2).to_ne_bytes());
        put(8, &libc::SOL_UDP.to_ne_bytes());
        put(12, &libc::UDP_SEGMENT.to_ne_bytes());
        put(CONTROL_HEADER, &size.to_ne_bytes());
        control
    }

    /// The number of `UDP_GRO`: of how many bytes each the received datagrams are.
    fn gro(&self) -> Option<usize> {
        let int = |at: usize| Some(i32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let is_gro = int(8)? == libc::SOL_UDP && int(12)? == libc::UDP_GRO;
        usize::try_from(int(CONTROL_HEADER)?)
            .ok()
            .filter(|size| is_gro && *size > 0)
    }
}

/// What one buffer got in [`receive_many`]: one datagram, or several of one sender, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// How many bytes, cut to the buffer's length.
    pub len: usize,
    /// The length of each datagram but the last, which may be shorter.
    pub segment: usize,
    /// The sender.
    pub from: RawAddr,
    control: Control,
}

impl Received {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        len: 0,
        segment: 0,
        from: RawAddr::EMPTY,
        control: Control::EMPTY,
    };
}

/// Receives into up to [`MESSAGES`] buffers at once; gives how many were used.
///
/// # Errors
/// What `recvmmsg` says, `WouldBlock` when a non-blocking socket has nothing.
pub fn receive_many(
    socket: BorrowedFd<'_>,
    buffers: &mut [IoSliceMut<'_>],
    received: &mut [Received],
) -> io::Result<usize> {
    let mut headers = empty_headers();
    let mut count: libc::c_uint = 0;
    for ((header, buffer), entry) in headers.iter_mut().zip(buffers).zip(received.iter_mut()) {
        *entry = Received::EMPTY;
        header.msg_hdr.msg_name = ptr::from_mut(&mut entry.from.bytes).cast();
        header.msg_hdr.msg_namelen = entry.from.len;
        // `IoSliceMut` is guaranteed to have the layout of `iovec`.
        header.msg_hdr.msg_iov = ptr::from_mut(buffer).cast();
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = ptr::from_mut(&mut entry.control).cast();
        header.msg_hdr.msg_controllen = size_of::<Control>();
        count += 1;
    }
    // SAFETY: the first `count` headers point to one address of `msg_namelen` bytes, one `iovec` and one control
    // buffer of `msg_controllen` bytes each, all borrowed mutably by this call, so they live through it and nothing
    // else touches them; the timeout may be null.
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
        let has_control = header.msg_hdr.msg_controllen > CONTROL_HEADER;
        let gro = entry.control.gro().filter(|_| has_control);
        entry.segment = gro.unwrap_or(entry.len);
    }
    Ok(got)
}

/// Bytes for one address.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// Where they go.
    pub to: RawAddr,
    /// The datagrams, one after the other.
    pub bytes: IoSlice<'a>,
    /// The length of each datagram but the last, which may be shorter; `None` when there is one only.
    pub segment: Option<u16>,
}

/// Sends up to [`MESSAGES`] trains at once; gives how many were sent before the first that was refused.
///
/// # Errors
/// What `sendmmsg` says of the first train.
pub fn send_many(socket: BorrowedFd<'_>, trains: &[Train<'_>]) -> io::Result<usize> {
    let mut headers = empty_headers();
    let mut controls = [Control::EMPTY; MESSAGES];
    let mut count: libc::c_uint = 0;
    for ((header, control), train) in headers.iter_mut().zip(&mut controls).zip(trains) {
        header.msg_hdr.msg_name = ptr::from_ref(&train.to.bytes).cast_mut().cast();
        header.msg_hdr.msg_namelen = train.to.len;
        // `IoSlice` is guaranteed to have the layout of `iovec`.
        header.msg_hdr.msg_iov = ptr::from_ref(&train.bytes).cast_mut().cast();
        header.msg_hdr.msg_iovlen = 1;
        if let Some(segment) = train.segment {
            *control = Control::segment(segment);
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = size_of::<Control>();
        }
        count += 1;
    }
    // SAFETY: the first `count` headers point to one address of `msg_namelen` bytes, one `iovec` and at most one
    // control buffer each, borrowed by this call or standing in this frame, so they live through it; sendmmsg only
    // reads through these pointers and writes `msg_len`.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn empty_headers() -> [libc::mmsghdr; MESSAGES] {
    // SAFETY: `mmsghdr` is a C struct of integers and raw pointers; all zero is a valid value of each.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;
    use crate::net::sys::option;

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

    /// A sender and a receiver on one host.
    fn pair(host: &str, gro: bool) -> (UdpSocket, UdpSocket) {
        let (a, b) = (
            UdpSocket::bind(host).unwrap(),
            UdpSocket::bind(host).unwrap(),
        );
        b.set_nonblocking(true).unwrap();
        option::set(b.as_fd(), libc::SOL_UDP, libc::UDP_GRO, i32::from(gro)).unwrap();
        (a, b)
    }

    #[test]
    fn many_datagrams_go_out_and_come_in_at_once() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(host, false);
            let to = RawAddr::new(b.local_addr().unwrap());
            let payloads: Vec<Vec<u8>> = (1..=MESSAGES)
                .map(|n| vec![u8::try_from(n).unwrap(); n])
                .collect();
            let trains: Vec<_> = payloads
                .iter()
                .map(|p| Train {
                    to,
                    bytes: IoSlice::new(p),
                    segment: None,
                })
                .collect();
            assert_eq!(send_many(a.as_fd(), &trains).unwrap(), MESSAGES);

            let mut room = vec![[0_u8; 100]; MESSAGES];
            let mut slices: Vec<_> = room.iter_mut().map(|r| IoSliceMut::new(r)).collect();
            let mut received = [Received::EMPTY; MESSAGES];
            assert_eq!(
                receive_many(b.as_fd(), &mut slices, &mut received).unwrap(),
                MESSAGES
            );
            for (entry, payload) in received.iter().zip(&payloads) {
                assert_eq!((entry.len, entry.segment), (payload.len(), payload.len()));
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
    fn a_train_is_cut_by_the_kernel_and_put_together_again() {
        for (host, gro) in [
            ("127.0.0.1:0", true),
            ("[::1]:0", true),
            ("127.0.0.1:0", false),
        ] {
            let (a, b) = pair(host, gro);
            let bytes: Vec<u8> = (0..2_050_u32).map(|n| n.to_ne_bytes()[0]).collect();
            let train = Train {
                to: RawAddr::new(b.local_addr().unwrap()),
                bytes: IoSlice::new(&bytes),
                segment: Some(1_000),
            };
            assert_eq!(send_many(a.as_fd(), &[train]).unwrap(), 1);
            let mut room = vec![[0_u8; 4_000]; 4];
            let mut slices: Vec<_> = room.iter_mut().map(|r| IoSliceMut::new(r)).collect();
            let mut received = [Received::EMPTY; 4];
            let got = receive_many(b.as_fd(), &mut slices, &mut received).unwrap();
            let seen: Vec<_> = received[..got].iter().map(|r| (r.len, r.segment)).collect();
            drop(slices);
            if gro {
                assert_eq!(seen, [(2_050, 1_000)], "{host}");
                assert_eq!(room[0][..2_050], bytes);
            } else {
                assert_eq!(seen, [(1_000, 1_000), (1_000, 1_000), (50, 50)]);
            }
        }
    }

    #[test]
    fn a_refused_datagram_gives_the_kernels_error() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let wrong_family = Train {
            to: RawAddr::new("[::1]:9".parse().unwrap()),
            bytes: IoSlice::new(b"x"),
            segment: None,
        };
        assert!(send_many(a.as_fd(), &[wrong_family]).is_err());
    }
}
