//! A netlink socket that asks and waits for the answer. Shell.
//!
//! The kernel answers inside the call that sends: so requests block, and need no runtime.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use zeroize::Zeroizing;

/// Enough for any part of an answer.
const ANSWER: usize = 64 * 1024;
/// The answers of a large listing wait here.
const BUFFER: u32 = 4 * 1024 * 1024;

/// Why a request was not served.
#[derive(Debug)]
pub enum Failure {
    /// The kernel's error number.
    Refused(i32),
    /// The socket's error.
    Io(io::Error),
    /// The answer makes no sense.
    Answer(String),
}

/// A netlink socket for one request at a time.
pub struct Door {
    socket: Socket,
    sequence: u32,
    /// Answers may hold the device's private key.
    answer: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// Opens one of a protocol (`NETLINK_*`) in the network namespace of this thread.
    ///
    /// # Errors
    /// The socket's.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_rx_buf_sz(BUFFER)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open()?,
            sequence: 0,
            answer: Zeroizing::new(Vec::with_capacity(ANSWER)),
        })
    }

    /// Asks, and hands on every message of the answer, whole and without its header, until the kernel says that it
    /// was the last one.
    ///
    /// # Errors
    /// Any [`Failure`]; `EINTR` when a listing was disturbed by changes.
    pub fn ask(
        &mut self,
        request: &mut [u8],
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        const INTERRUPTED: u16 = 0x10;
        self.sequence = self.sequence.wrapping_add(1);
        if let Some(place) = request.get_mut(8..12) {
            place.copy_from_slice(&self.sequence.to_ne_bytes());
        }
        self.socket.send(request, 0).map_err(Failure::Io)?;
        let mut disturbed = false;
        loop {
            self.answer.clear();
            // The kernel has answered already: what is not there will not come.
            self.socket
                .recv(&mut *self.answer, libc::MSG_DONTWAIT)
                .map_err(Failure::Io)?;
            let mut rest = self.answer.as_slice();
            while let Some((header, message)) = first(rest) {
                rest = rest
                    .get(message.len().next_multiple_of(4)..)
                    .unwrap_or_default();
                // An answer to a request that was given up.
                if header.sequence != self.sequence {
                    continue;
                }
                disturbed |= header.flags & INTERRUPTED != 0;
                let payload = message.get(HEADER..).unwrap_or_default();
                match header.kind {
                    ERROR | DONE => {
                        let code = payload.get(..4).and_then(|code| code.try_into().ok());
                        return match code.map_or(0, i32::from_ne_bytes) {
                            0 if disturbed => Err(Failure::Refused(libc::EINTR)),
                            0.. => Ok(()),
                            code => Err(Failure::Refused(-code)),
                        };
                    }
                    _ => take(message, payload)?,
                }
            }
        }
    }
}

const HEADER: usize = 16;

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of a datagram.
fn first(datagram: &[u8]) -> Option<(Header, &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let header = Header {
        kind: u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?),
        flags: u16::from_ne_bytes(datagram.get(6..8)?.try_into().ok()?),
        sequence: u32::from_ne_bytes(datagram.get(8..12)?.try_into().ok()?),
    };
    let message = datagram.get(..length).filter(|m| m.len() >= HEADER)?;
    Some((header, message))
}
