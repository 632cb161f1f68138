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
    let write = |bytes: &[u8]| device.tun.write(queue, bytes);
    let Err((packets, error)) = write_or_apart(&device.tun, packet, write) else {
        return;
    };
    if is_lost(&error) {
        device.lose(&error);
    }
    if let Some(owner) = owner {
        owner.drops.add(Drop::Kernel, packets);
    }
}

/// Writes a packet whole, or in its parts where the kernel refuses that; else gives how many were lost, and why.
fn write_or_apart(
    tun: &Tun,
    packet: &mut [u8],
    write: impl Fn(&[u8]) -> io::Result<()>,
) -> Result<(), (u64, io::Error)> {
    match write(packet) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            write_apart(tun, packet, error, write)
        }
        other => other.map_err(|error| (1, error)),
    }
}

/// Writes the packets of a train one by one, since the kernel does not take it whole, as some do not (Linux 6.6.44);
/// no further ones are made.
fn write_apart(
    tun: &Tun,
    bytes: &mut [u8],
    error: io::Error,
    write: impl Fn(&[u8]) -> io::Result<()>,
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
    let mut taken = false;
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
        match write(one) {
            Ok(()) => taken = true,
            Err(error) => failed.get_or_insert((0, error)).0 += 1,
        }
    }
    // Else it was not the size that the kernel did not like.
    if taken
        && tun
            .gro
            .turn_off(format_args!("the kernel refused a large packet: {error}"))
    {
        tracing::warn!(device = tun.name(), %error, "the kernel takes no large packets from the tunnel");
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    use super::super::lane::Lane;
    use super::super::offload::tests::super_packet;
    use super::super::schedule::Side;
    use super::*;
    use crate::key::PrivateKey;
    use crate::net::offload::Offloads;
    use crate::net::tun::tests::with_headers;
    use crate::net::udp::UdpSettings;

    const PACKETS: usize = 40;

    fn device() -> (Arc<Device>, UnixDatagram) {
        let (ours, end) = UnixDatagram::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        (
            Arc::new(Device::new(with_headers(OwnedFd::from(ours)))),
            end,
        )
    }

    fn peer() -> Arc<Peer> {
        let settings = UdpSettings {
            listen_port: 0,
            mark: None,
            offloads: Offloads::AUTO,
        };
        let lane = Lane::open(0, PrivateKey::from_bytes([1; 32]), settings).unwrap();
        let key = PrivateKey::from_bytes([2; 32]).public_key().unwrap();
        Arc::new(Peer::new(&lane, (key, Side::Leads), 7, Instant::now()))
    }

    /// A train behind its header, and the packets of the wire that it stands for.
    fn train(v6: bool, tcp: bool) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (vnet, packet) = super_packet(v6, tcp, (PACKETS - 1) * 1_300 + 5, 1_300, 7);
        let mut cut = packet.clone();
        let mut split = Split::new(&vnet, &mut cut).unwrap();
        let packets: Vec<Vec<u8>> =
            std::iter::from_fn(|| split.next(&mut cut).map(|r| cut[r].to_vec())).collect();
        assert_eq!(packets.len(), PACKETS);
        ([&vnet.write()[..], &packet].concat(), packets)
    }

    /// The header and the packet of what was written.
    fn read(bytes: &[u8]) -> (Vnet, Vec<u8>) {
        let vnet = Vnet::read(bytes.first_chunk().unwrap()).unwrap();
        (vnet, bytes[vnet::LEN..].to_vec())
    }

    #[test]
    fn a_large_packet_that_the_kernel_refuses_goes_packet_by_packet() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            let (device, _end) = device();
            let (mut bytes, packets) = train(v6, tcp);
            let taken = RefCell::new(Vec::new());
            let like_linux_6_6_44 = |bytes: &[u8]| {
                let (vnet, packet) = read(bytes);
                if vnet.gso.is_some() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                assert_eq!(vnet, Vnet::default());
                taken.borrow_mut().push(packet);
                Ok(())
            };
            write_or_apart(&device.tun, &mut bytes, like_linux_6_6_44).unwrap();
            assert_eq!(taken.into_inner(), packets, "IPv6 {v6}, TCP {tcp}");
            let reason = device.tun.gro.reason().expect("it is switched off");
            assert!(
                reason.starts_with("the kernel refused a large packet: "),
                "{reason}"
            );
        }
    }

    #[test]
    fn what_is_refused_in_parts_too_counts_each_and_a_lone_packet_counts_once() {
        let (device, _end) = device();
        let (mut bytes, packets) = train(false, true);
        let refuse = |_: &[u8]| Err(io::Error::from_raw_os_error(libc::EINVAL));
        let (lost, _) = write_or_apart(&device.tun, &mut bytes, refuse).unwrap_err();
        assert_eq!(lost, PACKETS as u64);
        let mut lone = [&Vnet::default().write()[..], &packets[0]].concat();
        let (lost, _) = write_or_apart(&device.tun, &mut lone, refuse).unwrap_err();
        assert_eq!(lost, 1);
    }

    #[test]
    fn no_large_packet_is_made_any_more() {
        let (device, end) = device();
        let peer = peer();
        let (_, packets) = train(false, true);
        let mut inside = Inside::new(0);
        for refused in [false, true] {
            if refused {
                device.tun.gro.turn_off("refused");
            }
            inside.turn_to(Arc::clone(&device));
            let mut written = Vec::new();
            let mut room = vec![0; 70_000];
            // A socket pair holds few packets.
            for packet in &packets[..8] {
                inside.room()[..packet.len()].copy_from_slice(packet);
                if !inside.joins(packet.len(), &peer) {
                    inside.begin(packet.len(), &peer);
                }
            }
            inside.flush();
            while let Ok(len) = end.recv(&mut room) {
                written.push(read(&room[..len]));
            }
            let large = written.iter().filter(|(vnet, _)| vnet.gso.is_some());
            let counts = (large.count(), written.len());
            assert_eq!(counts, if refused { (0, 8) } else { (1, 1) });
        }
        assert!(peer.drops.read().is_empty(), "{:?}", peer.drops.read());
    }
}
