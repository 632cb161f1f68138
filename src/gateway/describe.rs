//! Puts the status of a path together, and says why it is not connected. PURE.

use std::net::SocketAddr;
use std::time::Duration;

use subsea_api::snapshot::{Cluster, Listener};
use subsea_api::{Cidr, UnixMillis};

use super::health::{Report, State};
use super::mesh::Path;
use super::status::{ClusterGateway, EchoStatus, ListenerStatus, PathState, PathStatus};
use super::{mtu, path_mtu};
use crate::membership::standing::Now;
use crate::tunnel::{PeerStats, REJECT_AFTER};

/// What was measured on a path.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Of the echo; `None` for a path without echo: a stock peer, or before we have an inner address.
    pub report: Option<&'a Report>,
    /// Of the padded echo.
    pub mtu: Option<&'a mtu::Report>,
    /// Whether it carries flows of its cluster now.
    pub in_use: bool,
    /// Whether it carried any lately.
    pub carrying: bool,
    /// The blocks of its cluster.
    pub blocks: &'a [Cidr],
    /// The round trip to a stock peer's probe address, if that answered lately.
    pub ping: Option<Duration>,
    /// The MTU of the tunnel device.
    pub device_mtu: u32,
    /// Whether the driver sends large packets whole or not at all.
    pub sends_whole: bool,
    /// The tunnel's counters.
    pub stats: &'a PeerStats,
    /// When the last handshake was completed.
    pub handshake: Option<UnixMillis>,
    /// Since when the path is known.
    pub since: Duration,
}

/// One of our listeners.
pub fn listener(listener: &Listener) -> ListenerStatus {
    ListenerStatus {
        id: listener.id.clone(),
        public_key: listener.public_key,
        port: listener.port,
        endpoint: listener.candidates.first().copied(),
        stripe: listener.stripe,
        for_slot: listener.for_slot,
    }
}

/// The gateways of our own cluster.
pub fn cluster_gateways(own: &Cluster) -> Vec<ClusterGateway> {
    let daemons = own.gateways.iter();
    let daemons = daemons.filter(|(_, gateway)| gateway.stock.is_none());
    daemons
        .map(|(node, gateway)| ClusterGateway {
            node: node.clone(),
            expired: gateway.expired,
        })
        .collect()
}

/// How the path is.
pub fn path(path: &Path, facts: &Facts<'_>, now: &Now) -> PathStatus {
    let Facts {
        report,
        ping,
        stats,
        handshake,
        since,
        in_use,
        ..
    } = *facts;
    let endpoint = stats.endpoint.or(path.endpoint);
    let state = match (path.until, &path.stock, report.map(|report| report.state)) {
        (Some(_), ..) => PathState::Kept,
        (None, Some(_), _) => PathState::Unprobed,
        (None, None, Some(State::Connected | State::Suspect)) => PathState::Connected,
        (None, None, Some(State::OneWay)) => PathState::OneWay,
        (None, None, Some(State::Dead)) => PathState::Down,
        (None, None, Some(State::Connecting) | None) => PathState::Connecting,
    };
    let echo = report.is_some_and(|report| report.state.works());
    let alive = age(handshake, now).is_some_and(|age| age < REJECT_AFTER);
    let two_way = match &path.stock {
        Some(stock) => stock.probe.map_or(alive, |_| ping.is_some()),
        None => echo,
    };
    PathStatus {
        cluster: path.id.cluster.clone(),
        gateway: path.id.node.clone(),
        public_key: path.key,
        endpoint,
        stripes: u16::try_from(path.stripes.len())
            .unwrap_or(u16::MAX)
            .saturating_add(1),
        stripe_stats: stats.stripes.clone(),
        state,
        since: now.wall_at(report.map_or(since, |report| report.since)),
        latest_handshake: handshake,
        rtt_ms: report
            .and_then(|report| report.rtt)
            .map(|rtt| rtt.last)
            .or(ping)
            .map(|rtt| rtt.as_secs_f64() * 1e3),
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        path_mtu: path_mtu(facts, endpoint),
        fragmented: is_fragmented(facts, endpoint),
        echo: report.map(|report| echo_status(report, facts, now)),
        in_use,
        expired: path.expired,
        cidrs: facts.blocks.iter().filter(|_| in_use).copied().collect(),
        drops: stats.drops.clone(),
        why: why(path, state, facts, endpoint, now),
        peer_hears_us: report.is_some_and(|report| report.peer_hears_us),
        two_way,
    }
}

/// The largest outer packet that gets there whole.
fn path_mtu(facts: &Facts<'_>, endpoint: Option<SocketAddr>) -> Option<u32> {
    let measured = facts.mtu.and_then(|mtu| mtu.size);
    // In fragments all of it gets there, which says nothing of whole ones.
    let measured = measured.filter(|size| facts.sends_whole || *size < facts.device_mtu);
    let inner = path_mtu::inner(endpoint, facts.stats.path_mtu, measured)?;
    Some(inner + path_mtu::overhead(endpoint))
}

/// Whether more gets there than the underlay takes whole.
fn is_fragmented(facts: &Facts<'_>, endpoint: Option<SocketAddr>) -> bool {
    let passes = facts.mtu.and_then(|mtu| mtu.size);
    let whole = path_mtu::inner(endpoint, facts.stats.path_mtu, None);
    !facts.sends_whole && passes > whole && whole.is_some()
}

fn echo_status(report: &Report, facts: &Facts<'_>, now: &Now) -> EchoStatus {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    EchoStatus {
        reason: report.reason.to_string(),
        rtt_smoothed_ms: report.rtt.map(|rtt| ms(rtt.smoothed)),
        rtt_min_ms: report.rtt.map(|rtt| ms(rtt.min)),
        rtt_max_ms: report.rtt.map(|rtt| ms(rtt.max)),
        rtt_deviation_ms: report.rtt.map(|rtt| ms(rtt.deviation)),
        loss_percent: report.loss.percent(),
        interval_ms: ms(report.interval),
        bound_ms: ms(report.bound),
        held_for_ms: report
            .held_until
            .map(|until| ms(until.saturating_sub(now.mono))),
        draining: report.flags.draining,
        inward_dead: report.flags.inward_dead,
        carrying: facts.carrying,
    }
}

fn why(
    path: &Path,
    state: PathState,
    facts: &Facts<'_>,
    endpoint: Option<SocketAddr>,
    now: &Now,
) -> Option<String> {
    let (report, handshake) = (facts.report, facts.handshake);
    let heard = report.and_then(|report| report.last_heard);
    let silent = || silence(endpoint, handshake, heard, now);
    let expired = path.expired.map_or_else(String::new, |at| {
        format!(
            "; the broker has not heard of this gateway for {} s: if it is gone for good, `subsea-broker gateway forget --cluster {} \
             --name {}` ends it",
            now.wall.since(at).as_secs(),
            path.id.cluster,
            path.id.node
        )
    });
    match state {
        PathState::Connected if facts.in_use => None,
        PathState::Connected => report.map(|report| out_of_use(report, now)),
        PathState::Kept => {
            let left = path
                .until
                .map_or(Duration::ZERO, |until| until.since(now.wall));
            let echo = match report.map(|report| report.state) {
                Some(State::Connected | State::Suspect) => "echo goes both ways".to_owned(),
                Some(State::OneWay) => ONE_WAY.to_owned(),
                Some(State::Dead | State::Connecting) => silent(),
                None => "it answers no echo".to_owned(),
            };
            Some(format!(
                "the broker's new history does not have it; kept for {} s more; {echo}",
                left.as_secs()
            ))
        }
        PathState::Unprobed => {
            let probe = path.stock.as_ref().and_then(|stock| stock.probe);
            let alive = age(handshake, now).is_some_and(|age| age < REJECT_AFTER);
            let judged = match (probe, facts.ping, alive) {
                (Some(probe), Some(_), _) => format!("{probe} behind it answers ping"),
                (Some(probe), None, true) => {
                    format!(
                        "its session is alive, but {probe} behind it does not answer ping: are our inner \
                         addresses among its AllowedIPs and routes?"
                    )
                }
                (None, _, true) => "its session is alive".to_owned(),
                (_, None, false) | (None, Some(_), false) => silent(),
            };
            Some(format!(
                "a stock WireGuard peer: it answers no echo; {judged}"
            ))
        }
        PathState::OneWay => Some(format!("{ONE_WAY}{expired}")),
        PathState::Connecting if report.is_none() && path.inner.is_empty() => {
            Some("it has no inner address that we can send echo to".to_owned())
        }
        PathState::Connecting if report.is_none() => Some(
            "we have no inner address yet: the broker has not registered this gateway".to_owned(),
        ),
        PathState::Connecting | PathState::Down => Some(format!("{}{expired}", silent())),
    }
}

/// Why a path that works carries nothing.
fn out_of_use(report: &Report, now: &Now) -> String {
    if report.flags.draining {
        return "its gateway is about to stop".to_owned();
    }
    if report.flags.inward_dead {
        return "its gateway says that it does not reach its own cluster".to_owned();
    }
    match report.held_until {
        Some(until) => format!(
            "it failed lately, and is not used for {:.1} s more: {}",
            until.saturating_sub(now.mono).as_secs_f64(),
            report.reason
        ),
        None => "it is about to be used".to_owned(),
    }
}

const ONE_WAY: &str = "we hear it, it does not hear us: is something in its way dropping what we send, or is \
                       its answer sent elsewhere?";

/// Why nothing is heard, as far as the handshake tells.
fn silence(
    endpoint: Option<SocketAddr>,
    handshake: Option<UnixMillis>,
    heard: Option<Duration>,
    now: &Now,
) -> String {
    let Some(endpoint) = endpoint else {
        return "it has no endpoint: it must speak first".to_owned();
    };
    match age(handshake, now) {
        None => format!("no handshake yet: is UDP {endpoint} open?"),
        Some(age) if age >= REJECT_AFTER => {
            format!(
                "no handshake for {} s: is UDP {endpoint} still open?",
                age.as_secs()
            )
        }
        Some(age) if heard.is_some() => format!(
            "no echo for {} s, after a handshake {} s ago: is the gateway up, and UDP {endpoint} still open?",
            heard.map_or(0, |at| now.mono.saturating_sub(at).as_secs()),
            age.as_secs()
        ),
        Some(age) => format!(
            "handshake is done ({} s ago) but no echo comes back: does its firewall let UDP {} in on its tunnel \
             device, and does it know this gateway?",
            age.as_secs(),
            super::echo::PORT
        ),
    }
}

fn age(handshake: Option<UnixMillis>, now: &Now) -> Option<Duration> {
    handshake.map(|at| now.wall.since(at))
}

#[cfg(test)]
mod tests {
    use subsea_api::PublicKey;
    use subsea_api::snapshot::StockPeer;

    use super::super::echo::Flags;
    use super::super::health::Reason;
    use super::super::health_stats::{Loss, Rtt};
    use super::super::mesh::PathId;
    use super::*;

    const NOW: Now = Now {
        mono: Duration::from_secs(100),
        wall: UnixMillis(1_000_000),
    };

    /// Nothing is known but what the tunnel counted.
    fn about(stats: &PeerStats) -> Facts<'_> {
        Facts {
            report: None,
            mtu: None,
            device_mtu: 1420,
            sends_whole: true,
            in_use: false,
            carrying: false,
            blocks: &[],
            ping: None,
            stats,
            handshake: None,
            since: Duration::ZERO,
        }
    }

    fn example() -> Path {
        Path {
            id: PathId {
                cluster: "west".parse().unwrap(),
                node: "gw-1".parse().unwrap(),
            },
            key: PublicKey::from_bytes([7; 32]).unwrap(),
            endpoint: Some(([192, 0, 2, 1], 51820).into()),
            stripes: vec![],
            inner: vec![[198, 19, 0, 1].into()],
            slot: 0,
            stock: None,
            until: None,
            expired: None,
        }
    }

    fn report(state: State) -> Report {
        let rtt = Duration::from_micros(1_500);
        Report {
            state,
            since: Duration::from_secs(90),
            reason: Reason::New,
            usable: state.works(),
            held_until: None,
            rtt: state.works().then_some(Rtt {
                last: rtt,
                smoothed: rtt,
                min: rtt,
                max: rtt,
                deviation: Duration::ZERO,
            }),
            loss: Loss::default(),
            interval: Duration::from_millis(250),
            bound: Duration::from_millis(695),
            last_heard: None,
            peer_hears_us: state.works(),
            flags: Flags::default(),
            revision: None,
            reached: None,
        }
    }

    fn describe(given: &Path, state: Option<State>, handshake: Option<u64>) -> PathStatus {
        let report = state.map(report);
        let handshake = handshake.map(|ago| UnixMillis(NOW.wall.0 - ago * 1_000));
        let stats = PeerStats::default();
        let facts = Facts {
            in_use: true,
            report: report.as_ref(),
            handshake,
            ..about(&stats)
        };
        path(given, &facts, &NOW)
    }

    #[test]
    fn a_connected_path_needs_no_reason() {
        let status = describe(&example(), Some(State::Connected), Some(5));
        assert_eq!(
            (status.state, status.why, status.rtt_ms),
            (PathState::Connected, None, Some(1.5))
        );
        assert_eq!(status.since, UnixMillis(990_000));
    }

    #[test]
    fn a_path_that_works_and_carries_nothing_says_why() {
        let why = |change: &dyn Fn(&mut Report)| {
            let mut report = report(State::Connected);
            change(&mut report);
            let stats = PeerStats::default();
            let facts = Facts {
                report: Some(&report),
                ..about(&stats)
            };
            path(&example(), &facts, &NOW).why.unwrap()
        };
        assert!(why(&|report| report.flags.draining = true).contains("about to stop"));
        assert!(why(&|report| report.flags.inward_dead = true).contains("own cluster"));
        let held = why(&|report| report.held_until = Some(NOW.mono + Duration::from_secs(3)));
        assert!(
            held.starts_with("it failed lately, and is not used for 3.0 s more"),
            "{held}"
        );
    }

    #[test]
    fn a_gateway_that_the_broker_misses_says_how_to_end_it() {
        let lost = Path {
            expired: Some(UnixMillis(NOW.wall.0 - 90_000)),
            ..example()
        };
        let status = describe(&lost, Some(State::Dead), Some(5));
        let why = status.why.unwrap();
        assert!(
            why.contains("for 90 s") && why.contains("gateway forget --cluster west --name gw-1"),
            "{why}"
        );
        assert_eq!(describe(&lost, Some(State::Connected), Some(5)).why, None);
    }

    #[test]
    fn the_reason_says_what_to_look_at() {
        let reason = |state, handshake| describe(&example(), state, handshake).why.unwrap();
        assert_eq!(
            reason(Some(State::Connecting), None),
            "no handshake yet: is UDP 192.0.2.1:51820 open?"
        );
        assert!(reason(Some(State::Dead), Some(200)).starts_with("no handshake for 200 s"));
        assert!(
            reason(Some(State::Dead), Some(20))
                .starts_with("handshake is done (20 s ago) but no echo")
        );
        assert!(
            reason(Some(State::OneWay), Some(20)).starts_with("we hear it, it does not hear us")
        );
        assert!(reason(None, None).starts_with("we have no inner address yet"));
        let mut fell_silent = report(State::Dead);
        fell_silent.last_heard = Some(Duration::from_secs(70));
        let handshake = Some(UnixMillis(NOW.wall.0 - 40_000));
        let stats = PeerStats::default();
        let facts = Facts {
            report: Some(&fell_silent),
            handshake,
            ..about(&stats)
        };
        let status = path(&example(), &facts, &NOW);
        assert!(
            status
                .why
                .unwrap()
                .starts_with("no echo for 30 s, after a handshake 40 s ago")
        );
        let nowhere = Path {
            endpoint: None,
            ..example()
        };
        let status = describe(&nowhere, Some(State::Connecting), None);
        assert!(status.why.unwrap().contains("must speak first"));
    }

    #[test]
    fn a_kept_gateway_is_shown_as_such_also_while_it_answers() {
        let kept = Path {
            until: Some(UnixMillis(1_060_000)),
            ..example()
        };
        let status = describe(&kept, Some(State::Connected), Some(5));
        assert_eq!((status.state, status.two_way), (PathState::Kept, true));
        assert!(
            status
                .why
                .unwrap()
                .contains("kept for 60 s more; echo goes both ways")
        );
    }

    #[test]
    fn a_stock_peer_is_unprobed() {
        let stock = Path {
            stock: Some(StockPeer { probe: None }),
            inner: vec![],
            ..example()
        };
        let status = describe(&stock, None, Some(5));
        assert_eq!(status.state, PathState::Unprobed);
        assert!(status.why.unwrap().contains("session is alive"));
        assert!(
            describe(&stock, None, None)
                .why
                .unwrap()
                .contains("no handshake yet")
        );
    }

    #[test]
    fn a_stock_peer_with_a_probe_address_is_judged_by_its_answers() {
        let stock = Path {
            stock: Some(StockPeer {
                probe: Some("10.60.0.1".parse().unwrap()),
            }),
            inner: vec![],
            ..example()
        };
        let stats = PeerStats::default();
        let facts = |ping| Facts {
            ping,
            handshake: Some(UnixMillis(999_000)),
            ..about(&stats)
        };
        let answers = path(&stock, &facts(Some(Duration::from_millis(2))), &NOW);
        assert_eq!(
            (answers.state, answers.two_way, answers.rtt_ms),
            (PathState::Unprobed, true, Some(2.0))
        );
        let silent = path(&stock, &facts(None), &NOW);
        assert!(!silent.two_way);
        assert!(silent.why.unwrap().contains("10.60.0.1"));
    }

    #[test]
    fn what_passes_though_the_underlay_takes_less_goes_in_fragments() {
        let report = |size| mtu::Report {
            size,
            since: Duration::ZERO,
            reason: mtu::Reason::Searched,
            searching: false,
        };
        let shown = |whole, said, size| {
            let stats = PeerStats {
                endpoint: Some("192.0.2.9:51820".parse().unwrap()),
                path_mtu: said,
                ..PeerStats::default()
            };
            let facts = Facts {
                mtu: Some(&report(size)),
                sends_whole: whole,
                ..about(&stats)
            };
            let status = path(&example(), &facts, &NOW);
            (status.path_mtu, status.fragmented)
        };
        assert_eq!(shown(true, None, Some(1420)), (Some(1480), false));
        assert_eq!(shown(true, Some(1300), Some(1420)), (Some(1300), false));
        assert_eq!(shown(false, None, Some(1420)), (None, false), "not known");
        assert_eq!(shown(false, Some(1300), Some(1420)), (Some(1300), true));
        assert_eq!(shown(false, Some(1300), Some(1240)), (Some(1300), false));
        assert_eq!(shown(false, Some(1300), None), (Some(1300), false));
        // Fragments are dropped on the way.
        assert_eq!(shown(false, None, Some(1240)), (Some(1300), false));
    }
}
