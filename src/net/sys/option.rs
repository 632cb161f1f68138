//! Socket options that are one number, or some.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

const SIZE: libc::socklen_t = 4;
const _: () = assert!(size_of::<libc::c_int>() == SIZE as usize);

/// Sets an option whose value is an `int`.
///
/// # Errors
/// What `setsockopt` says, ENOPROTOOPT for one that the kernel does not know.
pub fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_all(socket, level, name, &[value])
}

/// Sets an option whose value is as many numbers.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_all(socket: BorrowedFd<'_>, level: i32, name: i32, values: &[i32]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(values)).map_err(io::Error::other)?;
    // SAFETY: the option is read from `values`, initialised numbers of `len` bytes in all that outlive the call.
    let code =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, values.as_ptr().cast(), len) };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads an option whose value is an `int`.
///
/// # Errors
/// What `getsockopt` says.
pub fn get(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = SIZE;
    // SAFETY: at most `len` bytes are written to `value`, which has as many; both outlive the call.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_mut(&mut value).cast(),
            ptr::from_mut(&mut len),
        )
    };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn options_are_kept_and_unknown_ones_refused() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for value in [libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT] {
            set(
                socket.as_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                value,
            )
            .unwrap();
            let read = get(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
            assert_eq!(read.unwrap(), value);
        }
        assert!(set(socket.as_fd(), libc::IPPROTO_IP, 9_999, 1).is_err());
        assert!(get(socket.as_fd(), libc::IPPROTO_IP, 9_999).is_err());
    }
}
