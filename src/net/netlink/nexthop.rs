//! Next hops that routes refer to by a number, and groups of them: types, and their messages. PURE.
//!
//! A route that leads to a group need not be touched when a member comes or goes: one message moves all flows of that
//! member, whatever the number of routes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use subsea_api::{Cidr, Family};

use super::attribute::{attribute, message, push};
use super::types::PROTOCOL;

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// The length of `struct nhmsg`.
const FIXED: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP: u16 = 8;
const NHA_FDB: u16 = 11;
const NHA_RES_GROUP: u16 = 12;
const BUCKETS: u16 = 1;
const IDLE_TIMER: u16 = 2;
const UNBALANCED_TIMER: u16 = 3;
const TYPE_RESILIENT: u16 = 1;
const ONLINK: u32 = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The kernel tells of its timers in hundredths of a second (`USER_HZ`).
const TICKS: u128 = 10;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

/// A next hop, known by its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Its number, unique in the network namespace.
    pub id: u32,
    /// Which routes may lead to it: IPv4 only, or both with an IPv6 address in `via`.
    pub family: Family,
    /// The router, if any.
    pub via: Option<IpAddr>,
    /// The name of the device.
    pub device: String,
    /// Whether the router is taken to be on the link, whatever the routes say.
    pub onlink: bool,
}

impl NextHop {
    /// A router on a device. An IPv6 one serves IPv4 routes as well.
    pub fn via(id: u32, via: IpAddr, device: &str) -> Self {
        Self {
            id,
            family: Cidr::host(via).family(),
            via: Some(via),
            device: device.to_owned(),
            onlink: false,
        }
    }

    /// A device alone, for routes of one family.
    pub fn device(id: u32, family: Family, device: &str) -> Self {
        Self {
            id,
            family,
            via: None,
            device: device.to_owned(),
            onlink: false,
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.id)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", self.device)?;
        if self.onlink {
            f.write_str(" onlink")?;
        }
        Ok(())
    }
}

/// How a group keeps flows where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resilient {
    /// Into how many buckets flows fall; each has one member at a time.
    pub buckets: u16,
    /// For how long a bucket must carry nothing before another member may have it.
    pub idle_timer: Duration,
    /// For how long a group may be out of balance before buckets in use move, too; zero: for ever.
    pub unbalanced_timer: Duration,
}

impl Default for Resilient {
    fn default() -> Self {
        Self {
            buckets: 128,
            idle_timer: Duration::from_mins(1),
            unbalanced_timer: Duration::ZERO,
        }
    }
}

/// Next hops that share flows. What a member carries moves at once when it goes; one that comes back gets new flows
/// and idle ones only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Its number, unique among next hops and groups of the network namespace.
    pub id: u32,
    /// The next hops in it, at least one, in equal parts.
    pub members: BTreeSet<u32>,
    /// How flows stay where they are.
    pub resilient: Resilient,
}

impl Group {
    /// A group with the usual timers.
    pub fn new(id: u32, members: impl IntoIterator<Item = u32>) -> Self {
        Self {
            id,
            members: members.into_iter().collect(),
            resilient: Resilient::default(),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<String> = self.members.iter().map(ToString::to_string).collect();
        let Resilient {
            buckets,
            idle_timer,
            unbalanced_timer,
        } = self.resilient;
        write!(
            f,
            "id {} group {} type resilient buckets {buckets} idle_timer {} unbalanced_timer {}",
            self.id,
            members.join("/"),
            idle_timer.as_secs_f32(),
            unbalanced_timer.as_secs_f32()
        )
    }
}

/// What the kernel holds under a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// A next hop of ours.
    Hop(NextHop),
    /// A group of ours.
    Group(Group),
    /// Ours, by its protocol, and of a kind that we do not make.
    Odd,
    /// Somebody else's.
    Foreign,
}

/// The message that makes a next hop, in place of one with its number.
pub(super) fn put_hop(hop: &NextHop, index: u32) -> Vec<u8> {
    let family = match hop.family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let mut body = fixed(family, if hop.onlink { ONLINK } else { 0 });
    push(&mut body, NHA_ID, &hop.id.to_ne_bytes());
    push(&mut body, NHA_OIF, &index.to_ne_bytes());
    match hop.via {
        None => {}
        Some(IpAddr::V4(via)) => push(&mut body, NHA_GATEWAY, &via.octets()),
        Some(IpAddr::V6(via)) => push(&mut body, NHA_GATEWAY, &via.octets()),
    }
    message(RTM_NEWNEXTHOP, REQUEST | ACK | CREATE | REPLACE, &body)
}

/// The message that makes a group, in place of one with its number.
pub(super) fn put_group(group: &Group) -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    let mut members = Vec::with_capacity(group.members.len() * 8);
    for id in &group.members {
        members.extend(id.to_ne_bytes());
        members.extend([0; 4]);
    }
    let mut timers = Vec::new();
    let Resilient {
        buckets,
        idle_timer,
        unbalanced_timer,
    } = group.resilient;
    push(&mut timers, BUCKETS, &buckets.to_ne_bytes());
    push(&mut timers, IDLE_TIMER, &ticks(idle_timer).to_ne_bytes());
    let unbalanced = ticks(unbalanced_timer).to_ne_bytes();
    push(&mut timers, UNBALANCED_TIMER, &unbalanced);
    let mut body = fixed(0, 0);
    push(&mut body, NHA_ID, &group.id.to_ne_bytes());
    push(&mut body, NHA_GROUP, &members);
    push(&mut body, NHA_GROUP_TYPE, &TYPE_RESILIENT.to_ne_bytes());
    push(&mut body, NHA_RES_GROUP | NESTED, &timers);
    message(RTM_NEWNEXTHOP, REQUEST | ACK | CREATE | REPLACE, &body)
}

/// The message that removes a next hop or a group. The kernel takes routes that lead to it along, and it out of groups.
pub(super) fn delete(id: u32) -> Vec<u8> {
    let mut body = vec![0; FIXED];
    push(&mut body, NHA_ID, &id.to_ne_bytes());
    message(RTM_DELNEXTHOP, REQUEST | ACK, &body)
}

/// The message that lists all of them.
pub(super) fn list() -> Vec<u8> {
    message(RTM_GETNEXTHOP, REQUEST | DUMP, &[0; FIXED])
}

/// Number and meaning of what a message of a listing tells.
pub(super) fn read(body: &[u8], names: &BTreeMap<u32, String>) -> Option<(u32, Held)> {
    let id = number(body, NHA_ID)?;
    if body.get(2) != Some(&PROTOCOL) {
        return Some((id, Held::Foreign));
    }
    let held = if attribute(body, FIXED, NHA_GROUP).is_some() {
        group(body, id).map(Held::Group)
    } else {
        hop(body, id, names).map(Held::Hop)
    };
    Some((id, held.unwrap_or(Held::Odd)))
}

/// Whether a notification tells of a next hop whose number is in a range.
pub(super) fn tells_of(kind: u16, body: &[u8], ids: &std::ops::Range<u32>) -> bool {
    let about = matches!(kind, RTM_NEWNEXTHOP | RTM_DELNEXTHOP);
    about && number(body, NHA_ID).is_some_and(|id| ids.contains(&id))
}

fn hop(body: &[u8], id: u32, names: &BTreeMap<u32, String>) -> Option<NextHop> {
    let other = [NHA_BLACKHOLE, NHA_ENCAP, NHA_FDB];
    if other
        .iter()
        .any(|kind| attribute(body, FIXED, *kind).is_some())
    {
        return None;
    }
    let via = match attribute(body, FIXED, NHA_GATEWAY) {
        None => None,
        Some(bytes) => Some(address(bytes)?),
    };
    let flags = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    Some(NextHop {
        id,
        family: match *body.first()? {
            AF_INET => Family::V4,
            AF_INET6 => Family::V6,
            _ => return None,
        },
        via,
        device: names.get(&number(body, NHA_OIF)?)?.clone(),
        onlink: flags & ONLINK != 0,
    })
}

fn group(body: &[u8], id: u32) -> Option<Group> {
    let kind = attribute(body, FIXED, NHA_GROUP_TYPE)?;
    if kind != TYPE_RESILIENT.to_ne_bytes() {
        return None;
    }
    let timers = attribute(body, FIXED, NHA_RES_GROUP)?;
    let timer = |kind| {
        let ticks = attribute(timers, 0, kind)?.try_into().ok()?;
        let millis = u64::from(u32::from_ne_bytes(ticks)) * u64::try_from(TICKS).ok()?;
        Some(Duration::from_millis(millis))
    };
    let mut members = BTreeSet::new();
    for member in attribute(body, FIXED, NHA_GROUP)?.chunks_exact(8) {
        let (id, weight) = member.split_at(4);
        // Ours have equal parts.
        if weight != [0; 4] {
            return None;
        }
        members.insert(u32::from_ne_bytes(id.try_into().ok()?));
    }
    Some(Group {
        id,
        members,
        resilient: Resilient {
            buckets: u16::from_ne_bytes(attribute(timers, 0, BUCKETS)?.try_into().ok()?),
            idle_timer: timer(IDLE_TIMER)?,
            unbalanced_timer: timer(UNBALANCED_TIMER)?,
        },
    })
}

fn fixed(family: u8, flags: u32) -> Vec<u8> {
    let mut fixed = vec![family, 0, PROTOCOL, 0];
    fixed.extend(flags.to_ne_bytes());
    fixed
}

fn number(body: &[u8], kind: u16) -> Option<u32> {
    let value = attribute(body, FIXED, kind)?;
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn ticks(timer: Duration) -> u32 {
    u32::try_from(timer.as_millis() / TICKS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attribute::messages;
    use super::*;

    fn names() -> BTreeMap<u32, String> {
        BTreeMap::from([(7, "subsea-vx".into())])
    }

    fn told(request: &[u8]) -> Option<(u32, Held)> {
        let (kind, body) = messages(request).next()?;
        assert_eq!(kind, RTM_NEWNEXTHOP);
        read(body, &names())
    }

    #[test]
    fn what_is_asked_for_reads_back_the_same() {
        let mut hop = NextHop::via(0x5300_0001, "fe80::1".parse().unwrap(), "subsea-vx");
        assert_eq!(
            told(&put_hop(&hop, 7)),
            Some((hop.id, Held::Hop(hop.clone())))
        );
        hop.onlink = true;
        assert_eq!(
            told(&put_hop(&hop, 7)),
            Some((hop.id, Held::Hop(hop.clone())))
        );
        let device = NextHop::device(3, Family::V4, "subsea-vx");
        assert_eq!(
            told(&put_hop(&device, 7)),
            Some((3, Held::Hop(device.clone())))
        );
        // A device that is gone by now.
        assert_eq!(told(&put_hop(&device, 8)), Some((3, Held::Odd)));
        let group = Group::new(9, [1, 2]);
        assert_eq!(told(&put_group(&group)), Some((9, Held::Group(group))));
    }

    #[test]
    fn they_read_like_ip_nexthop() {
        let hop = NextHop::via(4, "fe80::1".parse().unwrap(), "subsea-vx");
        assert_eq!(hop.to_string(), "id 4 via fe80::1 dev subsea-vx");
        assert_eq!(
            Group::new(9, [1, 2]).to_string(),
            "id 9 group 1/2 type resilient buckets 128 idle_timer 60 unbalanced_timer 0"
        );
    }

    #[test]
    fn only_our_numbers_wake_us() {
        let range = 0x5300_0000..0x5380_0000;
        let mut group = Group::new(range.start, [1]);
        let wakes = |request: &[u8]| {
            let (kind, body) = messages(request).next().unwrap();
            tells_of(kind, body, &range)
        };
        assert!(wakes(&put_group(&group)));
        assert!(wakes(&delete(range.start)));
        group.id = range.end;
        assert!(!wakes(&put_group(&group)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read(&bytes, &names());
        }
    }
}
