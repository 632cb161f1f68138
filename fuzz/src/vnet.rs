//! Any bytes as the header before a packet: it is written as it was read, and says nothing that no kernel says.

use subsea::tunnel::userspace::offload::vnet::{Checksum, LEN, Vnet};

/// Runs it.
pub fn run(bytes: &[u8]) {
    let Some(header) = bytes.first_chunk::<LEN>() else {
        return;
    };
    let Some(vnet) = Vnet::read(header) else {
        assert!(!matches!(header[1], 0), "a lone packet is never refused");
        return;
    };
    let written = vnet.write();
    assert_eq!(Vnet::read(&written), Some(vnet));
    assert_eq!(written[2..4], header[2..4]);
    if let Some(gso) = vnet.gso {
        assert_ne!(gso.size, 0);
        assert_eq!(written[1..6], header[1..6]);
    }
    if matches!(vnet.checksum, Checksum::Partial { .. }) {
        assert_eq!(written[6..], header[6..]);
    }
}
