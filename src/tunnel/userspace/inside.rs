//! Decrypted packets on their way to the device, put together where they belong together. Shell around the coalescer.

use std::io;
use std::sync::Arc;

use super::offload::coalesce::{Allowed, Coalescer, Offered};
use super::offload::split::Split;
use super::offload::vnet::{self, Vnet};
use super::peer::Peer;
use super::shared::Device;
use crate::net::tun::{Tun, is_lost};
use crate::tunnel::Drop;

/// What one thread writes to the device.
pub(super) struct Inside {
    /// Which queue of the device.
    queue: usize,
    device: Option<Arc<Device>>,
    coalescer: Coalescer,
    /// Whose the pending packet is.
    owner: Option<Arc<Peer>>,
}

impl Inside {
    pub(super) fn new(queue: usize) -> Self {
        let nothing = Allowed {
            tcp: false,
            udp: false,
        };
        Self {
            queue,
            device: None,
            coalescer: Coalescer::new(nothing),
            owner: None,
        }
    }

    /// Writes to `device` from now on. Nothing may be pending.
    pub(super) fn turn_to(&mut self, device: Arc<Device>) {
        let gro = device.tun.gro.is_on();
        self.coalescer.allow(Allowed {
            tcp: gro && device.tun.tso.is_on(),
            udp: gro && device.tun.uso.is_on(),
        });
        self.device = Some(device);
    }

    /// Where to decrypt the next packet to; [`Self::joins`] or [`Self::reject`] must follow.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.coalescer.room()
    }

    /// Nothing is to be written of what was decrypted.
    pub(super) fn reject(&mut self) {
        self.coalescer.reject();
    }

    /// Takes the packet of `len` bytes that was decrypted, if it can be done without writing; else
    /// [`Self::begin`] must follow.
    pub(super) fn joins(&mut self, len: usize, peer: &Arc<Peer>) -> bool {
        let joined = self.coalescer.offer(len) == Offered::Joined;
        if joined && self.owner.is_none() {
            self.owner = Some(Arc::clone(peer));
        }
        joined
    }

    /// Writes what is pending, and takes the packet of `len` bytes that did not join it.
    pub(super) fn begin(&mut self, len: usize, peer: &Arc<Peer>) {
        let (device, queue) = (self.device.as_ref(), self.queue);
        let owner = self.owner.replace(Arc::clone(peer));
        self.coalescer
            .begin(len, |packet| write(device, queue, owner.as_ref(), packet));
    }

    /// Writes what is pending.
    pub(super) fn flush(&mut self) {
        let (device, queue) = (self.device.as_ref(), self.queue);
        let owner = self.owner.take();
        self.coalescer
            .finish(|packet| write(device, queue, owner.as_ref(), packet));
    }
}

/// Writes a packet behind its header; what the kernel does not take counts as dropped.
fn write(device: Option<&Arc<Device>>, queue: usize, owner: Option<&Arc<Peer>>, packet: &mut [u8]) {
    let Some(device) = device else { return };
    let Err(error) = device.tun.write(queue, packet) else {
        return;
    };
    let refused = if error.raw_os_error() == Some(libc::EINVAL) {
        write_apart(&device.tun, queue, packet, error)
    } else {
        Err((1, error))
    };
    if let Err((packets, error)) = refused {
        if is_lost(&error) {
            device.lose(&error);
        }
        if let Some(owner) = owner {
            owner.drops.add(Drop::Kernel, packets);
        }
    }
}

/// Writes the packets of a train one by one, since the kernel does not take it whole, as some do not (Linux 6.6.44);
/// no further ones are made.
fn write_apart(
    tun: &Tun,
    queue: usize,
    bytes: &mut [u8],
    error: io::Error,
) -> Result<(), (u64, io::Error)> {
    let vnet = bytes
        .first_chunk()
        .and_then(Vnet::read)
        .filter(|vnet| vnet.gso.is_some());
    let Some((vnet, packet)) = vnet.zip(bytes.get_mut(vnet::LEN..)) else {
        return Err((1, error));
    };
    let Some(mut split) = Split::new(&vnet, packet) else {
        return Err((1, error));
    };
    if tun
        .gro
        .turn_off(format_args!("the kernel refused a large packet: {error}"))
    {
        tracing::warn!(device = tun.name(), %error, "the kernel takes no large packets from the tunnel");
    }
    let mut failed: Option<(u64, io::Error)> = None;
    while let Some(range) = bytes
        .get_mut(vnet::LEN..)
        .and_then(|packet| split.next(packet))
    {
        // The header of the device goes over the end of the packet before, which is written by now.
        let Some(one) = bytes.get_mut(range.start..vnet::LEN + range.end) else {
            break;
        };
        if let Some(front) = one.first_chunk_mut() {
            *front = Vnet::default().write();
        }
        if let Err(error) = tun.write(queue, one) {
            failed.get_or_insert((0, error)).0 += 1;
        }
    }
    failed.map_or(Ok(()), Err)
}
