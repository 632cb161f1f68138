//! Which listeners this gateway has: one for each stripe, or with the kernel driver one for each slot of the fleet. PURE.
//!
//! A listener has a number: of its stripe, or of the slot that it is for. The number also chooses its key and, added to
//! the first one's, its port.

use std::net::SocketAddr;

use subsea_api::snapshot::{Listener, ListenerState, MAX_LISTENERS};
use subsea_api::{ClusterId, PublicKey};

use super::options::Stripes;
use crate::membership::fleet::View;

/// The most stripes.
pub const MAX_STRIPES: u16 = crate::tunnel::userspace::stripes::MOST;

/// What the data plane needs listeners for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// So many stripes, from 1; every remote gateway uses as many of them as it has itself.
    Stripes(u16),
    /// The slots of remote gateways: the kernel driver has a device, and so a key and a port, for each. No stripes.
    Slots,
}

impl Listening {
    /// What a gateway starts with, until its driver says otherwise.
    pub fn at_start(operator: Stripes) -> Self {
        Self::Stripes(match operator {
            Stripes::Auto => 1,
            Stripes::Fixed(stripes) => stripes,
        })
    }

    /// What it becomes when the data plane works with so many stripes: no more than that are announced, and no more than
    /// the operator said. A driver that has slots has no stripes.
    #[must_use]
    pub fn with_use_for(self, stripes: u16, operator: Stripes) -> Self {
        let most = match operator {
            Stripes::Auto => MAX_STRIPES,
            Stripes::Fixed(stripes) => stripes.clamp(1, MAX_STRIPES),
        };
        match self {
            Self::Stripes(_) => Self::Stripes(stripes.clamp(1, most)),
            Self::Slots => self,
        }
    }

    /// The first slot whose gateways cannot be reached, for want of a listener for it.
    pub fn slots(self) -> u16 {
        match self {
            Self::Stripes(_) => u16::MAX,
            Self::Slots => u16::try_from(MAX_LISTENERS).unwrap_or(u16::MAX),
        }
    }

    /// How many sessions with the same gateway.
    pub fn stripes(self) -> u16 {
        match self {
            Self::Stripes(stripes) => stripes.clamp(1, MAX_STRIPES),
            Self::Slots => 1,
        }
    }

    /// How many listeners, in a fleet of so many slots.
    pub fn count(self, slots: u16) -> u16 {
        match self {
            Self::Stripes(_) => self.stripes(),
            Self::Slots => slots.clamp(1, u16::try_from(MAX_LISTENERS).unwrap_or(u16::MAX)),
        }
    }
}

/// How many slots the gateways of other clusters fill, those that are merely kept too.
pub fn slots(view: &View, own: &ClusterId) -> u16 {
    let members = view.others(own);
    let gateways = members.values().flat_map(|member| member.gateways.values());
    let highest = gateways.map(|known| known.gateway.slot).max();
    highest.map_or(1, |slot| slot.saturating_add(1))
}

/// With how many stripes a gateway of another cluster works, at most.
pub fn offered(view: &View, own: &ClusterId) -> u16 {
    let members = view.others(own);
    let gateways = members.values().flat_map(|member| member.gateways.values());
    let listeners = gateways.flat_map(|known| &known.gateway.listeners);
    let highest = listeners
        .filter(|listener| listener.for_slot.is_none() && listener.state == ListenerState::Active)
        .map(|listener| listener.stripe)
        .max();
    highest.map_or(1, |stripe| stripe.saturating_add(1))
}

/// The listeners to announce, in the order of their numbers. There are fewer where `keys`, which are in that order
/// too, or the ports end early.
pub fn wanted_listeners(
    listening: Listening,
    slots: u16,
    endpoint: SocketAddr,
    listen_port: u16,
    keys: &[PublicKey],
) -> Vec<Listener> {
    let listener = |(number, key): (u16, &PublicKey)| {
        let mut candidate = endpoint;
        candidate.set_port(endpoint.port().checked_add(number)?);
        let (id, stripe, for_slot) = match listening {
            Listening::Stripes(_) => (number.to_string(), number, None),
            Listening::Slots => (format!("k{number}"), 0, Some(number)),
        };
        Some(Listener {
            id,
            public_key: *key,
            port: listen_port.checked_add(number)?,
            stripe,
            // The broker sets it.
            slot: 0,
            for_slot,
            state: ListenerState::Active,
            candidates: vec![candidate],
        })
    };
    (0..listening.count(slots))
        .zip(keys)
        .map_while(listener)
        .collect()
}

/// What is amiss when there are not as many listeners as the fleet or the operator needs.
pub fn shortfall(listening: Listening, slots: u16, listeners: usize) -> Option<String> {
    let wanted = listening.count(slots);
    if listeners < usize::from(wanted) {
        return Some(format!(
            "{listeners} of {wanted} listeners are announced: each needs a UDP port of its own, counted up from \
             `--listen-port` and `--endpoint`, and a key"
        ));
    }
    (listening == Listening::Slots && slots > wanted).then(|| {
        format!(
            "gateways of slot {wanted} and above are not reached: the kernel driver has at most {wanted} devices; \
             `--driver userspace` reaches them"
        )
    })
}

#[cfg(test)]
#[path = "listeners_tests.rs"]
mod tests;
