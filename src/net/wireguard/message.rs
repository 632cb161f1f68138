//! Between our types and the messages of generic netlink and rtnetlink. No I/O; the foreign types stop here.

use std::collections::BTreeMap;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkSerializable, NlasIterator,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
    WireguardTimeSpec,
};
use subsea_api::{Cidr, PublicKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::types::{Device, GROUP, Link, Peer, PeerChange, Settings};

/// Messages of the family `wireguard`.
pub(super) type Generic = GenlMessage<WireguardMessage>;

/// The blocks of a peer in one message; a peer with more goes on in the next one.
const BLOCKS: usize = 200;
/// A message is closed when it is longer than this. Attributes hold 64 KiB at most.
const LENGTH: usize = 16 * 1024;

/// The request for the number of the family; the kernel loads the module for it.
pub(super) fn family_request() -> Vec<u8> {
    const GENL_ID_CTRL: u16 = 16;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    let name = b"wireguard\0";
    // struct genlmsghdr: the command and the version.
    let mut body = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    let length = u16::try_from(4 + name.len()).unwrap_or_default();
    body.extend(length.to_ne_bytes());
    body.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    body.extend(name);
    body.resize(body.len().next_multiple_of(4), 0);
    let mut request = u32::try_from(16 + body.len())
        .unwrap_or_default()
        .to_ne_bytes()
        .to_vec();
    request.extend(GENL_ID_CTRL.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// The number of the family, from the payload of an answer. Read by hand: kernels may add attributes.
pub(super) fn family(payload: &[u8]) -> Option<u16> {
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    NlasIterator::new(payload.get(4..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == CTRL_ATTR_FAMILY_ID)
        .and_then(|attribute| attribute.value().try_into().ok())
        .map(u16::from_ne_bytes)
}

/// The request for all that is known of a device.
pub(super) fn get(family: u16, index: u32) -> Zeroizing<Vec<u8>> {
    let attributes = vec![WireguardAttribute::IfIndex(index)];
    let request = WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes,
    };
    generic(family, request, NLM_F_DUMP)
}

/// The requests that change a device, in order.
pub(super) fn set(
    family: u16,
    index: u32,
    settings: &Settings,
    peers: &[PeerChange],
) -> Vec<Zeroizing<Vec<u8>>> {
    // Room for all that may come: a vector that grows leaves what it held, the key, where it was.
    let mut attributes = Vec::with_capacity(5);
    attributes.push(WireguardAttribute::IfIndex(index));
    if let Some(key) = &settings.key {
        attributes.push(WireguardAttribute::PrivateKey(*key.secret().as_bytes()));
    }
    attributes.extend(settings.port.map(WireguardAttribute::ListenPort));
    attributes.extend(settings.fwmark.map(WireguardAttribute::Fwmark));
    let mut requests = Vec::new();
    let mut batch = Vec::new();
    let mut length = 0;
    for part in peers.iter().flat_map(parts) {
        let peer = peer_message(&part);
        length += netlink_packet_core::Emitable::buffer_len(&peer.0.as_slice());
        batch.push(peer);
        if length > LENGTH {
            attributes.push(WireguardAttribute::Peers(std::mem::take(&mut batch)));
            requests.push(set_request(family, attributes));
            attributes = vec![WireguardAttribute::IfIndex(index)];
            length = 0;
        }
    }
    if !batch.is_empty() {
        attributes.push(WireguardAttribute::Peers(batch));
    }
    if attributes.len() > 1 || requests.is_empty() {
        requests.push(set_request(family, attributes));
    }
    requests
}

fn set_request(family: u16, attributes: Vec<WireguardAttribute>) -> Zeroizing<Vec<u8>> {
    let request = WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes,
    };
    generic(family, request, NLM_F_ACK)
}

/// A change in parts that fit into messages: only the first takes blocks away, the rest go on adding.
fn parts(change: &PeerChange) -> Vec<PeerChange> {
    let mut parts = Vec::new();
    let mut blocks = change.allowed.chunks(BLOCKS);
    parts.push(PeerChange {
        allowed: blocks.next().unwrap_or_default().to_vec(),
        ..change.clone()
    });
    parts.extend(blocks.map(|blocks| PeerChange {
        allowed: blocks.to_vec(),
        ..PeerChange::new(change.key)
    }));
    parts
}

fn peer_message(change: &PeerChange) -> WireguardPeer {
    let mut flags = WireguardPeerFlags::empty();
    if change.remove {
        flags |= WireguardPeerFlags::RemoveMe;
    }
    if change.replace {
        flags |= WireguardPeerFlags::ReplaceAllowedIps;
    }
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(*change.key.as_bytes()),
        WireguardPeerAttribute::Flags(flags),
    ];
    attributes.extend(change.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.extend(
        change
            .keepalive
            .map(WireguardPeerAttribute::PersistentKeepalive),
    );
    if !change.allowed.is_empty() {
        let blocks = change.allowed.iter().map(|block| {
            let family = if block.first().is_ipv4() {
                WireguardAddressFamily::Ipv4
            } else {
                WireguardAddressFamily::Ipv6
            };
            WireguardAllowedIp(vec![
                WireguardAllowedIpAttr::Family(family),
                WireguardAllowedIpAttr::IpAddr(block.first()),
                WireguardAllowedIpAttr::Cidr(block.prefix_len()),
            ])
        });
        attributes.push(WireguardPeerAttribute::AllowedIps(blocks.collect()));
    }
    WireguardPeer(attributes)
}

fn generic(family: u16, request: WireguardMessage, flags: u16) -> Zeroizing<Vec<u8>> {
    let mut message = GenlMessage::from_payload(request);
    message.set_resolved_family_id(family);
    let mut message = NetlinkMessage::from(message);
    let bytes = serialize(&mut message, flags);
    if let netlink_packet_core::NetlinkPayload::InnerMessage(inner) = &mut message.payload {
        wipe(&mut inner.payload.attributes);
    }
    bytes
}

fn serialize<M: NetlinkSerializable>(
    message: &mut NetlinkMessage<M>,
    flags: u16,
) -> Zeroizing<Vec<u8>> {
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
    message.serialize(&mut bytes);
    bytes
}

/// Forgets private keys in a foreign type that does not do so by itself.
fn wipe(attributes: &mut [WireguardAttribute]) {
    for attribute in attributes {
        if let WireguardAttribute::PrivateKey(bytes) = attribute {
            bytes.zeroize();
        }
    }
}

/// Overwrites the private key in a message of an answer to [`get`], so that no parser makes copies of it.
pub(super) fn blank_key(message: &mut [u8]) {
    const HEADERS: usize = 16 + 4;
    const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
    let mut rest = message.get_mut(HEADERS..).unwrap_or_default();
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let [a, b, c, d] = *header;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(attribute) = rest.get_mut(4..length) else {
            return;
        };
        if u16::from_ne_bytes([c, d]) == WGDEVICE_A_PRIVATE_KEY {
            attribute.zeroize();
        }
        rest = rest
            .get_mut(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

/// Takes a part of an answer to [`get`] over. A peer whose blocks do not fit goes on in the next part.
pub(super) fn read(device: &mut Device, message: Generic) {
    let (_, mut message) = message.into_parts();
    wipe(&mut message.attributes);
    for attribute in message.attributes {
        if let WireguardAttribute::PublicKey(bytes) = attribute {
            device.public_key = PublicKey::from_bytes(bytes).ok();
        } else if let WireguardAttribute::ListenPort(port) = attribute {
            device.port = port;
        } else if let WireguardAttribute::Fwmark(mark) = attribute {
            device.fwmark = mark;
        } else if let WireguardAttribute::Peers(peers) = attribute {
            for peer in peers {
                read_peer(&mut device.peers, peer);
            }
        }
    }
}

fn read_peer(peers: &mut BTreeMap<PublicKey, Peer>, message: WireguardPeer) {
    let key = message.0.iter().find_map(|attribute| {
        if let WireguardPeerAttribute::PublicKey(bytes) = attribute {
            PublicKey::from_bytes(*bytes).ok()
        } else {
            None
        }
    });
    // A key that no session can come of is nobody's.
    let Some(key) = key else { return };
    let peer = peers.entry(key).or_default();
    for attribute in message.0 {
        if let WireguardPeerAttribute::Endpoint(endpoint) = attribute {
            peer.endpoint = Some(endpoint);
        } else if let WireguardPeerAttribute::PersistentKeepalive(seconds) = attribute {
            peer.keepalive = seconds;
        } else if let WireguardPeerAttribute::LastHandshake(at) = attribute {
            peer.latest_handshake = time(at);
        } else if let WireguardPeerAttribute::RxBytes(bytes) = attribute {
            peer.rx_bytes = bytes;
        } else if let WireguardPeerAttribute::TxBytes(bytes) = attribute {
            peer.tx_bytes = bytes;
        } else if let WireguardPeerAttribute::AllowedIps(blocks) = attribute {
            peer.allowed.extend(blocks.iter().filter_map(block));
        }
    }
}

/// `None` for never.
fn time(at: WireguardTimeSpec) -> Option<Duration> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = u32::try_from(at.nano_seconds).ok()?;
    Some(Duration::new(seconds, nanos)).filter(|at| !at.is_zero())
}

fn block(message: &WireguardAllowedIp) -> Option<Cidr> {
    let (mut addr, mut length) = (None, None);
    for attribute in &message.0 {
        if let WireguardAllowedIpAttr::IpAddr(ip) = attribute {
            addr = Some(*ip);
        } else if let WireguardAllowedIpAttr::Cidr(bits) = attribute {
            length = Some(*bits);
        }
    }
    Some(Cidr::containing(addr?, length?))
}

/// The request for one device, or for all.
pub(super) fn link_request(name: Option<&str>) -> Zeroizing<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.attributes
        .extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
    let flags = if name.is_some() {
        NLM_F_ACK
    } else {
        NLM_F_DUMP
    };
    serialize(
        &mut NetlinkMessage::from(RouteNetlinkMessage::GetLink(link)),
        flags,
    )
}

/// The request that makes a WireGuard device of ours.
pub(super) fn create(name: &str) -> Zeroizing<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
    serialize(&mut message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// The request that removes a device.
pub(super) fn delete(index: u32) -> Zeroizing<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::DelLink(link));
    serialize(&mut message, NLM_F_ACK)
}

/// The device of an answer to [`link_request`].
pub(super) fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        group: 0,
        attached: message.header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        rx_errors: 0,
        tx_errors: 0,
    };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::Group(group) = attribute {
            link.group = group;
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = mtu;
        } else if let LinkAttribute::Stats64(stats) = attribute {
            (link.rx_errors, link.tx_errors) = (stats.rx_errors, stats.tx_errors);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.kind = infos.iter().find_map(|info| {
                if let LinkInfo::Kind(kind) = info {
                    Some(kind.to_string())
                } else {
                    None
                }
            });
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests;
