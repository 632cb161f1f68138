//! Which inner packets pass: the checks of both directions. PURE.
//!
//! Inbound: the source is the sender's and the destination ours. Outbound: the source is ours and a peer has the
//! destination. Nothing goes from tunnel to tunnel, since no address is both ours and a peer's. What the kernel says
//! to its neighbours on the device (router solicitations, multicast memberships) has none to hear it: it is no drop.

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

/// Judges a packet from our side and says which peer gets it: none when it is meant for the device's own link.
///
/// # Errors
/// The reason to drop it.
pub(super) fn outbound<T: Copy>(
    packet: &[u8],
    local: &Prefixes<()>,
    routes: &Prefixes<T>,
) -> Result<Option<(T, Inner)>, Drop> {
    let inner = inner::parse(packet).ok_or(Drop::Malformed)?;
    if stays_on_link(&inner) {
        return Ok(None);
    }
    if !local.contains(inner.source) {
        return Err(Drop::OutboundSource);
    }
    let peer = routes.get(inner.destination).ok_or(Drop::NoPeer)?;
    Ok(Some((peer, inner)))
}

/// Whether no router would forward it: link-local or without a source, or for all on the link.
fn stays_on_link(inner: &Inner) -> bool {
    let link_local = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let Inner {
        source,
        destination,
        ..
    } = *inner;
    let to_all = match destination {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    source.is_unspecified() || link_local(source) || link_local(destination) || to_all
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
    fn outbound_needs_our_source_and_a_peer() {
        let local = blocks(&["10.1.0.0/16"]);
        let routes = Prefixes::new([
            ("10.2.0.0/16".parse().unwrap(), 'a'),
            ("10.2.7.0/24".parse().unwrap(), 'b'),
        ]);
        let judge = |source, destination| {
            outbound(&packet(source, destination, b"x"), &local, &routes)
                .map(|way| way.map(|(peer, _)| peer))
        };
        for (source, destination, want) in [
            ("10.1.0.9", "10.2.0.9", Ok(Some('a'))),
            ("10.1.0.9", "10.2.7.9", Ok(Some('b'))),
            ("10.1.0.9", "10.1.0.8", Err(Drop::NoPeer)),
            ("10.2.0.9", "10.2.0.9", Err(Drop::OutboundSource)),
            ("192.0.2.1", "10.2.0.9", Err(Drop::OutboundSource)),
            ("fd00:9::1", "fd00:2::1", Err(Drop::OutboundSource)),
        ] {
            assert_eq!(
                judge(source, destination),
                want,
                "{source} to {destination}"
            );
        }
        assert_eq!(
            outbound(&[0x45], &local, &routes).unwrap_err(),
            Drop::Malformed
        );
    }

    #[test]
    fn what_the_kernel_says_to_its_neighbours_is_neither_sent_nor_a_drop() {
        // Even blocks as wide as they come carry none of it.
        let all = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];
        let local = blocks(&all);
        let routes = Prefixes::new(all.map(|block| (block.parse().unwrap(), 'a')));
        for (source, destination) in [
            ("fe80::1", "ff02::2"),
            ("::", "ff02::16"),
            ("::", "ff02::1:ff00:1"),
            ("fe80::1", "fe80::2"),
            ("fe80::1", "fd00:2::1"),
            ("fd00:1::1", "fe80::2"),
            ("fd00:1::1", "ff05::1:3"),
            ("198.19.0.1", "224.0.0.22"),
            ("10.1.0.9", "255.255.255.255"),
            ("0.0.0.0", "255.255.255.255"),
            ("169.254.0.1", "10.2.0.9"),
        ] {
            assert_eq!(
                outbound(&packet(source, destination, b"x"), &local, &routes),
                Ok(None),
                "{source} to {destination}"
            );
        }
    }
}
