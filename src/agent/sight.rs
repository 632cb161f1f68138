//! What the agent sees of its host: addresses, links, and without VXLAN who is on them. Shell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::encap::{Connected, Encap};
use super::options::Options;
use crate::membership::{Link as Member, chain};
use crate::net::netlink::{Link, Mac, Netlink, NetlinkError, Observed};

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// The addresses that others may reach.
    pub(super) reachable: Vec<IpAddr>,
    /// Our address on the nodes' network, and the MTU of its link.
    pub(super) address: Option<(IpAddr, u32)>,
    /// The links that have it.
    pub(super) links: BTreeSet<String>,
    /// By which device our echo goes, with its index.
    pub(super) echo: Option<(String, u32)>,
    /// The networks on our links; looked at only without VXLAN.
    pub(super) connected: Vec<Connected>,
    /// The gateways' hardware addresses, and by which links they are reached; looked at only without VXLAN.
    pub(super) hardware: BTreeMap<IpAddr, (String, Mac)>,
}

/// Looks at the host.
#[derive(Debug)]
pub(super) struct Sight {
    netlink: Netlink,
    host: Host,
}

impl Sight {
    /// Opens the kernel's door, and sees nothing yet.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            netlink: Netlink::open()?,
            host: Host::default(),
        })
    }

    /// What was seen last.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Looks again; what cannot be read stays as it was. True when something is otherwise.
    pub(super) async fn look(&mut self, member: &Member, options: &Options) -> bool {
        let mut host = self.host.clone();
        match self.see(&mut host, member, options).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = chain(&error), "the host was not seen as a whole"),
        }
        let changed = self.host != host;
        self.host = host;
        changed
    }

    async fn see(
        &self,
        host: &mut Host,
        member: &Member,
        options: &Options,
    ) -> Result<(), NetlinkError> {
        host.reachable = self.netlink.host_addresses().await?;
        let Some(address) = node_address(member, options) else {
            return Ok(());
        };
        // Of no table: routes are the keeper's.
        let nothing = BTreeSet::new();
        let observed = self.netlink.observe_all(&nothing, &(0..0), None).await?;
        let holders = observed.addresses.iter().filter(|a| a.addr == address);
        let links: BTreeSet<String> = holders.map(|holder| holder.device.clone()).collect();
        // While nobody has it, the guard goes on to expect packets where it was.
        if !links.is_empty() {
            host.links.clone_from(&links);
        }
        let links = links.iter().filter_map(|device| observed.link(device));
        let links: Vec<&Link> = links.filter(|link| !link.loopback).collect();
        let mtu = links.iter().map(|link| link.mtu).min();
        let problem = mtu.is_none().then(|| {
            format!(
                "no link of this host has the address {address}: give that of its link to the gateways' nodes by `--node-address`"
            )
        });
        member.problem("node-address", problem);
        if let Some(mtu) = mtu {
            host.address = Some((address, mtu));
        }
        let echo = match options.encap {
            Encap::Vxlan => observed.link(&options.vxlan),
            Encap::None => links.first().copied(),
        };
        host.echo = echo.map(|link| (link.name.clone(), link.index));
        if options.encap == Encap::None {
            let names = links.iter().map(|link| link.name.clone()).collect();
            host.links = names;
            host.connected = connected(&observed, &host.links);
            self.see_gateways(host, &links, member).await?;
        }
        Ok(())
    }

    /// The hardware addresses of gateways. One that is being looked for again is where it was, until it is found elsewhere.
    async fn see_gateways(
        &self,
        host: &mut Host,
        links: &[&Link],
        member: &Member,
    ) -> Result<(), NetlinkError> {
        let view = member.view.borrow().clone();
        let gateways = view.own().into_iter().flat_map(|own| own.gateways.values());
        let wanted: BTreeSet<IpAddr> = gateways
            .flat_map(|gateway| gateway.node_addresses.iter().copied())
            .collect();
        host.hardware
            .retain(|address, (device, _)| wanted.contains(address) && host.links.contains(device));
        for link in links {
            let found = self.netlink.hardware_addresses(link.index).await?;
            let found = found
                .into_iter()
                .filter(|(address, _)| wanted.contains(address));
            let found = found.map(|(address, mac)| (address, (link.name.clone(), mac)));
            host.hardware.extend(found);
        }
        Ok(())
    }
}

fn connected(observed: &Observed, links: &BTreeSet<String>) -> Vec<Connected> {
    let addresses = observed.addresses.iter();
    let on_links = addresses.filter(|a| links.contains(&a.device));
    let networks = on_links.filter_map(|a| Connected::of(a.addr, a.prefix_len, &a.device));
    networks.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Our address on the nodes' network: as the operator says, or the one that leads to a gateway's node.
fn node_address(member: &Member, options: &Options) -> Option<IpAddr> {
    options.node_address.or_else(|| {
        let view = member.view.borrow().clone();
        let own = &member.membership.node;
        let gateways = view.own().into_iter().flat_map(|record| &record.gateways);
        let ours = gateways.clone().find(|(node, _)| *node == own);
        let ours = ours.and_then(|(_, gateway)| gateway.node_addresses.first().copied());
        let others = gateways.filter(|(node, _)| *node != own);
        let mut others = others.flat_map(|(_, gateway)| &gateway.node_addresses);
        ours.or_else(|| others.find_map(|addr| towards(*addr, options.session_port)))
    })
}

/// Our address on the way to another; nothing is sent.
fn towards(addr: IpAddr, port: u16) -> Option<IpAddr> {
    let any: IpAddr = if addr.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(addr, port)).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}
