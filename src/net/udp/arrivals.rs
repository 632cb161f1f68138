//! What comes from the underlay, many datagrams at once. Shell.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::net::sys::udp::{self as sys, Received};

/// How many buffers one call fills, each with a datagram or a train.
const BUFFERS: usize = 8;
/// Room for the largest train; a distance of an odd number of cache lines keeps the heads of buffers apart in the cache.
const ROOM: usize = 65_536 + 64;

/// What came in one call. Allocated once and used for ever; untouched pages cost nothing.
#[derive(Debug)]
pub struct Arrivals {
    bytes: Box<[u8]>,
    received: [Received; BUFFERS],
    count: usize,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            bytes: vec![0; BUFFERS * ROOM].into_boxed_slice(),
            received: [Received::EMPTY; BUFFERS],
            count: 0,
        }
    }
}

impl Arrivals {
    /// Takes what waits at `socket`, without waiting; gives whether there may be more.
    ///
    /// # Errors
    /// What the kernel says; nothing to read is no error.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        self.count = 0;
        let mut slices = [const { None }; BUFFERS];
        for (slice, room) in slices.iter_mut().zip(self.bytes.chunks_exact_mut(ROOM)) {
            *slice = Some(IoSliceMut::new(room));
        }
        let mut slices = slices.map(|slice| slice.unwrap_or_else(|| IoSliceMut::new(&mut [])));
        match sys::receive_many(socket, &mut slices, &mut self.received) {
            Ok(got) => {
                self.count = got;
                Ok(got == BUFFERS)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The datagrams in order, each with its sender.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let received = self.received.iter().take(self.count);
        received
            .zip(self.bytes.chunks_exact(ROOM))
            .flat_map(|(received, room)| {
                let bytes = room.get(..received.len).unwrap_or_default();
                // Both families always have an address; should the kernel give none, nothing is taken.
                let from = received.from.addr();
                let segment = received.segment.max(1);
                // An empty datagram is one, too.
                let count = bytes.len().div_ceil(segment).max(1);
                (0..count).filter_map(move |n| {
                    let end = bytes.len().min((n + 1) * segment);
                    Some((from?, bytes.get(n * segment..end)?))
                })
            })
    }
}
