//! Room for the packets that wait between the device and the cipher. Shell: it reads the device.
//!
//! A packet is read into a small place and, if it is longer, on into a large one; most packets are small or very
//! large. Places are taken last freed first, so that a short queue stays in the cache.

use std::io;

use crate::net::tun::{Tun, VNET};

/// A place for an ordinary packet, header included.
const SMALL: usize = 2_048;
/// A place for the largest one.
const LARGE: usize = VNET + 65_536 + 118;
const SMALL_PLACES: u32 = 512;
const LARGE_PLACES: u32 = 48;

/// Packets by number.
pub(super) struct Pool {
    small: Box<[u8]>,
    large: Box<[u8]>,
    free_small: Vec<u32>,
    free_large: Vec<u32>,
    lengths: Vec<usize>,
}

/// Of which size a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

impl Pool {
    pub(super) fn new() -> Self {
        let room = |places: u32, size: usize| vec![0; places as usize * size].into_boxed_slice();
        Self {
            small: room(SMALL_PLACES, SMALL),
            large: room(LARGE_PLACES, LARGE),
            free_small: (0..SMALL_PLACES).rev().collect(),
            free_large: (SMALL_PLACES..SMALL_PLACES + LARGE_PLACES).rev().collect(),
            lengths: vec![0; (SMALL_PLACES + LARGE_PLACES) as usize],
        }
    }

    /// Of which size there is no free place: something must be given back before the next read.
    pub(super) fn lacks(&self) -> Option<Size> {
        if self.free_small.is_empty() {
            Some(Size::Small)
        } else if self.free_large.is_empty() {
            Some(Size::Large)
        } else {
            None
        }
    }

    /// Of which size the place of a packet is.
    pub(super) fn size(packet: u32) -> Size {
        if packet < SMALL_PLACES {
            Size::Small
        } else {
            Size::Large
        }
    }

    /// Reads a packet; `None` when none waits or there is no place.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn read(&mut self, tun: &Tun, queue: usize) -> io::Result<Option<u32>> {
        let (Some(&small), Some(&large)) = (self.free_small.last(), self.free_large.last()) else {
            return Ok(None);
        };
        let small_at = small as usize * SMALL;
        let large_at = (large - SMALL_PLACES) as usize * LARGE;
        let first = self
            .small
            .get_mut(small_at..small_at + SMALL)
            .unwrap_or_default();
        let whole = self
            .large
            .get_mut(large_at..large_at + LARGE)
            .unwrap_or_default();
        let (front, rest) = whole.split_at_mut(SMALL);
        let Some(len) = tun.read(queue, [first, rest])? else {
            return Ok(None);
        };
        let packet = if len <= SMALL {
            self.free_small.pop();
            small
        } else {
            front.copy_from_slice(first);
            self.free_large.pop();
            large
        };
        if let Some(length) = self.lengths.get_mut(packet as usize) {
            *length = len;
        }
        Ok(Some(packet))
    }

    /// The bytes of a packet, behind its `virtio_net_hdr`.
    pub(super) fn get_mut(&mut self, packet: u32) -> &mut [u8] {
        let len = self
            .lengths
            .get(packet as usize)
            .copied()
            .unwrap_or_default();
        let (room, at) = match Self::size(packet) {
            Size::Small => (&mut self.small, packet as usize * SMALL),
            Size::Large => (&mut self.large, (packet - SMALL_PLACES) as usize * LARGE),
        };
        room.get_mut(at..at + len).unwrap_or_default()
    }

    /// Gives a place back.
    pub(super) fn free(&mut self, packet: u32) {
        match Self::size(packet) {
            Size::Small => self.free_small.push(packet),
            Size::Large => self.free_large.push(packet),
        }
    }
}
