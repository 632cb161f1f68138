//! Segmentation and coalescing of inner packets, as a network card would do them. All PURE but for this wiring.
//!
//! [`vnet`] reads and writes the header that the kernel puts before a packet of the device, [`split`](mod@split) cuts
//! what it hands over as one into packets of the wire, [`coalesce`] puts packets of one flow together again,
//! [`checksum`] sums, [`flow`] tells flows apart.

pub mod checksum;
pub mod coalesce;
pub mod flow;
pub mod split;
pub mod vnet;

#[cfg(test)]
pub(super) mod tests;
