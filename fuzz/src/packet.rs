//! Packets with checksums summed word by word.

/// What a flow's packets have in common, and the number of the next.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// IPv6 and not IPv4.
    pub v6: bool,
    /// TCP and not UDP.
    pub tcp: bool,
    /// Of IPv4.
    pub dont_fragment: bool,
    /// Words of TCP options.
    pub options: u8,
    /// A port, which tells flows apart.
    pub port: u8,
    /// Of the next packet.
    pub sequence: u32,
    /// Of the next packet.
    pub id: u16,
}

impl Flow {
    /// A flow of the kind that the bits of `choice` say.
    pub fn of_kind(choice: u8) -> Self {
        Self {
            v6: choice & 1 != 0,
            tcp: choice & 2 != 0,
            dont_fragment: choice & 4 != 0,
            options: (choice >> 4) % 11,
            port: 1,
            sequence: 0,
            id: 0,
        }
    }

    /// How long the IP header is.
    pub fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// The bytes of all headers, followed by `payload`; lengths and checksums are not in them yet.
    pub fn packet(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let mut bytes = if self.v6 {
            let header = [0x60, 0, 0, self.port, 0, 0, protocol, 64];
            [&header[..], &[0xfd; 16], &[0xfe; 16]].concat()
        } else {
            let [high, low] = self.id.to_be_bytes();
            let df = if self.dont_fragment { 0x40 } else { 0 };
            let header = [0x45, 0, 0, 0, high, low, df, 0, 64, protocol, 0, 0];
            [&header[..], &[10, 1, 0, 9, 10, 2, 0, 8]].concat()
        };
        bytes.extend([0x9c, self.port, 0x14, 0x51]);
        if self.tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([0, 0, 0, 9, (5 + self.options) << 4, flags, 1, 0]);
            bytes.extend([0; 4]);
            bytes.extend(vec![1; usize::from(self.options) * 4]);
        } else {
            bytes.extend([0; 4]);
        }
        bytes.extend(payload);
        bytes
    }
}

/// Writes lengths and checksums; the sum of the pseudo-header alone where the kernel would leave the rest to a card.
pub fn complete(packet: &mut [u8], flow: Flow, whole: bool) {
    let start = flow.transport();
    let total = packet.len();
    let be = |len: usize| u16::try_from(len).unwrap_or_default().to_be_bytes();
    if flow.v6 {
        packet[4..6].copy_from_slice(&be(total - 40));
    } else {
        packet[2..4].copy_from_slice(&be(total));
        packet[10..12].fill(0);
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum);
    }
    let len = be(total - start);
    if !flow.tcp {
        packet[start + 4..start + 6].copy_from_slice(&len);
    }
    let at = start + if flow.tcp { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let sum = if whole {
        checksum(&summed(packet, start))
    } else {
        let pseudo = summed(&packet[..start], start);
        let len = [&pseudo[..pseudo.len() - 2], &len].concat();
        checksum(&len).map(|byte| !byte)
    };
    let sum = if whole && !flow.tcp && sum == [0, 0] {
        [0xff, 0xff]
    } else {
        sum
    };
    packet[at..at + 2].copy_from_slice(&sum);
}

/// Panics unless lengths and checksums of a packet are right.
pub fn verify(packet: &[u8]) {
    let v6 = packet[0] >> 4 == 6;
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (start, len) = if v6 {
        (40, field(4) + 40)
    } else {
        (20, field(2))
    };
    assert_eq!(len, packet.len(), "the length of IP");
    assert!(
        v6 || checksum(&packet[..20]) == [0, 0],
        "the checksum of IP"
    );
    let protocol = if v6 { packet[6] } else { packet[9] };
    if protocol == 17 {
        assert_eq!(field(start + 4), len - start, "the length of UDP");
        assert_ne!(field(start + 6), 0, "UDP without a checksum");
    }
    assert_eq!(
        checksum(&summed(packet, start)),
        [0, 0],
        "the checksum of the transport"
    );
}

/// All that the checksum of the transport is over.
fn summed(packet: &[u8], start: usize) -> Vec<u8> {
    let v6 = start == 40;
    let (addresses, protocol) = if v6 {
        (&packet[8..40], packet[6])
    } else {
        (&packet[12..20], packet[9])
    };
    let body = &packet[start..];
    let len = u16::try_from(body.len()).unwrap_or_default().to_be_bytes();
    let mut all = [addresses, &[0, protocol], body].concat();
    // At the end behind nothing of odd length, or the bytes of the body would change places.
    if body.len() % 2 == 1 {
        all.push(0);
    }
    all.extend(len);
    all
}

/// Word by word in network byte order, as RFC 1071 section 4.1 has it.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}
