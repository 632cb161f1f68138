//! Which inner packets pass: the checks of both directions. PURE.
//!
//! Inbound: the source is the sender's and the destination ours. Outbound: the source is ours and a peer has the
//! destination. Nothing goes from tunnel to tunnel, since no address is both ours and a peer's.

use std::net::IpAddr;

use super::inner::{self, Inner};
use super::prefixes::Prefixes;
use crate::tunnel::Drop;

/// Judges a decrypted packet of a peer that may send from `sources`; `local` is ours.
///
/// # Errors
/// The reason to drop it.
pub(super) fn inbound(
    packet: &[u8],
    sources: &Prefixes<()>,
    local: &Prefixes<()>,
) -> Result<Inner, Drop> {
    let inner = inner::parse(packet).ok_or(Drop::Malformed)?;
    if !sources.contains(inner.source) {
        return Err(Drop::ForeignSource);
    }
    if !local.contains(inner.destination) {
        return Err(Drop::ForeignDestination);
    }
    Ok(inner)
}

/// Judges a packet from our side and says which peer gets it.
///
/// # Errors
/// The reason to drop it.
pub(super) fn outbound<T: Copy>(
    packet: &[u8],
    local: &Prefixes<()>,
    routes: &Prefixes<T>,
) -> Result<(T, Inner), Drop> {
    let inner = inner::parse(packet).ok_or(Drop::Malformed)?;
    if !local.contains(inner.source) {
        return Err(Drop::OutboundSource);
    }
    let peer = routes.get(inner.destination).ok_or(Drop::NoPeer)?;
    Ok((peer, inner))
}

/// Whether the kernel talks to itself: listener reports and router solicitations, which it sends on every device
/// that is up. They go nowhere, and are no drops that anybody should look into.
pub(super) fn is_chatter(packet: &[u8]) -> bool {
    inner::parse(packet).is_some_and(|inner| match (inner.source, inner.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            destination.is_multicast()
                && (source.is_unicast_link_local() || source.is_unspecified())
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::inner::tests::packet;
    use super::*;

    fn blocks(texts: &[&str]) -> Prefixes<()> {
        Prefixes::new(texts.iter().map(|text| (text.parse().unwrap(), ())))
    }

    #[test]
    fn inbound_needs_the_senders_source_and_our_destination() {
        let sources = blocks(&["10.2.0.0/16", "198.19.0.2/32", "fd00:2::/48"]);
        let local = blocks(&["10.1.0.0/16", "fd00:1::/48"]);
        for (source, destination, want) in [
            ("10.2.0.9", "10.1.0.9", Ok(())),
            ("198.19.0.2", "10.1.0.9", Ok(())),
            ("fd00:2::9", "fd00:1::9", Ok(())),
            ("10.3.0.9", "10.1.0.9", Err(Drop::ForeignSource)),
            ("10.1.0.8", "10.1.0.9", Err(Drop::ForeignSource)),
            ("127.0.0.1", "10.1.0.9", Err(Drop::ForeignSource)),
            ("fd00:3::9", "fd00:1::9", Err(Drop::ForeignSource)),
            ("10.2.0.9", "10.3.0.9", Err(Drop::ForeignDestination)),
            ("10.2.0.9", "10.2.0.8", Err(Drop::ForeignDestination)),
            ("10.2.0.9", "224.0.0.1", Err(Drop::ForeignDestination)),
            ("fd00:2::9", "ff02::1", Err(Drop::ForeignDestination)),
        ] {
            let got = inbound(&packet(source, destination, b"x"), &sources, &local).map(|_| ());
            assert_eq!(got, want, "{source} to {destination}");
        }
        assert_eq!(
            inbound(b"not a packet", &sources, &local).unwrap_err(),
            Drop::Malformed
        );
    }

    #[test]
    fn chatter_is_what_the_kernel_sends_by_itself() {
        for (source, destination, want) in [
            ("fe80::1", "ff02::2", true),
            ("::", "ff02::16", true),
            ("fd00:1::9", "ff02::2", false),
            ("fe80::1", "fd00:2::9", false),
            ("10.1.0.9", "224.0.0.1", false),
        ] {
            let got = is_chatter(&packet(source, destination, b"x"));
            assert_eq!(got, want, "{source} to {destination}");
        }
    }

    #[test]
    fn outbound_needs_our_source_and_a_peer() {
        let local = blocks(&["10.1.0.0/16"]);
        let routes = Prefixes::new([
            ("10.2.0.0/16".parse().unwrap(), 'a'),
            ("10.2.7.0/24".parse().unwrap(), 'b'),
        ]);
        for (source, destination, want) in [
            ("10.1.0.9", "10.2.0.9", Ok('a')),
            ("10.1.0.9", "10.2.7.9", Ok('b')),
            ("10.1.0.9", "10.1.0.8", Err(Drop::NoPeer)),
            ("10.1.0.9", "255.255.255.255", Err(Drop::NoPeer)),
            ("10.2.0.9", "10.2.0.9", Err(Drop::OutboundSource)),
            ("0.0.0.0", "10.2.0.9", Err(Drop::OutboundSource)),
        ] {
            let got =
                outbound(&packet(source, destination, b"x"), &local, &routes).map(|(peer, _)| peer);
            assert_eq!(got, want, "{source} to {destination}");
        }
        assert_eq!(
            outbound(&[0x45], &local, &routes).unwrap_err(),
            Drop::Malformed
        );
    }
}
