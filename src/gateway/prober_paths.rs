//! All paths together: when each is probed, what an answer means for it, and which are in use. PURE.
//!
//! The shell around it moves the packets. It calls [`Paths::poll`] at [`Paths::due`] and [`Paths::receive`] for each
//! packet, and asks [`Paths::steer`] after both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::budget::{Bucket, Counts, plan};
use super::echo::{self, Echo, Flags, Kind, Own};
use super::health::{self, Health, State};
use super::health_timing::Timing;
use super::mesh::PathId;
use super::mtu::{self, Due, Padded, PathMtu};
use super::steering::{Sight, Steering, steer};

/// How often the paces of the paths are looked at though no path has changed.
const PLAN: Duration = Duration::from_secs(1);
/// For so long somebody waits for a path that does not work.
const AWAITED: Duration = Duration::from_mins(1);
/// How soon a path is looked at again that the budget had nothing for.
const AGAIN: Duration = Duration::from_millis(5);
/// Probes of the budget that are left to those that carry traffic or are suspect.
const RESERVE: u32 = 50;
/// Probes of the budget that must be there before sizes are tried.
const FOR_SIZES: u32 = 100;

/// Whom to probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// Counts the devices of the same names: with new ones the sockets are opened anew.
    pub generation: u64,
    /// Our own inner addresses.
    pub own: Vec<IpAddr>,
    /// Those that answer echo.
    pub paths: BTreeMap<PathId, Target>,
    /// Those that do not, and whether they work: judged otherwise, they take part in the steering all the same.
    pub judged: BTreeMap<PathId, bool>,
    /// The revision that we act on; 0 without a snapshot.
    pub revision: u64,
}

/// One that answers echo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Its inner addresses.
    pub inner: Vec<IpAddr>,
    /// The tunnel device that leads to it.
    pub device: String,
    /// The MTU of that device, if it is to be tried how much of it the path takes.
    pub ceiling: Option<u32>,
    /// Anything that is another one when the path through the underlay is: a change begins a search for the path MTU.
    pub road: Option<std::net::SocketAddr>,
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// By which device.
    pub device: Arc<str>,
    /// To which inner address.
    pub to: IpAddr,
    /// What.
    pub echo: Echo,
}

/// How a path is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// What the small echo says.
    pub health: health::Report,
    /// What the padded echo says; `None` where there is none, see [`Target::ceiling`].
    pub mtu: Option<mtu::Report>,
    /// The echo that went by it, both ways.
    pub echo: Carried,
}

/// Bytes that were carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// As inner packets.
    pub inner: u64,
    /// As the kernel's WireGuard counts them: filled up to 16 and sealed.
    pub sealed: u64,
}

impl Carried {
    /// As a driver counts that leaves the checks to the kernel, or as one that does not.
    pub fn as_counted(self, by_kernel: bool) -> u64 {
        if by_kernel { self.sealed } else { self.inner }
    }

    fn add(&mut self, packet: u64) {
        self.inner += packet;
        self.sealed += packet.next_multiple_of(16) + 32;
    }
}

/// All paths.
#[derive(Debug)]
pub struct Paths {
    timing: Timing,
    probed: BTreeMap<u32, Probed>,
    numbers: BTreeMap<PathId, u32>,
    by_address: BTreeMap<IpAddr, u32>,
    /// When each is to be looked at.
    schedule: BTreeSet<(Duration, u32)>,
    judged: BTreeMap<PathId, bool>,
    next_number: u32,
    bucket: Bucket,
    next_plan: Duration,
    /// Those that carry traffic; `None`: nobody says.
    hot: Option<BTreeSet<PathId>>,
    own: Own,
    steering: Steering,
    /// A path has changed since the last steering.
    dirty: bool,
    /// The path MTU of one has changed since it was last asked.
    resized: bool,
}

#[derive(Debug)]
struct Probed {
    id: PathId,
    target: IpAddr,
    device: Arc<str>,
    road: Option<std::net::SocketAddr>,
    health: Health,
    mtu: Option<PathMtu>,
    sight: Sight,
    /// The path MTU at the last look.
    size: Option<u32>,
    hot: bool,
    /// Where it stands in the schedule.
    due: Duration,
    echo: Carried,
}

impl Paths {
    /// No paths yet.
    pub fn new(timing: Timing, now: Duration) -> Self {
        Self {
            timing,
            probed: BTreeMap::new(),
            numbers: BTreeMap::new(),
            by_address: BTreeMap::new(),
            schedule: BTreeSet::new(),
            judged: BTreeMap::new(),
            next_number: 0,
            bucket: Bucket::new(now),
            next_plan: now,
            hot: None,
            own: Own::default(),
            steering: Steering::default(),
            dirty: false,
            resized: false,
        }
    }

    /// Takes over new targets; paths that stay keep their state. `random` gives where sequences begin.
    pub fn aim(&mut self, targets: &Targets, now: Duration, mut random: impl FnMut() -> u64) {
        let own = |v4: bool| targets.own.iter().any(|addr| addr.is_ipv4() == v4);
        let mut before = std::mem::take(&mut self.probed);
        let mut numbers = std::mem::take(&mut self.numbers);
        self.by_address.clear();
        for (id, target) in &targets.paths {
            let mut families = [true, false].into_iter().filter(|v4| own(*v4));
            let of = |v4| {
                target
                    .inner
                    .iter()
                    .copied()
                    .find(|addr| addr.is_ipv4() == v4)
            };
            let Some(addr) = families.find_map(of) else {
                continue;
            };
            let number = numbers.remove(id);
            let known = number.and_then(|number| Some((number, before.remove(&number)?)));
            let known = known.filter(|(_, path)| path.target == addr);
            let (number, mut path) = known.unwrap_or_else(|| {
                let number = self.next_number;
                self.next_number = number.wrapping_add(1);
                let health = Health::new(self.timing, now, random() >> 1);
                (number, Probed::new(id, addr, health, now))
            });
            if *path.device != *target.device {
                path.device = target.device.as_str().into();
            }
            path.aim_mtu(target, now, &mut random);
            self.by_address
                .extend(target.inner.iter().map(|addr| (*addr, number)));
            self.numbers.insert(id.clone(), number);
            self.probed.insert(number, path);
        }
        let paths = self.probed.iter();
        self.schedule = paths.map(|(number, path)| (path.due, *number)).collect();
        self.judged.clone_from(&targets.judged);
        self.own.revision = targets.revision;
        self.next_plan = now;
        self.dirty = true;
    }

    /// Says of ourselves something else from now on; everybody is to know at once.
    pub fn say(&mut self, flags: Flags, now: Duration) {
        if self.own.flags == flags {
            return;
        }
        self.own.flags = flags;
        for path in self.probed.values_mut() {
            path.health.nudge(now);
            // Those that carry traffic first, should the budget not do for all.
            path.due = if path.hot { Duration::ZERO } else { now };
        }
        let paths = self.probed.iter();
        self.schedule = paths.map(|(number, path)| (path.due, *number)).collect();
    }

    /// Tells which paths carry traffic; `None`: all may.
    pub fn carry(&mut self, hot: Option<BTreeSet<PathId>>, now: Duration) {
        if self.hot != hot {
            self.hot = hot;
            self.next_plan = now;
        }
    }

    /// Has a path looked at closely at once.
    pub fn hint(&mut self, id: &PathId, now: Duration) {
        let Some(number) = self.numbers.get(id).copied() else {
            return;
        };
        if let Some(path) = self.probed.get_mut(&number) {
            path.health.hint(now);
            self.schedule.remove(&(path.due, number));
            path.due = now;
            self.schedule.insert((now, number));
        }
    }

    /// When to poll again; `None` without paths.
    pub fn due(&self) -> Option<Duration> {
        let first = self.schedule.first()?.0;
        Some(first.min(self.next_plan))
    }

    /// Looks at the paths that are due, and gives what to send.
    pub fn poll(&mut self, now: Duration) -> Vec<Outgoing> {
        if now >= self.next_plan {
            self.plan(now);
        }
        let mut out = Vec::new();
        while let Some((at, number)) = self.schedule.first().copied().filter(|(at, _)| *at <= now) {
            self.schedule.remove(&(at, number));
            let Some(path) = self.probed.get_mut(&number) else {
                continue;
            };
            path.poll(now, self.own, &mut self.bucket, &mut out);
            path.due = path.due_next();
            if path.due <= now {
                // The budget is used up for the moment; many may wait for it.
                path.due = self.bucket.next().max(now) + AGAIN;
            }
            self.schedule.insert((path.due, number));
            self.dirty |= path.look();
            self.resized |= path.measure();
        }
        out
    }

    /// Takes a packet, and gives the answer if it was a probe. `None` as well for those whom nobody knows.
    pub fn receive(&mut self, from: IpAddr, echo: &Echo, now: Duration) -> Option<Echo> {
        let number = *self.by_address.get(&from)?;
        let path = self.probed.get_mut(&number)?;
        let bytes = inner_bytes(from.is_ipv4(), echo.length);
        path.echo.add(bytes);
        let reply = if echo.kind == Kind::Reply && echo.is_padded() {
            let sight = path.mtu_sight();
            if let Some(mtu) = &mut path.mtu {
                let padded = Padded {
                    sequence: echo.sequence,
                    sent: Duration::from_micros(echo.sent),
                    size: u32::try_from(bytes).unwrap_or(u32::MAX),
                };
                mtu.answered(padded, now, &sight);
            }
            None
        } else {
            path.health.receive(echo, now, self.own)
        };
        if reply.is_some() {
            path.echo.add(bytes);
        }
        self.dirty |= path.look();
        self.resized |= path.measure();
        let due = path.due_next();
        if due != path.due {
            self.schedule.remove(&(path.due, number));
            path.due = due;
            self.schedule.insert((due, number));
        }
        reply
    }

    /// Decides anew which paths are in use, if any has changed; gives the decision if it is another one than before.
    pub fn steer(&mut self) -> Option<&Steering> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let probed = self.probed.values();
        let mut sights: BTreeMap<PathId, Sight> =
            probed.map(|path| (path.id.clone(), path.sight)).collect();
        let judged = self.judged.iter();
        sights.extend(judged.map(|(id, works)| (id.clone(), Sight::stock(*works))));
        let steering = steer(&sights, &self.steering.in_use);
        if steering == self.steering {
            return None;
        }
        self.own.reached = echo::digest(&steering.reached);
        self.steering = steering;
        Some(&self.steering)
    }

    /// Whether the path MTU of any has changed since this was last asked.
    pub fn resized(&mut self) -> bool {
        std::mem::take(&mut self.resized)
    }

    /// How every probed path is.
    pub fn reports(&self, now: Duration) -> BTreeMap<PathId, Report> {
        let report = |path: &Probed| Report {
            health: path.health.report(now),
            mtu: path.mtu.as_ref().map(PathMtu::report),
            echo: path.echo,
        };
        let paths = self.probed.values();
        paths.map(|path| (path.id.clone(), report(path))).collect()
    }

    /// Shares the budget out among the paths.
    fn plan(&mut self, now: Duration) {
        self.next_plan = now + PLAN;
        let mut counts = Counts::default();
        for path in self.probed.values_mut() {
            path.hot = self.hot.as_ref().is_none_or(|hot| hot.contains(&path.id));
            if path.hot {
                counts.hot += 1;
            } else if path.is_awaited(now) {
                counts.awaited += 1;
            } else {
                counts.idle += 1;
            }
        }
        let paces = plan(counts, &self.timing);
        for (number, path) in &mut self.probed {
            let pace = if path.hot {
                paces.hot
            } else if path.is_awaited(now) {
                paces.awaited
            } else {
                paces.idle
            };
            path.health.pace(pace, now);
            let due = path.due_next().max(now);
            if due < path.due {
                self.schedule.remove(&(path.due, *number));
                path.due = due;
                self.schedule.insert((due, *number));
            }
        }
    }
}

impl Probed {
    fn new(id: &PathId, target: IpAddr, health: Health, now: Duration) -> Self {
        Self {
            id: id.clone(),
            target,
            device: "".into(),
            road: None,
            health,
            mtu: None,
            sight: Sight {
                usable: false,
                works: false,
                flags: Flags::default(),
            },
            size: None,
            hot: true,
            due: now,
            echo: Carried::default(),
        }
    }

    fn aim_mtu(&mut self, target: &Target, now: Duration, random: &mut impl FnMut() -> u64) {
        let v4 = self.target.is_ipv4();
        let Some(ceiling) = target.ceiling else {
            self.mtu = None;
            return;
        };
        let moved = self.road != target.road;
        self.road = target.road;
        let mtu = self
            .mtu
            .get_or_insert_with(|| PathMtu::new(now, v4, ceiling, random() >> 1));
        mtu.set_ceiling(ceiling, now);
        if moved {
            mtu.moved(now);
        }
        self.due = self.due.min(now);
    }

    fn poll(&mut self, now: Duration, own: Own, bucket: &mut Bucket, out: &mut Vec<Outgoing>) {
        bucket.refill(now);
        let sight = self.mtu_sight();
        let mtu = self.mtu.as_ref();
        let due = mtu.and_then(|mtu| mtu.due(&sight));
        let urgent = matches!(due, Some(Due::At(at)) if at <= now) && bucket.left() >= FOR_SIZES;
        if urgent {
            // Whether small ones pass meanwhile.
            self.health.nudge(now);
        }
        let hurry = self.hot || self.health.state() == State::Suspect;
        let may_send = bucket.left() > if hurry { 0 } else { RESERVE };
        let probe = self.health.poll(now, own, may_send);
        let beside = matches!(due, Some(Due::WithProbe(at)) if at <= now) && probe.is_some();
        if let Some(probe) = probe {
            bucket.take(now);
            self.send(probe, out);
        }
        // That is one then; what is put off goes with the next small one.
        let beside = beside && bucket.left() > RESERVE;
        // While the path does not work, what is on its way says nothing about sizes: it must hear of that.
        let out_of_order = !sight.works;
        let heard = self.health.heard_ago(now);
        let Some(mtu) = self
            .mtu
            .as_mut()
            .filter(|_| urgent || beside || out_of_order)
        else {
            return;
        };
        for padded in mtu.poll(now, &sight) {
            bucket.take(now);
            let header = header(self.target.is_ipv4());
            let echo = Echo {
                kind: Kind::Probe,
                own,
                sequence: padded.sequence,
                sent: u64::try_from(padded.sent.as_micros()).unwrap_or(u64::MAX),
                heard,
                length: echo::length(padded.size.saturating_sub(header)),
            };
            self.send(echo, out);
        }
    }

    fn send(&mut self, echo: Echo, out: &mut Vec<Outgoing>) {
        self.echo
            .add(inner_bytes(self.target.is_ipv4(), echo.length));
        out.push(Outgoing {
            device: Arc::clone(&self.device),
            to: self.target,
            echo,
        });
    }

    fn due_next(&self) -> Duration {
        let due = self.health.due();
        let mtu = self.mtu.as_ref();
        match mtu.and_then(|mtu| mtu.due(&self.mtu_sight())) {
            Some(Due::At(at)) => due.min(at),
            Some(Due::WithProbe(_)) | None => due,
        }
    }

    fn mtu_sight(&self) -> mtu::Sight {
        // As many for each small one as at full speed.
        let slower = self.health.slowness();
        mtu::Sight {
            works: self.health.state() == State::Connected,
            check: self.hot.then(|| mtu::CHECK.mul_f64(slower.max(1.0))),
            timeout: self.health.timeout(),
            answered: self.health.answered(),
        }
    }

    /// Whether it is to be steered otherwise than at the last look.
    fn look(&mut self) -> bool {
        let sight = Sight {
            usable: self.health.is_usable(),
            works: self.health.state().works(),
            flags: self.health.flags(),
        };
        let changed = sight != self.sight;
        self.sight = sight;
        changed
    }

    /// Whether its path MTU is another one than at the last look.
    fn measure(&mut self) -> bool {
        let size = self.mtu.as_ref().and_then(|mtu| mtu.report().size);
        let changed = size != self.size;
        self.size = size;
        changed
    }

    fn is_awaited(&self, now: Duration) -> bool {
        !self.health.state().works() && now.saturating_sub(self.health.since()) < AWAITED
    }
}

/// IP and UDP.
fn header(v4: bool) -> u32 {
    if v4 { 20 + 8 } else { 40 + 8 }
}

fn inner_bytes(v4: bool, length: u16) -> u64 {
    u64::from(header(v4)) + u64::from(length)
}

#[cfg(test)]
#[path = "prober_paths_tests.rs"]
mod tests;
