//! ICMP echo messages (RFC 792, RFC 4443), for stock peers that answer no echo of ours. PURE.

/// The length of a request, in bytes: the header and the time that it was sent.
pub const LEN: usize = 16;

/// One echo request or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Tells our process from others on this host.
    pub id: u16,
    /// Counts the requests.
    pub sequence: u16,
    /// When it was sent, in microseconds of the sender's clock.
    pub sent: u64,
}

impl Ping {
    /// The request. For IPv6 the kernel fills in the checksum.
    pub fn encode(&self, v4: bool) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = if v4 { 8 } else { 128 };
        bytes[4..6].copy_from_slice(&self.id.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sent.to_be_bytes());
        if v4 {
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// Reads an answer as a raw socket gives it: an IPv4 packet with its header, or a bare `ICMPv6` message. `None`
    /// for everything else.
    pub fn decode(packet: &[u8], v4: bool) -> Option<Self> {
        let message = if v4 {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            packet.get(header..)?
        } else {
            packet
        };
        let answer = if v4 { 0 } else { 129 };
        let [kind, code, _, _, rest @ ..] = message else {
            return None;
        };
        if *kind != answer || *code != 0 || (v4 && checksum(message) != 0) {
            return None;
        }
        Some(Self {
            id: u16::from_be_bytes(rest.get(..2)?.try_into().ok()?),
            sequence: u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?),
            sent: u64::from_be_bytes(rest.get(4..12)?.try_into().ok()?),
        })
    }
}

/// The Internet checksum (RFC 1071); zero over a message that carries a right one.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum = words.fold(0u32, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: Ping = Ping {
        id: 0xabcd,
        sequence: 7,
        sent: 123_456_789,
    };

    /// What the other side makes of a request: only type and checksum change.
    fn answer(v4: bool) -> Vec<u8> {
        let mut message = PING.encode(v4);
        if !v4 {
            message[0] = 129;
            return message.to_vec();
        }
        message[0] = 0;
        message[2..4].fill(0);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend(message);
        packet
    }

    #[test]
    fn an_answer_is_known_by_its_content() {
        for v4 in [true, false] {
            assert_eq!(Ping::decode(&answer(v4), v4), Some(PING));
        }
        let mut broken = answer(true);
        broken[30] ^= 1;
        assert_eq!(Ping::decode(&broken, true), None);
        assert_eq!(Ping::decode(&PING.encode(false), false), None, "a request");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), v4: bool) {
            let _ = Ping::decode(&bytes, v4);
        }
    }
}
