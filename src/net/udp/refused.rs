//! What an ICMP "port unreachable" says: nobody has the port that a datagram of ours went to. PURE.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::panic))]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const UDP: u8 = 17;

/// A datagram that was refused where it went to. Anybody can send such a message: it is a hint, and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The port that it came from.
    pub port: u16,
    /// Where it went to.
    pub to: SocketAddr,
}

/// Reads what a raw ICMP socket gives: an IPv4 packet (RFC 792), or an `ICMPv6` message without its header (RFC 4443).
pub(super) fn read(message: &[u8], v4: bool) -> Option<Refused> {
    let is = |at: usize, value: u8| (message.get(at) == Some(&value)).then_some(());
    if v4 {
        let icmp = header_v4(message)?;
        is(icmp, 3)?;
        is(icmp + 1, 3)?;
        let quoted = message.get(icmp + 8..)?;
        let udp = header_v4(quoted)?;
        (quoted.get(9) == Some(&UDP)).then_some(())?;
        let to = Ipv4Addr::from(field::<4>(quoted, 16)?);
        ends(quoted, udp, to.into())
    } else {
        is(0, 1)?;
        is(1, 4)?;
        let quoted = message.get(8..)?;
        (quoted.first()? >> 4 == 6 && quoted.get(6) == Some(&UDP)).then_some(())?;
        let to = Ipv6Addr::from(field::<16>(quoted, 24)?);
        ends(quoted, 40, to.into())
    }
}

fn ends(quoted: &[u8], udp: usize, to: IpAddr) -> Option<Refused> {
    let port = |at| Some(u16::from_be_bytes(field(quoted, at)?));
    Some(Refused {
        port: port(udp)?,
        to: SocketAddr::new(to, port(udp + 2)?),
    })
}

/// The length of an IPv4 header.
fn header_v4(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    let len = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && len >= 20).then_some(len)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message about a datagram from port 51820 to port 7 of `192.0.2.9` or `2001:db8::9`.
    fn message(v4: bool) -> Vec<u8> {
        let ports = [51_820_u16, 7].map(u16::to_be_bytes).concat();
        if v4 {
            let header = |protocol: u8, to: [u8; 4]| {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1];
                header.extend(to);
                header
            };
            let icmp = [3, 3, 0, 0, 0, 0, 0, 0];
            let parts = [
                &header(1, [10, 0, 0, 1])[..],
                &icmp,
                &header(UDP, [192, 0, 2, 9]),
            ];
            [&parts.concat()[..], &ports, &[0; 4]].concat()
        } else {
            let to: Ipv6Addr = "2001:db8::9".parse().unwrap();
            let icmp = [1, 4, 0, 0, 0, 0, 0, 0];
            let header = [0x60, 0, 0, 0, 0, 0, UDP, 64];
            let parts = [&icmp[..], &header, &[0; 16], &to.octets()];
            [&parts.concat()[..], &ports, &[0; 4]].concat()
        }
    }

    #[test]
    fn the_port_and_the_place_of_a_refused_datagram_are_read() {
        for (v4, to) in [(true, "192.0.2.9:7"), (false, "[2001:db8::9]:7")] {
            let good = message(v4);
            let want = Refused {
                port: 51_820,
                to: to.parse().unwrap(),
            };
            assert_eq!(read(&good, v4), Some(want));
            assert_eq!(read(&good, !v4), None);
            assert_eq!(read(&good[..good.len() - 4], v4), Some(want));
            assert_eq!(read(&good[..good.len() - 5], v4), None, "cut short");
            // Another type, another code, another protocol in the quote.
            let (kind, protocol) = if v4 { (20, 37) } else { (0, 14) };
            for at in [kind, kind + 1, protocol] {
                let mut other = good.clone();
                other[at] ^= 1;
                assert_eq!(read(&other, v4), None, "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..100),
            changes in proptest::collection::vec((0_usize..100, any::<u8>()), 0..4),
            cut in 0_usize..100,
        ) {
            for v4 in [true, false] {
                read(&noise, v4);
                let mut bytes = message(v4);
                for (at, value) in &changes {
                    if let Some(byte) = bytes.get_mut(*at) {
                        *byte = *value;
                    }
                }
                bytes.truncate(cut);
                read(&bytes, v4);
            }
        }
    }
}
