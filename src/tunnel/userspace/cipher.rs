//! Seals and opens data messages with boringtun.
//!
//! Built with `--cfg subsea_without_cipher`, which no feature switches on, the cipher is left out of data messages: such a
//! program measures what everything else costs (`scripts/bench-tunnel`, the floor), talks to its like only, protects
//! nothing, and says so at every start.

use std::net::IpAddr;

use boringtun::noise::{Tunn, TunnResult};

/// What a data message has beside the packet: its header and the tag (whitepaper, section 5.4.6).
const OVERHEAD: usize = HEADER + TAG;
const HEADER: usize = 16;
const TAG: usize = 16;

/// Whether this program encrypts.
pub(super) const ENCRYPTS: bool = cfg!(not(subsea_without_cipher));

/// Seals packets of one peer.
#[derive(Debug, Default)]
pub(super) struct Sealer {
    #[cfg(subsea_without_cipher)]
    header: ([u8; HEADER], u8),
}

impl Sealer {
    /// Writes `packet` as a data message of the present session to `slot`; gives the length. `None` without a session,
    /// or when there is no room: boringtun would panic.
    #[cfg_attr(
        not(subsea_without_cipher),
        expect(
            clippy::unused_self,
            reason = "what is measured without the cipher keeps a header"
        )
    )]
    pub(super) fn seal(
        &mut self,
        tunn: &mut Tunn,
        packet: &[u8],
        slot: &mut [u8],
    ) -> Option<usize> {
        if slot.len() < packet.len() + OVERHEAD {
            return None;
        }
        #[cfg(subsea_without_cipher)]
        if !packet.is_empty() {
            return self.copy(tunn, packet, slot);
        }
        match tunn.encapsulate(packet, slot) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// The session's index is known to boringtun alone: every now and then it is taken from an empty message.
    #[cfg(subsea_without_cipher)]
    fn copy(&mut self, tunn: &mut Tunn, packet: &[u8], slot: &mut [u8]) -> Option<usize> {
        let (header, left) = &mut self.header;
        if *left == 0 {
            let mut empty = [0; 148];
            let TunnResult::WriteToNetwork(datagram) = tunn.encapsulate(&[], &mut empty) else {
                return None;
            };
            *header = *datagram.first_chunk()?;
            *left = 64;
        }
        *left -= 1;
        slot.first_chunk_mut().map(|front| *front = *header)?;
        slot.get_mut(HEADER..HEADER + packet.len())?
            .copy_from_slice(packet);
        Some(packet.len() + OVERHEAD)
    }
}

/// Opens a data message into `room`.
pub(super) fn open<'r>(
    tunn: &mut Tunn,
    from: IpAddr,
    datagram: &[u8],
    room: &'r mut [u8],
) -> TunnResult<'r> {
    #[cfg(subsea_without_cipher)]
    if datagram.len() > OVERHEAD {
        let packet = &datagram[HEADER..datagram.len() - TAG];
        let room = &mut room[..packet.len()];
        room.copy_from_slice(packet);
        return TunnResult::WriteToTunnelV4(room, std::net::Ipv4Addr::UNSPECIFIED);
    }
    tunn.decapsulate(Some(from), datagram, room)
}
