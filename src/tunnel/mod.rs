//! The WireGuard data plane behind one face. This file is the face; `userspace/` is the driver on boringtun, `kernel/`
//! the one on the kernel's WireGuard.
//!
//! A driver runs its packet path on threads of its own and moves packets in batches; the rest of the program
//! only hands it the wanted state ([`Tunnel::apply`]) and reads counters ([`Tunnel::stats`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use subsea_api::{Cidr, PublicKey};
use tokio::sync::watch;

pub mod kernel;
pub mod userspace;

/// What the tunnel should be: replaces what it was. Peers that stay keep their sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Every block of our own cluster, inner addresses included: the only destinations let in from a peer and
    /// the only sources let out to one.
    pub local: Vec<Cidr>,
    /// The peers, by public key.
    pub peers: BTreeMap<PublicKey, PeerConfig>,
    /// Blocks that several peers can carry. No block stands in two groups, or in a group and in the `routes` of a peer.
    pub groups: Vec<Group>,
}

/// The blocks of one cluster and the gateways that can carry them.
///
/// Of several members those carry them that are in use (see [`Tunnel::steer`]); while none is, packets for these blocks
/// are dropped, so the caller keeps the last good one in use. A lone member carries them whatever it is said to be: there
/// is nothing to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Inner destinations. They are among the `sources` of each member, too.
    pub routes: Vec<Cidr>,
    /// Keys of stripe 0, all of them in [`TunnelConfig::peers`]; one that is not is ignored.
    pub members: BTreeSet<PublicKey>,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// For logs: `cluster/node`.
    pub label: String,
    /// Where to send the first packet. A peer that speaks from elsewhere (roaming) moves there, until this
    /// value itself changes.
    pub endpoint: Option<SocketAddr>,
    /// Inner sources accepted from it: all blocks of its cluster and its own inner addresses.
    pub sources: Vec<Cidr>,
    /// Inner destinations that are at this peer only: its inner addresses. No block stands at two peers.
    pub routes: Vec<Cidr>,
    /// Seconds between keepalives; `None` for peers that answer echo, which keeps the path alive by itself.
    pub keepalive: Option<u16>,
    /// The remote gateway's slot: the kernel driver keeps it in device `subsea<slot>`. Others have no use for it.
    pub slot: u16,
    /// Further sessions with the same gateway, in the order of their numbers; the kernel driver has none.
    pub stripes: Vec<StripeConfig>,
}

/// A further session with a gateway, beside stripe 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StripeConfig {
    /// Its number, from 1; both sides speak from their listener of this number.
    pub stripe: u16,
    /// The peer's key in it.
    pub key: PublicKey,
    /// Where to send the first packet of it.
    pub endpoint: Option<SocketAddr>,
}

/// Counters and times as read now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// By public key; every configured peer is there.
    pub peers: BTreeMap<PublicKey, PeerStats>,
    /// Drops that belong to no peer.
    pub drops: BTreeMap<Drop, u64>,
}

/// Counters of one peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Where it is now.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was completed.
    pub latest_handshake: Option<SystemTime>,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Drops by reason.
    pub drops: BTreeMap<Drop, u64>,
    /// The largest packet of the underlay that gets there whole, once one was too big.
    pub path_mtu: Option<u32>,
    /// Each session beside stripe 0; the counters above are sums.
    pub stripes: Vec<StripeStats>,
}

/// Counters of one further session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeStats {
    /// Its number.
    pub stripe: u16,
    /// Where the peer is in it.
    pub endpoint: Option<SocketAddr>,
    /// Whether it carries traffic; else its flows go by stripe 0.
    pub alive: bool,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
}

/// Why a packet was dropped. The text is the label in `status` and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drop {
    /// Inbound: the inner source is not in the sender's blocks.
    ForeignSource,
    /// Inbound: the inner destination is not in ours.
    ForeignDestination,
    /// Outbound: the inner source is not in our blocks.
    OutboundSource,
    /// Outbound: no peer has the destination, or none of those that have it is in use.
    NoPeer,
    /// Outbound: the peer has no endpoint, or its queue while waiting for a handshake is full.
    NoSession,
    /// Not IPv4 or IPv6, or cut short.
    Malformed,
    /// Inbound: not a WireGuard message, or for no session of ours.
    Unknown,
    /// Inbound: authentication failed.
    Unauthentic,
    /// Inbound: seen before (RFC 6479 window).
    Replay,
    /// Inbound: handshake message of a key that is no peer.
    UnknownPeer,
    /// Inbound: too many handshakes.
    RateLimited,
    /// The kernel refused the packet (UDP send or TUN write).
    Kernel,
    /// Outbound: more came than the tunnel can carry; taken from the heaviest flow.
    Queue,
    /// The kernel driver counted it among `rx_errors` and says no more.
    RxErrors,
    /// The kernel driver counted it among `tx_errors` and says no more.
    TxErrors,
}

impl Drop {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ForeignSource => "foreign-source",
            Self::ForeignDestination => "foreign-destination",
            Self::OutboundSource => "outbound-source",
            Self::NoPeer => "no-peer",
            Self::NoSession => "no-session",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Unauthentic => "unauthentic",
            Self::Replay => "replay",
            Self::UnknownPeer => "unknown-peer",
            Self::RateLimited => "rate-limited",
            Self::Kernel => "kernel",
            Self::Queue => "queue",
            Self::RxErrors => "rx-errors",
            Self::TxErrors => "tx-errors",
        }
    }
}

/// What a driver is and does on this host, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverStatus {
    /// `userspace` or `kernel`.
    pub name: String,
    /// What it can use to be faster, and whether it does.
    pub features: Vec<Feature>,
}

/// Something that makes a driver faster where the host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Such as `udp-gso`.
    pub name: String,
    /// Whether it is in use now.
    pub active: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A WireGuard data plane.
pub trait Tunnel: Send + Sync {
    /// Makes the tunnel what `config` says, without touching the sessions of peers that stay. Cheap when
    /// nothing changed.
    fn apply(&self, config: TunnelConfig);

    /// The peers that carry the flows of their groups now, by their keys of stripe 0. Takes effect for the next packet,
    /// from any thread, without a wait for [`Self::apply`]. When a peer goes out of use its flows alone move; when it comes
    /// back only new flows and those that were idle for a minute go to it. A key that is no peer has no effect, until a
    /// configuration makes it one: a new peer is in use if the last call named it.
    ///
    /// The kernel driver spreads nothing, since routes over its devices do that; there this says which of two gateways that
    /// share a slot has the blocks of their cluster.
    fn steer(&self, in_use: &BTreeSet<PublicKey>);

    /// Reads all counters.
    fn stats(&self) -> TunnelStats;

    /// With how many stripes it works now; watched, so that as many are announced. A driver that knows no more than one
    /// session with a gateway says 1 for ever.
    fn stripes(&self) -> watch::Receiver<u16> {
        watch::Sender::new(1).subscribe()
    }

    /// How often a host said that no process has the port of a peer: its gateway just died, or was never there. By keys of
    /// stripe 0, of peers of which that was ever said. A hint to look at once, and no verdict: anybody can say so. A driver
    /// that hears nothing of the kind never changes it, so that waiting for a change is an error.
    fn refusals(&self) -> watch::Receiver<BTreeMap<PublicKey, u64>> {
        watch::Sender::new(BTreeMap::new()).subscribe()
    }

    /// What it is and does on this host.
    fn driver(&self) -> DriverStatus;

    /// Whether what is padded to find the path MTU goes through the underlay whole or not at all. Else it gets there in
    /// fragments, too, and says only that it gets there.
    fn sends_whole(&self) -> bool;

    /// The device that leads to the gateways of a slot.
    fn device_of(&self, slot: u16) -> String;

    /// Whether it leaves the checks of inner destinations inbound and of inner sources outbound to nftables.
    fn leaves_checks(&self) -> bool;

    /// Whether a device went away under the driver (deleted by somebody), or could not be set up: see
    /// [`Self::restore`].
    fn device_lost(&self) -> bool;

    /// Makes the devices anew that are lost; sessions stay where that is possible. Blocks.
    fn restore(&self) -> Restored;
}

/// What [`Tunnel::restore`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Whether a device is another one than before: what was bound to the old one must be bound anew.
    pub made: bool,
    /// The devices that are still missing, and why.
    pub lost: BTreeMap<String, String>,
}

/// How long a completed handshake says anything: after this a session is refused by both sides
/// (WireGuard whitepaper, section 6.1, Reject-After-Time).
pub const REJECT_AFTER: Duration = Duration::from_mins(3);

/// The UDP port of echo inside the tunnel. It judges the path, so it goes by stripe 0 always.
pub const ECHO_PORT: u16 = 583;
