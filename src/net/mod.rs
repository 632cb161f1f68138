//! The kernel's doors: TUN, UDP, netlink, nftables, sysctl. Shells; foreign types stop here.

pub mod conntrack;
pub mod holder;
pub mod iptables;
pub mod netlink;
pub mod nft;
pub mod offload;
pub mod sys;
pub mod sysctl;
pub mod tool;
pub mod tun;
pub mod udp;
pub mod wake;
pub mod whole;
pub mod wireguard;
