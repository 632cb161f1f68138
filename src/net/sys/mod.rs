//! The only unsafe rooms: system calls that no safe crate wraps. Each block holds one operation.
//!
//! [`tun`] has the ioctls of TUN devices, [`udp`] the batches of a socket, [`option`](mod@option) its options.
#![expect(
    unsafe_code,
    reason = "ioctl, recvmmsg, sendmmsg and some socket options have no safe wrapper among our crates"
)]

pub mod option;
pub mod tun;
pub mod udp;
