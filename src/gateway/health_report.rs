//! What is said of a path's health: its state, why, and the figures beside it. PURE; times are since the process began.

use std::fmt;
use std::time::Duration;

use super::echo::Flags;
use super::health_stats::{Loss, Rtt};

/// How a path is, as far as echo tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// No two-way echo yet.
    Connecting,
    /// A fresh two-way echo.
    Connected,
    /// It was connected a moment ago, and a reply is missing.
    Suspect,
    /// We hear it, it does not hear us.
    OneWay,
    /// It was connected, and echo stopped.
    Dead,
}

impl State {
    /// Whether it carries packets, as far as anybody knows.
    pub fn works(self) -> bool {
        match self {
            Self::Connected | Self::Suspect => true,
            Self::Connecting | Self::OneWay | Self::Dead => false,
        }
    }
}

/// Why a path is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is new.
    New,
    /// Its first probe was answered.
    Answered,
    /// A reply is missing.
    Missing,
    /// Somebody who noticed something asked for a closer look.
    Hinted,
    /// The missing reply was followed by others.
    Recovered,
    /// So many probes in a row had no reply.
    Silent(u32),
    /// Our probes have no reply, and the peer still speaks.
    NotHeard,
    /// It failed, and works again.
    Returned,
    /// We stood still ourselves, and what we knew is too old.
    Untested,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("no probe was answered yet"),
            Self::Answered => f.write_str("echo goes both ways"),
            Self::Missing => f.write_str("a reply is missing"),
            Self::Hinted => f.write_str("somebody noticed that it may not work"),
            Self::Recovered => f.write_str("a reply was missing, and others came"),
            Self::Silent(probes) => write!(f, "{probes} probes in a row had no reply"),
            Self::NotHeard => f.write_str("our probes have no reply, but the peer is heard"),
            Self::Returned => f.write_str("it failed, and echo goes both ways again"),
            Self::Untested => f.write_str("this gateway stood still and could not probe"),
        }
    }
}

/// What [`super::health::Health`] shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// How the path is.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// Why.
    pub reason: Reason,
    /// Whether it should carry traffic: it works, its gateway wants to be used, and it is not held down.
    pub usable: bool,
    /// While it works and is held down: when it may be used again.
    pub held_until: Option<Duration>,
    /// The round trips, while it works.
    pub rtt: Option<Rtt>,
    /// The losses of the last probes.
    pub loss: Loss,
    /// How often it is probed.
    pub interval: Duration,
    /// How long it takes at most to notice that it died.
    pub bound: Duration,
    /// When anything came from the peer.
    pub last_heard: Option<Duration>,
    /// Whether the peer says that it hears us.
    pub peer_hears_us: bool,
    /// What the peer says of itself.
    pub flags: Flags,
    /// The revision that the peer acts on.
    pub revision: Option<u64>,
    /// [`super::echo::digest`] of the clusters that it reaches.
    pub reached: Option<u64>,
}
