use std::collections::BTreeSet;

use netlink_packet_core::NetlinkPayload;

use super::*;
use crate::key::PrivateKey;

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

fn decoded(bytes: &[u8]) -> Generic {
    let message = NetlinkMessage::<Generic>::deserialize(bytes).unwrap();
    assert_eq!(message.header.message_type, 29);
    assert_eq!(message.header.length as usize, bytes.len());
    let NetlinkPayload::InnerMessage(inner) = message.payload else {
        panic!("{message:?}");
    };
    inner
}

fn blocks(count: u16) -> Vec<Cidr> {
    (0..count)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            format!("10.{high}.{low}.0/24").parse().unwrap()
        })
        .chain(["fd00:1::/48".parse().unwrap()])
        .collect()
}

#[test]
fn what_is_set_is_read_again() {
    let mut change = PeerChange::new(key(7));
    change.endpoint = Some("[2001:db8::1]:51820".parse().unwrap());
    change.keepalive = Some(25);
    change.allowed = blocks(3);
    let settings = Settings {
        key: Some(PrivateKey::from_bytes([9; 32])),
        port: Some(51_821),
        fwmark: Some(0x40),
    };
    let requests = set(29, 4, &settings, std::slice::from_ref(&change));
    assert_eq!(requests.len(), 1);
    let mut device = Device::default();
    read(&mut device, decoded(&requests[0]));
    assert_eq!((device.port, device.fwmark), (51_821, 0x40));
    let peer = &device.peers[&key(7)];
    assert_eq!((peer.endpoint, peer.keepalive), (change.endpoint, 25));
    assert_eq!(peer.allowed, BTreeSet::from_iter(change.allowed));
    assert_eq!(peer.latest_handshake, None);
}

#[test]
fn a_key_is_blanked_in_a_message_and_all_else_is_left() {
    let settings = Settings {
        key: Some(PrivateKey::from_bytes([9; 32])),
        port: Some(51_821),
        fwmark: Some(0x40),
    };
    let change = PeerChange::new(key(7));
    let request = set(29, 4, &settings, std::slice::from_ref(&change)).remove(0);
    let mut blanked = request.to_vec();
    blank_key(&mut blanked);
    assert!(!blanked.windows(8).any(|bytes| bytes == [9; 8]));
    assert_eq!(
        request.iter().zip(&blanked).filter(|(a, b)| a != b).count(),
        32
    );
    let mut device = Device::default();
    read(&mut device, decoded(&blanked));
    assert_eq!((device.port, device.peers.len()), (51_821, 1));
    // Cut anywhere, it is no trap.
    for length in 0..request.len() {
        blank_key(&mut request[..length].to_vec());
    }
}

#[test]
fn many_peers_with_many_blocks_go_into_several_messages() {
    let changes: Vec<PeerChange> = (1..=9)
        .map(|n| PeerChange {
            allowed: blocks(900),
            replace: true,
            ..PeerChange::new(key(n))
        })
        .collect();
    let settings = Settings {
        port: Some(1),
        ..Settings::default()
    };
    let requests = set(29, 4, &settings, &changes);
    assert!(requests.len() > 9, "{}", requests.len());
    let mut device = Device::default();
    let mut replaced = Vec::new();
    for request in &requests {
        assert!(request.len() < 32 * 1024, "{}", request.len());
        let message = decoded(request);
        for attribute in &message.payload.attributes {
            let WireguardAttribute::Peers(peers) = attribute else {
                continue;
            };
            for peer in peers {
                let flags = WireguardPeerFlags::ReplaceAllowedIps;
                if peer.0.contains(&WireguardPeerAttribute::Flags(flags)) {
                    replaced.push(peer.0[0].clone());
                }
            }
        }
        read(&mut device, message);
    }
    assert_eq!(device.port, 1);
    assert_eq!(device.peers.len(), 9);
    assert!(device.peers.values().all(|p| p.allowed.len() == 901));
    // Taken away once a peer, or the last part would undo those before it.
    assert_eq!(replaced.len(), 9);
}

#[test]
fn the_number_of_the_family_is_found() {
    let mut payload = vec![1, 2, 0, 0];
    payload.extend([14, 0, 2, 0]);
    payload.extend(b"wireguard\0\0\0");
    payload.extend([6, 0, 1, 0, 29, 0, 0, 0]);
    assert_eq!(family(&payload), Some(29));
    assert_eq!(family(&[1, 2]), None);
    let request = family_request();
    assert_eq!(request.len() % 4, 0);
    assert_eq!(request.len(), 16 + 4 + 16);
}
