//! A batch of packet buffers, allocated once and used for ever. PURE.
//!
//! A batch is filled from the front: take [`Batch::spare`], write into it, [`Batch::commit`] the length.

/// Most packets in one batch; also what the kernel is asked for at once.
pub const CAPACITY: usize = 64;

/// Room for one packet: the largest datagram, and a distance between slots that is an odd number of cache lines,
/// so that the heads of all slots do not fall into the same set of the cache. Untouched pages cost nothing.
pub const SLOT: usize = 65_536 + 25 * 64;

/// Up to [`CAPACITY`] packets, each with a `T`: where it came from or goes to.
#[derive(Debug)]
pub struct Batch<T> {
    bytes: Box<[u8]>,
    packets: Vec<(usize, T)>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Batch<T> {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY * SLOT].into_boxed_slice(),
            packets: Vec::with_capacity(CAPACITY),
        }
    }

    /// How many packets it holds.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether no further packet fits.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= CAPACITY
    }

    /// Forgets all packets; the buffers stay.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    /// The packets in order.
    pub fn iter(&self) -> impl Iterator<Item = (&T, &[u8])> {
        self.packets
            .iter()
            .zip(self.bytes.chunks_exact(SLOT))
            .map(|((len, with), slot)| (with, &slot[..*len]))
    }

    /// The packet at `position`.
    pub fn get(&self, position: usize) -> Option<(&T, &[u8])> {
        let (len, with) = self.packets.get(position)?;
        let start = position * SLOT;
        Some((with, &self.bytes[start..start + len]))
    }

    /// The next free slot, whole; `None` when the batch is full.
    pub fn spare(&mut self) -> Option<&mut [u8]> {
        self.spares().next()
    }

    /// All free slots, in the order in which [`Self::commit`] takes them.
    pub fn spares(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(SLOT).skip(self.packets.len())
    }

    /// Makes the next free slot a packet of `len` bytes. Ignored when the batch is full.
    pub fn commit(&mut self, len: usize, with: T) {
        if !self.is_full() {
            self.packets.push((len.min(SLOT), with));
        }
    }

    /// Copies `packet` into the batch; false when it is full or the packet too large.
    pub fn push(&mut self, packet: &[u8], with: T) -> bool {
        let Some(room) = self.spare().and_then(|slot| slot.get_mut(..packet.len())) else {
            return false;
        };
        room.copy_from_slice(packet);
        self.commit(packet.len(), with);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_as_they_went_in_and_never_beyond_capacity() {
        let mut batch = Batch::new();
        for n in 0..CAPACITY {
            assert!(batch.push(&vec![u8::try_from(n).unwrap(); n + 1], n));
        }
        assert!(batch.is_full());
        assert!(batch.spare().is_none());
        assert!(!batch.push(&[1], 0));
        for (position, (with, packet)) in batch.iter().enumerate() {
            assert_eq!((*with, packet.len()), (position, position + 1));
            assert_eq!(batch.get(position).unwrap().1, packet);
        }
        assert!(batch.get(CAPACITY).is_none());
        batch.clear();
        assert!(batch.is_empty());
        assert!(!batch.push(&vec![0; SLOT + 1], 0));
    }
}
