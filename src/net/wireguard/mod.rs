//! The kernel's WireGuard devices, over generic netlink and rtnetlink. Shell; foreign types stop in this folder.
//!
//! Requests are few, and the kernel answers inside the call that sends them: so they block, and need no runtime.

use std::io;

use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use zeroize::Zeroizing;

use crate::net::holder::Holder;
use crate::net::netlink::door::{Door, Failure};

mod message;
mod types;

pub use types::{Device, GROUP, Link, Names, Peer, PeerChange, Settings};

/// How often a listing that was disturbed by changes is tried anew.
const LISTINGS: usize = 5;

/// A request to the kernel's WireGuard failed.
#[derive(Debug, thiserror::Error)]
pub enum WireguardError {
    /// No socket.
    #[error("could not open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel has none.
    #[error("this kernel has no WireGuard")]
    Missing,
    /// The kernel said no.
    #[error("could not {what}: {source}")]
    Refused {
        /// The operation and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The answer cannot be read.
    #[error("could not {what}: the kernel's answer is not understood: {why}")]
    Answer {
        /// The operation and its object.
        what: String,
        /// Why.
        why: String,
    },
    /// A device of that name is there, and somebody uses it.
    #[error("TUN device {name} is in use by {holder}")]
    Busy {
        /// Its name.
        name: String,
        /// Who has it.
        holder: Holder,
    },
    /// A device of that name is there, and is not ours.
    #[error("device {name} is there already, as {kind}, and was not made by subsea")]
    Foreign {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
}

impl WireguardError {
    /// Whether it says that the kernel has no WireGuard: another driver has to do.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Missing => true,
            // The family may be there and the kind of device not, as in some containers.
            Self::Refused { source, .. } => source.raw_os_error() == Some(libc::EOPNOTSUPP),
            Self::Open(_) | Self::Answer { .. } | Self::Busy { .. } | Self::Foreign { .. } => false,
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing => Some(
                "load its module (`modprobe wireguard`), or use `--driver userspace`, which needs none".to_owned(),
            ),
            Self::Busy { .. } => Some("stop it, or choose another --device".to_owned()),
            Self::Foreign { name, .. } => Some(format!(
                "remove it (`ip link del {name}`), or choose another --device"
            )),
            Self::Open(_) | Self::Refused { .. } | Self::Answer { .. } => None,
        }
    }
}

/// The doors to WireGuard in the network namespace of the thread that opened them.
pub struct Wireguard {
    links: Links,
    generic: Door,
    family: u16,
}

impl Wireguard {
    /// Opens them; loads the kernel's module where that is possible.
    ///
    /// # Errors
    /// [`WireguardError::Missing`] when the kernel has no WireGuard.
    pub fn open() -> Result<Self, WireguardError> {
        let mut generic = Door::open(NETLINK_GENERIC).map_err(WireguardError::Open)?;
        let mut family = None;
        let mut request = message::family_request();
        let outcome = generic.ask(&mut request, |_, payload| {
            family = family.or_else(|| message::family(payload));
            Ok(())
        });
        match outcome {
            Ok(()) => {}
            Err(Failure::Refused(code)) if code == libc::ENOENT => {}
            Err(failure) => return Err(failure.of("ask for the kernel's WireGuard")),
        }
        Ok(Self {
            links: Links::open()?,
            generic,
            family: family.ok_or(WireguardError::Missing)?,
        })
    }

    /// The devices of the host, of any kind.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn links(&mut self) -> Result<Vec<Link>, WireguardError> {
        self.links.all()
    }

    /// The device of a name, of any kind.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, WireguardError> {
        self.links.one(name)
    }

    /// Makes a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(&mut self, name: &str) -> Result<(), WireguardError> {
        let request = message::create(name);
        self.links
            .change(request, || format!("make WireGuard device {name}"))
    }

    /// Removes a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&mut self, link: &Link) -> Result<(), WireguardError> {
        self.links.delete(link)
    }

    /// What the kernel knows of a device; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn read(&mut self, link: &Link) -> Result<Option<Device>, WireguardError> {
        for last in (0..LISTINGS).rev() {
            let mut device = Device::default();
            let mut request = message::get(self.family, link.index);
            let outcome = self.generic.ask(&mut request, |whole, _| {
                let mut whole = Zeroizing::new(whole.to_vec());
                message::blank_key(&mut whole);
                take(&whole, |part| message::read(&mut device, part))
            });
            match outcome {
                Ok(()) => return Ok(Some(device)),
                Err(Failure::Refused(libc::ENODEV)) => return Ok(None),
                Err(Failure::Refused(libc::EINTR)) if last > 0 => {}
                Err(failure) => {
                    return Err(failure.of(&format!("read WireGuard device {}", link.name)));
                }
            }
        }
        Ok(None)
    }

    /// Changes a device and peers of it, in the order given.
    ///
    /// # Errors
    /// When the kernel refuses; what came before it is done.
    pub fn set(
        &mut self,
        link: &Link,
        settings: &Settings,
        peers: &[PeerChange],
    ) -> Result<(), WireguardError> {
        for mut request in message::set(self.family, link.index, settings, peers) {
            self.generic
                .ask(&mut request, |_, _| Ok(()))
                .map_err(|failure| failure.of(&format!("set up WireGuard device {}", link.name)))?;
        }
        Ok(())
    }
}

/// Removes every WireGuard device of ours that has one of these names; for that the kernel's WireGuard is not needed.
///
/// # Errors
/// One for each device that is still there.
pub fn remove(names: &Names) -> Vec<WireguardError> {
    let remove = || -> Result<Vec<WireguardError>, WireguardError> {
        let mut links = Links::open()?;
        let all = links.all()?.into_iter();
        let ours = all.filter(|link| link.is_ours() && names.slot(&link.name).is_some());
        Ok(ours.filter_map(|link| links.delete(&link).err()).collect())
    };
    remove().unwrap_or_else(|error| vec![error])
}

/// The devices of the host.
struct Links(Door);

impl Links {
    fn open() -> Result<Self, WireguardError> {
        Door::open(NETLINK_ROUTE)
            .map(Self)
            .map_err(WireguardError::Open)
    }

    fn all(&mut self) -> Result<Vec<Link>, WireguardError> {
        let mut outcome = Ok(Vec::new());
        for _ in 0..LISTINGS {
            let mut found = Vec::new();
            let mut request = message::link_request(None);
            let listed = ask_for(&mut self.0, &mut request, |m: RouteNetlinkMessage| {
                found.extend(message::link(m));
            });
            match listed {
                Ok(()) => return Ok(found),
                Err(failure) => outcome = Err(failure.of("list the devices")),
            }
        }
        outcome
    }

    fn one(&mut self, name: &str) -> Result<Option<Link>, WireguardError> {
        let mut found = None;
        let mut request = message::link_request(Some(name));
        let outcome = ask_for(&mut self.0, &mut request, |m: RouteNetlinkMessage| {
            found = message::link(m).or(found.take());
        });
        match outcome {
            Ok(()) => Ok(found.filter(|link| link.name == name)),
            Err(Failure::Refused(libc::ENODEV)) => Ok(None),
            Err(failure) => Err(failure.of(&format!("look for device {name}"))),
        }
    }

    fn delete(&mut self, link: &Link) -> Result<(), WireguardError> {
        let request = message::delete(link.index);
        self.change(request, || format!("delete device {}", link.name))
    }

    fn change(
        &mut self,
        mut request: Zeroizing<Vec<u8>>,
        what: impl FnOnce() -> String,
    ) -> Result<(), WireguardError> {
        self.0
            .ask(&mut request, |_, _| Ok(()))
            .map_err(|failure| failure.of(&what()))
    }
}

impl Failure {
    fn of(self, what: &str) -> WireguardError {
        let what = what.to_owned();
        match self {
            Self::Refused(code) => WireguardError::Refused {
                what,
                source: io::Error::from_raw_os_error(code),
            },
            Self::Io(source) => WireguardError::Refused { what, source },
            Self::Answer(why) => WireguardError::Answer { what, why },
        }
    }
}

/// Asks, and hands on every message of the answer.
fn ask_for<M>(door: &mut Door, request: &mut [u8], mut inner: impl FnMut(M)) -> Result<(), Failure>
where
    M: NetlinkDeserializable,
{
    door.ask(request, |whole, _| take(whole, &mut inner))
}

/// Parses a message, and hands on what is in it.
fn take<M: NetlinkDeserializable>(whole: &[u8], inner: impl FnOnce(M)) -> Result<(), Failure> {
    let message = NetlinkMessage::<M>::deserialize(whole)
        .map_err(|error| Failure::Answer(error.to_string()))?;
    if let NetlinkPayload::InnerMessage(payload) = message.payload {
        inner(payload);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_without_wireguard_is_missing_it() {
        let refused = |code| WireguardError::Refused {
            what: "make WireGuard device subsea0".to_owned(),
            source: io::Error::from_raw_os_error(code),
        };
        assert!(WireguardError::Missing.is_missing());
        assert!(refused(libc::EOPNOTSUPP).is_missing());
        for code in [libc::EPERM, libc::ENOBUFS, libc::EBUSY, libc::ENODEV] {
            assert!(!refused(code).is_missing());
        }
    }
}
